"""The inventory: what this machine or the Ray cluster has, and the one place that starts or joins Ray.

Gives `machines.Inventory` values. Facts that Ray does not know (bf16 instructions, memory of a GPU) are read on each
node by a task that reserves nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polypersona.errors import InfeasiblePlanError, RecipeError
from polypersona.scheduling.machines import Gpu, Inventory, Node, limit_inventory
from polypersona.scheduling.probe import probe_machine

PROBE_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
# One thread a process: the pool is the parallelism, and a blocked OpenMP barrier costs more than a second thread gains.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def start_ray(limits: Mapping[str, float] | None = None) -> Inventory:
    """Join the Ray cluster that RAY_ADDRESS names or that runs on this machine, else start a local one, quietly.

    A Ray that this process has joined already is used as it is.

    Args:
        limits: totals by Ray resource name (`CPU`, `GPU`) that the run may use.

    Returns:
        What the run may use: the cluster's nodes within the limits.
    """
    if not ray.is_initialized():
        # Ray would warn about a default it changes; this is the new default.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Its C++ side would write an alarm about every actor pool that restarts its actors to the driver's stderr.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _silenced_descriptor(2):
            if not _join_cluster():
                _start_local(limits or {})
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return read_cluster(limits)


def read_inventory(limits: Mapping[str, float] | None = None) -> Inventory:
    """Return what a run would use, starting nothing: the joined or named cluster's nodes, else this machine."""
    if ray.is_initialized() or _named_address() is not None:
        return start_ray(limits)
    return limit_inventory(local_inventory(), limits or {})


def read_cluster(limits: Mapping[str, float] | None = None) -> Inventory:
    """Return the nodes of the Ray cluster this process has joined, within the limits."""
    alive = alive_nodes()
    probe = ray.remote(num_cpus=0)(probe_machine)
    asked = {
        node["NodeID"]: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
        if node["NodeID"] != here()
    }
    facts = {here(): _own_facts(next(node for node in alive if node["NodeID"] == here()))}
    for node_id, answer in asked.items():
        with contextlib.suppress(TaskUnschedulableError, NodeDiedError, WorkerCrashedError):  # it has left meanwhile
            facts[node_id] = ray.get(answer, timeout=PROBE_TIMEOUT_S)
    nodes = tuple(_cluster_node(node, facts[node["NodeID"]]) for node in alive if node["NodeID"] in facts)
    return limit_inventory(Inventory(nodes, f"a Ray cluster of {len(nodes)} node(s)"), limits or {})


def _own_facts(listed: Mapping[str, Any]) -> Node:
    """Return the facts of this node, of which the driver may see fewer GPUs than the cluster has."""
    facts = probe_machine(_visible_gpus())
    count = int(listed["Resources"].get("GPU", 0))
    return facts if len(facts.gpus) + facts.unknown_gpus >= count else probe_machine()


def alive_nodes() -> list[dict[str, Any]]:
    """Return the living nodes of the joined cluster, as Ray lists them; asks no node."""
    return [node for node in ray.nodes() if node["Alive"]]


def here() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def is_alive(node_id: str) -> bool:
    """Return whether a node goes on; one that nobody knows does not, nor does one that is told to leave."""
    # Ray's own preemption watcher asks the same; there is no public way to.
    if node_id in ray_state.get_draining_nodes():
        return False
    return any(node["NodeID"] == node_id for node in alive_nodes())


def local_inventory() -> Inventory:
    """Return what this machine has."""
    return Inventory((probe_machine(_visible_gpus()),), "this machine")


