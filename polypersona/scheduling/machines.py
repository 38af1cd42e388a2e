"""What a run may use: machines with their CPUs, memory, GPUs and labels. Values only, nothing is looked up here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

Value = TypeVar("Value")
GIB = 1 << 30

# Ray's own labels of a node.
ACCELERATOR = "ray.io/accelerator-type"
MARKET = "ray.io/market-type"
NODE_ID = "ray.io/node-id"
SPOT = "spot"


@dataclass(frozen=True, slots=True)
class Decision(Generic[Value]):
    """A value and why it was chosen."""

    value: Value
    reason: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. `capability` is CUDA's compute capability, such as 8.0; `free_bytes` is None where not known."""

    name: str
    memory_bytes: int
    capability: float
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, in what a run may use of it.

    `processor` names the kind of CPU; empty where it is not known. `object_store_bytes` is None where no Ray runs.
    `unknown_gpus` counts devices that Ray schedules but of which the node could not tell name and memory. `labels` are
    Ray's, such as `ray.io/market-type: spot`; `node_id` is Ray's too, empty outside a cluster. `physical_bytes` is the
    machine's memory, of which Ray offers what was free when it started; None where `memory_bytes` is all that is known.
    """

    cpus: float
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    has_cpu_bf16: bool = False
    processor: str = ""
    node_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    object_store_bytes: int | None = None
    unknown_gpus: int = 0
    physical_bytes: int | None = None

    @property
    def accelerator(self) -> str:
        """The kind of its GPUs: Ray's label, else the devices' names; empty without a GPU."""
        if not self.gpus:
            return ""
        return self.labels.get(ACCELERATOR) or " + ".join(sorted({gpu.name for gpu in self.gpus}))


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is: the machines, who said so (`this machine`, a Ray cluster, a file), and limits applied to it."""

    nodes: tuple[Node, ...]
    source: str = "this machine"
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Devices of all nodes."""
        return tuple(gpu for node in self.nodes for gpu in node.gpus)


def limit_inventory(inventory: Inventory, limits: Mapping[str, float]) -> Inventory:
    """Return the part of the inventory that totals by Ray resource name allow; nodes are filled in order."""
    cpus_left = limits.get("CPU", float("inf"))
    gpus_left = limits.get("GPU", float("inf"))
    nodes = []
    for node in inventory.nodes:
        cpus = min(node.cpus, cpus_left)
        gpus = node.gpus[: int(min(len(node.gpus), gpus_left))]
        unknown = int(min(node.unknown_gpus, gpus_left - len(gpus)))
        cpus_left -= cpus
        gpus_left -= len(gpus) + unknown
        if cpus > 0 or gpus:
            nodes.append(replace(node, cpus=cpus, gpus=gpus, unknown_gpus=unknown))
    return Inventory(tuple(nodes), inventory.source, {**inventory.limits, **limits})
