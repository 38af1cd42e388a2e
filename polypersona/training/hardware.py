"""What a training ran on: each worker's machine, counted by kind, for each attempt; and that in words.

Names no host. Knows no Ray and no run directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polypersona.progress import render_seconds
from polypersona.scheduling.machines import GIB
from polypersona.scheduling.probe import probe_host


def describe_machine(device: str, node: str = "") -> dict[str, Any]:
    """Return what the worker of this process runs on.

    Args:
        device: torch's name of where it computes, such as `cpu` or `cuda:0`.
        node: what tells its machine from those of other workers.
    """
    host = probe_host()
    found = {"node": node, "processor": host.processor, "cpus": host.cpus, "memory_bytes": host.memory_bytes}
    if device == "cpu":
        return {**found, "accelerator": "", "accelerator_bytes": 0}
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {**found, "accelerator": properties.name, "accelerator_bytes": properties.total_memory}


def count_machines(machines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the kinds of machine of a group of workers, each with its `nodes` and `workers`; the nodes have no name.

    Args:
        machines: of each worker, as `describe_machine` has it; empty where nobody looked.
    """
    kinds: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for machine in filter(None, machines):
        kind = tuple((name, value) for name, value in machine.items() if name != "node")
        kinds.setdefault(kind, []).append(machine["node"])
    return [{**dict(kind), "nodes": len(set(nodes)), "workers": len(nodes)} for kind, nodes in kinds.items()]


def render_hardware(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Return the machines of a training's attempts in words; those of equal attempts once.

    Args:
        attempts: as `checkpoints.State` keeps them; empty where none were recorded.
    """
    runs: list[tuple[int, str]] = []  # the step from which on, and what
    for attempt in attempts:
        said = " and ".join(map(_worded, attempt["machines"])) or "not recorded"
        if not runs or runs[-1][1] != said:
            runs.append((attempt["step"], said))
    if attempts and attempts[0]["step"]:
        runs.insert(0, (0, "not recorded"))
    if len(runs) < 2:
        return runs[0][1] if runs else "not recorded"
    return "; ".join(f"from step {step} on {said}" for step, said in runs)


def render_wall_time(attempts: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Return how long a training took, all its attempts together.

    Args:
        attempts: as in `render_hardware`.
        seconds: of the last attempt.
    """
    if not attempts:
        return render_seconds(seconds)
    said = render_seconds(sum(attempt["seconds"] for attempt in attempts))
    if attempts[0]["step"]:
        return f"{said}, from step {attempts[0]['step']} on"
    return said if len(attempts) == 1 else f"{said} in {len(attempts)} attempts, each up to its last checkpoint"


def _worded(kind: Mapping[str, Any]) -> str:
    nodes, workers = kind["nodes"], kind["workers"]
    each = " each" if nodes > 1 else ""
    said = (
        f"{nodes} node{'s' if nodes > 1 else ''} ({kind['processor'] or 'processor not known'}, {kind['cpus']:g} CPUs, "
        f"{kind['memory_bytes'] / GIB:.0f} GiB{each}), {workers} worker{'s' if workers > 1 else ''}"
    )
    if not kind["accelerator"]:
        return said
    return f"{said} on {workers} × {kind['accelerator']} ({kind['accelerator_bytes'] / GIB:.0f} GiB)"
