"""What a training ran on, counted and in words."""

from __future__ import annotations

from typing import Any

from polypersona.scheduling.machines import GIB
from polypersona.scheduling.probe import probe_host
from polypersona.training.hardware import count_machines, describe_machine, render_hardware, render_wall_time


def machine(node: str, accelerator: str = "", processor: str = "AMD EPYC 7763") -> dict[str, Any]:
    return {
        "node": node, "processor": processor, "cpus": 64.0, "memory_bytes": 503 * GIB,
        "accelerator": accelerator, "accelerator_bytes": 80 * GIB if accelerator else 0,
    }  # fmt: skip


def attempt(step: int, seconds: float, *machines: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "workers": len(machines), "seconds": seconds, "machines": count_machines(machines)}


def test_workers_are_counted_by_the_kind_of_their_machine_and_no_node_is_named() -> None:
    kinds = count_machines([machine("a", "A100"), machine("a", "A100"), machine("b", "A100"), machine("c", "T4")])
    assert [(kind["accelerator"], kind["nodes"], kind["workers"]) for kind in kinds] == [("A100", 2, 3), ("T4", 1, 1)]
    assert not any("node" in kind for kind in kinds)
    assert count_machines([{}, {}]) == []


def test_nodes_processors_accelerators_and_workers_are_said() -> None:
    assert render_hardware([attempt(0, 9.0, machine("a"))]) == ("1 node (AMD EPYC 7763, 64 CPUs, 503 GiB), 1 worker")
    gpus = [attempt(0, 9.0, machine("a", "A100"), machine("b", "A100"), machine("b", "A100"))]
    assert render_hardware(gpus) == ("2 nodes (AMD EPYC 7763, 64 CPUs, 503 GiB each), 3 workers on 3 × A100 (80 GiB)")


def test_a_training_that_went_on_elsewhere_says_from_which_step_on() -> None:
    moved = [attempt(0, 60.0, machine("a")), attempt(20, 30.0, machine("z")), attempt(40, 10.0, machine("b", "A100"))]
    assert render_hardware(moved) == (
        "from step 0 on 1 node (AMD EPYC 7763, 64 CPUs, 503 GiB), 1 worker; "
        "from step 40 on 1 node (AMD EPYC 7763, 64 CPUs, 503 GiB), 1 worker on 1 × A100 (80 GiB)"
    )
    assert render_wall_time(moved, 10.0) == "1 min 40 s in 3 attempts, each up to its last checkpoint"
    assert render_hardware(moved[1:2]).startswith("from step 0 on not recorded; from step 20 on 1 node")
    assert render_wall_time(moved[1:2], 30.0) == "30 s, from step 20 on"


def test_what_nobody_recorded_is_not_recorded() -> None:
    assert render_hardware([]) == render_hardware([attempt(0, 9.0, {})]) == "not recorded"
    assert render_wall_time([], 61.4) == "1 min 01 s"


def test_a_worker_on_a_cpu_describes_its_host() -> None:
    host, found = probe_host(), describe_machine("cpu", "n1")
    assert (found["node"], found["processor"], found["cpus"]) == ("n1", host.processor, host.cpus)
    assert (found["memory_bytes"], found["accelerator"]) == (host.memory_bytes, "")
