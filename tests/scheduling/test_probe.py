"""pytest tests/scheduling/test_probe.py. A stand-in for nvidia-smi on the path; control groups in folders."""

import os
from dataclasses import replace

import pytest

from polypersona.scheduling import inventory, probe
from polypersona.scheduling.inventory import local_inventory
from polypersona.scheduling.machines import GIB, Inventory, Node
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.probe import cpu_quota, memory_limit, probe_host, probe_machine

LISTED = """NVIDIA A100, 81920, 8.0, 80000, GPU-aaa1
NVIDIA T4, 16384, 7.5, 12000, GPU-bbb2
NVIDIA H100, [N/A], 9.0, [N/A], GPU-bbb3
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tool


def names(visible=None):
    found = probe_machine(visible)
    return [gpu.name.removeprefix("NVIDIA ") for gpu in found.gpus], found.unknown_gpus


def test_devices_whose_facts_cannot_be_read_are_unknown(nvidia_smi):
    assert names() == (["A100", "T4"], 1)


@pytest.mark.parametrize(
    ("visible", "shown"),
    [("", []), ("1", ["T4"]), ("1,0", ["T4", "A100"]), ("GPU-bbb2", ["T4"]), ("0,9,1", ["A100"]), ("-1", []),
     ("GPU-bbb", [])],
)  # fmt: skip
def test_devices_are_counted_as_cuda_shows_them(nvidia_smi, monkeypatch, visible, shown):
    assert names(visible) == (shown, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(local_inventory().gpus) == len(shown)


def test_a_tool_that_hangs_or_fails_offers_no_gpu(nvidia_smi, monkeypatch):
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    assert names() == ([], 0)
    nvidia_smi.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(probe, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    assert names() == ([], 0)


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ({"cpu.max": "250000 100000", "memory.max": "4294967296"}, 2.0, 4 * GIB),
        ({"cpu.max": "50000 100000"}, 1.0, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "1073741824"}, 4.0, GIB),
        ({}, None, None),
    ],
)  # fmt: skip
def test_a_control_group_says_what_may_be_used(tmp_path, files, cpus, memory):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (cpus, memory)


def test_the_machine_is_one_kind_of_hardware_whatever_of_its_memory_is_free():
    own = probe_machine()
    assert 1 <= own.cpus <= len(os.sched_getaffinity(0))
    joined = Node(2, own.memory_bytes // 2, processor=own.processor, physical_bytes=own.physical_bytes)
    assert hardware_of(Inventory((joined,))) == hardware_of(Inventory((own,)))


def test_a_host_is_the_machine_without_its_devices(nvidia_smi):
    machine = probe_machine()
    assert machine.gpus
    assert probe_host() == replace(machine, gpus=(), unknown_gpus=0)


def test_a_part_of_a_device_is_of_unknown_kind(nvidia_smi):
    assert names("MIG-3a1b,1") == (["T4"], 1)


def test_a_driver_that_sees_fewer_devices_than_its_cluster_has_looks_at_all(nvidia_smi, monkeypatch):
    for visible in ("", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        facts = inventory._own_facts({"Resources": {"GPU": 2.0}})
        assert [gpu.name for gpu in facts.gpus] == ["NVIDIA A100", "NVIDIA T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in inventory._own_facts({"Resources": {"GPU": 1.0}}).gpus] == ["NVIDIA T4"]
    assert inventory._own_facts({"Resources": {}}).gpus[0].name == "NVIDIA T4"