def load_inventory(path: Path) -> Inventory:
    """Read an inventory file: `{"nodes": [{"cpus", "memory_bytes", "gpus": […], …}]}`.

    A node may also say `has_cpu_bf16`, `processor`, `labels`, `object_store_bytes` and `node_id`; a GPU has `name`,
    `memory_bytes`, `capability` and, if known, `free_bytes`. Another key is an error, because it would not be heard.

    Raises:
        RecipeError: the file cannot be read, or is no inventory.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(_stored_node(node) for node in content["nodes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path} is no inventory: {type(error).__name__} {error}.",
            'Write {"nodes": [{"cpus": 8, "memory_bytes": 34359738368, "gpus": [], "has_cpu_bf16": false}]}.',
        ) from error
    if not nodes:
        raise InfeasiblePlanError(f"{path} lists no node.", "Add at least one node.")
    return Inventory(nodes, str(path))


def _stored_node(stored: Mapping[str, Any]) -> Node:
    known = {"cpus", "memory_bytes", "gpus", "has_cpu_bf16", "processor", "labels", "object_store_bytes", "node_id"}
    if other := sorted(set(stored) - known):
        raise ValueError(f"a node has no {other[0]!r}")
    store = stored.get("object_store_bytes")
    has_bf16 = stored.get("has_cpu_bf16", False)
    if not isinstance(has_bf16, bool):
        raise ValueError(f"has_cpu_bf16 is true or false, not {has_bf16!r}")
    return Node(
        cpus=_amount(stored, "cpus"),
        memory_bytes=int(_amount(stored, "memory_bytes")),
        gpus=tuple(_stored_gpu(gpu) for gpu in stored.get("gpus", [])),
        has_cpu_bf16=has_bf16,
        processor=str(stored.get("processor", "")),
        node_id=str(stored.get("node_id", "")),
        labels={str(key): str(value) for key, value in stored.get("labels", {}).items()},
        object_store_bytes=None if store is None else int(store),
    )


def _stored_gpu(stored: Mapping[str, Any]) -> Gpu:
    if other := sorted(set(stored) - {"name", "memory_bytes", "capability", "free_bytes"}):
        raise ValueError(f"a GPU has no {other[0]!r}")
    free = stored.get("free_bytes")
    return Gpu(
        str(stored["name"]),
        int(_amount(stored, "memory_bytes")),
        _amount(stored, "capability"),
        None if free is None else int(free),
    )


def _amount(stored: Mapping[str, Any], key: str) -> float:
    """Return a number that is stored; one that is missing, or not above zero, would be a guess."""
    value = stored[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{key} is a number above 0, not {value!r}")
    return float(value)


@contextlib.contextmanager
def _silenced_descriptor(descriptor: int) -> Iterator[None]:
    """Drop what native code writes to a descriptor: Ray announces the log level it was told. Exceptions still pass."""
    kept = os.dup(descriptor)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def _join_cluster() -> bool:
    """Join the cluster there is, and say whether there is one."""
    address = _named_address()
    if address is None and not _is_running_here():
        return False
    if address is not None:
        _refuse_silent_address(address)
    try:
        ray.init(address=address or "auto", **_quiet_options())
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is not None:
            raise _address_error(address, "no Ray cluster answers there") from error
        if isinstance(error, ConnectionError):
            return False  # a cluster that was killed leaves its address behind
        raise
    return True


def _refuse_silent_address(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would go on trying for minutes."""
    scheme, _, place = address.rpartition("://")
    if scheme.startswith("http"):
        raise _address_error(address, "this is the address of a job server, not of the cluster")
    if address == "auto":
        return
    host, separator, port = place.rstrip("/").rpartition(":")
    if not separator or not port.isdecimal():
        raise _address_error(address, "an address is HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _address_error(address, f"nothing answers there ({getattr(error, 'strerror', None) or error})") from error


def _address_error(address: str, what: str) -> InfeasiblePlanError:
    return InfeasiblePlanError(
        f"RAY_ADDRESS is {address!r}: {what}.", "Unset RAY_ADDRESS, or set it to HOST:PORT as `ray start` printed it."
    )


def _start_local(limits: Mapping[str, float]) -> None:
    machine = limit_inventory(local_inventory(), limits)
    ray.init(
        address="local",
        num_cpus=max(1, int(machine.cpus)),
        num_gpus=len(machine.gpus) + sum(node.unknown_gpus for node in machine.nodes),
        include_dashboard=False,
        **_quiet_options(),
    )


def _quiet_options() -> dict[str, Any]:
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }


def _named_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return address if address not in ("", "local") else None


def _visible_gpus() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _is_running_here() -> bool:
    """Whether `ray start` has put a node on this machine; it leaves its address in a file."""
    if os.environ.get("RAY_ADDRESS") == "local":
        return False
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").exists()


def _cluster_node(listed: Mapping[str, Any], facts: Node) -> Node:
    resources = listed["Resources"]
    count = int(resources.get("GPU", 0))
    return replace(
        facts,
        cpus=float(resources.get("CPU", 0)),
        memory_bytes=int(resources.get("memory", 0)),
        gpus=facts.gpus[:count],
        node_id=str(listed["NodeID"]),
        labels=dict(listed["Labels"]),
        object_store_bytes=int(resources.get("object_store_memory", 0)),
        unknown_gpus=max(0, count - len(facts.gpus)),
    )
