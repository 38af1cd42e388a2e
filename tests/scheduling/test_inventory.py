"""pytest tests/scheduling/test_inventory.py"""

import json
import os
import subprocess
import sys

import pytest

from polypersona.errors import InfeasiblePlanError, PolypersonaError
from polypersona.scheduling.inventory import here, load_inventory, local_inventory, read_inventory, start_ray


def test_this_machine_has_a_cpu_and_memory():
    [node] = local_inventory().nodes
    assert node.cpus >= 1
    assert node.memory_bytes > 1 << 28


def test_an_inventory_file_describes_nodes(tmp_path):
    path = tmp_path / "cluster.json"
    gpu = {"name": "T4", "memory_bytes": 1 << 34, "capability": 7.5}
    path.write_text(json.dumps({"nodes": [{"cpus": 8, "memory_bytes": 1 << 35, "gpus": [gpu]}]}))
    inventory = load_inventory(path)
    assert inventory.cpus == 8
    assert inventory.gpus[0].name == "T4"


def test_an_inventory_file_may_say_all_that_a_cluster_says(tmp_path):
    gpu = {"name": "T4", "memory_bytes": 1 << 34, "capability": 7.5, "free_bytes": 1 << 33}
    labels = {"ray.io/accelerator-type": "T4", "ray.io/market-type": "spot"}
    stored = {
        "cpus": 8,
        "memory_bytes": 1 << 35,
        "gpus": [gpu],
        "labels": labels,
        "object_store_bytes": 7,
        "node_id": "a",
    }
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"nodes": [stored, {"cpus": 1, "memory_bytes": 2}]}))
    full, bare = load_inventory(path).nodes
    assert (full.labels, full.object_store_bytes, full.node_id, full.accelerator) == (labels, 7, "a", "T4")
    assert full.gpus[0].free_bytes == 1 << 33
    assert (dict(bare.labels), bare.object_store_bytes, bare.node_id, bare.accelerator) == ({}, None, "", "")


@pytest.mark.parametrize(("key", "value"), [("cpu", 8), ("gpus", [{"name": "T4", "memory": 1}])])
def test_a_key_that_an_inventory_does_not_have_is_refused(tmp_path, key, value):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"nodes": [{"cpus": 8, "memory_bytes": 1, key: value}]}))
    with pytest.raises(PolypersonaError, match=r"has no '(cpu|memory)'"):
        load_inventory(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("cpus", 0), ("cpus", "8"), ("memory_bytes", -1), ("has_cpu_bf16", "no"), ("memory_bytes", None),
     ("gpus", [{"name": "T4", "memory_bytes": 1 << 34}]),
     ("gpus", [{"name": "T4", "memory_bytes": 0, "capability": 7}])],
)  # fmt: skip
def test_what_an_inventory_leaves_open_is_an_error_and_never_a_guess(tmp_path, key, value):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"nodes": [{"cpus": 8, "memory_bytes": 1 << 35, key: value}]}))
    with pytest.raises(PolypersonaError, match=r"cluster\.json is no inventory"):
        load_inventory(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": []}', '{"nodes": [{"cpus": "many"}]}'])
def test_a_file_that_is_no_inventory_is_named(tmp_path, text):
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(PolypersonaError, match=r"cluster\.json"):
        load_inventory(path)


@pytest.mark.ray
def test_a_ray_that_was_joined_is_used_as_it_is(local_ray):
    inventory = start_ray({"CPU": 1})
    assert inventory.cpus == 1
    assert "Ray cluster of 1 node" in inventory.source
    assert read_inventory({}).cpus == 2
    [node] = inventory.nodes
    assert node.labels["ray.io/node-id"] == node.node_id == here()
    assert node.object_store_bytes > 1 << 20


@pytest.mark.ray
def test_a_local_ray_starts_quietly_within_its_limits():
    code = (
        "from polypersona.scheduling.inventory import start_ray; inventory = start_ray({'CPU': 1}); import ray, os;"
        "threads = ray.get(ray.remote(num_cpus=1)(lambda: os.environ['OMP_NUM_THREADS']).remote());"
        "print(inventory.cpus, ray.cluster_resources()['CPU'], threads)"
    )
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert done.stdout.split() == ["1.0", "1.0", "1"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("bogus", "HOST:PORT"),
        ("http://127.0.0.1:8265", "a job server"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch, address, says):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InfeasiblePlanError, match=says):
        read_inventory()
