"""What the machine of this process offers it: CPUs, memory, GPUs, bf16 instructions.

Linux tells what a container may use (control groups) and nvidia-smi what GPUs there are; `CUDA_VISIBLE_DEVICES` hides
some of them from this process and those it starts.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polypersona.records import digest
from polypersona.scheduling.machines import Gpu, Node

_NVIDIA_SMI = ("--query-gpu=name,memory.total,compute_cap,memory.free,uuid", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_S = 30.0
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def probe_machine(visible: str | None = None) -> Node:
    """Return the facts of the machine this runs on.

    Args:
        visible: the GPUs to count, as in `CUDA_VISIBLE_DEVICES`: indices or UUIDs; None for all.
    """
    gpus, unknown = _read_gpus(visible)
    return replace(probe_host(), gpus=gpus, unknown_gpus=unknown)


def probe_host() -> Node:
    """Return the facts of the machine this runs on but for its GPUs, which take longer to ask for."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(physical, memory_limit() or physical)
    cpus = float(len(os.sched_getaffinity(0)))
    facts = _processor_facts()
    flags = facts.get("flags", "").split()
    return Node(
        min(cpus, cpu_quota() or cpus),
        memory,
        has_cpu_bf16="avx512_bf16" in flags or "amx_bf16" in flags,
        processor=_processor(facts),
        physical_bytes=memory,
    )


def cpu_quota(root: Path = CONTROL_GROUPS) -> float | None:
    """Return how many whole CPUs this process's control group may keep busy, at least one; None without a quota."""
    quota = (_first_line(root / "cpu.max") or "max").split()
    if len(quota) == 1:
        quota = [
            _first_line(root / "cpu/cpu.cfs_quota_us") or "max",
            _first_line(root / "cpu/cpu.cfs_period_us") or "0",
        ]
    if quota[0] == "max" or int(quota[0]) <= 0 or int(quota[1]) <= 0:
        return None
    return float(max(1, int(quota[0]) // int(quota[1])))


def memory_limit(root: Path = CONTROL_GROUPS) -> int | None:
    """Return how many bytes the control group of this process may hold; None without a limit."""
    limit = _first_line(root / "memory.max") or _first_line(root / "memory/memory.limit_in_bytes") or "max"
    return None if limit == "max" else int(limit)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _processor(facts: Mapping[str, str]) -> str:
    """Return the kind of CPU: its name and a digest of its instructions, which a virtual machine may hide a part of."""
    name = facts.get("model name") or " ".join(facts.get(f"CPU {part}", "") for part in ("implementer", "part")).strip()
    flags = facts.get("flags") or facts.get("Features") or ""
    name = name or platform.processor() or platform.machine()
    return f"{name} ({digest(*sorted(flags.split()), size=4)})" if flags else name


def _processor_facts() -> dict[str, str]:
    """Return what the system says of the first CPU."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _read_gpus(visible: str | None) -> tuple[tuple[Gpu, ...], int]:
    """Return the GPUs that nvidia-smi describes, and how many it lists without their facts."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), 0
    try:
        found = subprocess.run(
            [tool, *_NVIDIA_SMI], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return (), 0
    if found.returncode != 0:
        return (), 0
    rows = [[part.strip() for part in line.split(",")] for line in found.stdout.splitlines() if line.strip()]
    gpus = [_gpu(row) for row in _visible(rows, visible)]
    return tuple(gpu for gpu in gpus if gpu is not None), gpus.count(None)


def _visible(rows: Sequence[list[str]], visible: str | None) -> list[list[str]]:
    """Return the devices that CUDA would show, in its order: it stops at the first name that is none."""
    if visible is None:
        return list(rows)
    shown = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        if name.startswith("MIG-"):  # a part of a device, which is not listed
            shown.append([name, "", "", "", name])
            continue
        found = [row for index, row in enumerate(rows) if name == str(index) or row[-1].startswith(name)]
        if len(found) != 1:
            break
        shown.append(found[0])
    return shown


def _gpu(row: Sequence[str]) -> Gpu | None:
    name, total, capability, free, _ = row
    try:
        return Gpu(name, int(float(total)) << 20, float(capability), int(float(free)) << 20)
    except ValueError:  # such as [N/A]
        return None
