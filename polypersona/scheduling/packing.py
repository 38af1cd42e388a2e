"""Several trainings on one inventory: what each may have, and which of them run at the same time. Pure.

`share_of` says how much of the inventory a training should plan with, so that as many as possible run side by side;
`admit` starts, largest first, whatever fits into what is free; `pack` plays that to the end. A worker has whole GPUs
and lies on one node; the workers of a training may lie on several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from polypersona.errors import InfeasiblePlanError
from polypersona.scheduling.machines import GIB, Decision, Inventory, Node

# An engine holds its weights once, and while it loads them a part of them twice.
LOADING_FACTOR = 1.5
# What engines may take of a GPU together; the rest is the runtime's.
GPU_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Demand:
    """What a training takes while it runs: `workers` times the other figures.

    `memory_bytes` is of a worker's node, 0 where it is not known. `size` is how long it takes, in any unit that all
    demands share.
    """

    name: str
    workers: int
    cpus: float
    gpus: int = 0
    memory_bytes: int = 0
    size: float = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """What is free on a node."""

    cpus: float
    gpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A training that runs, with the node of each of its workers, as indices."""

    demand: Demand
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """When and where a training runs, in units of the demands' sizes or of what was given in their place."""

    name: str
    nodes: tuple[int, ...]
    begin: float
    end: float


def rooms_of(inventory: Inventory) -> tuple[Room, ...]:
    """Return the empty nodes."""
    return tuple(Room(node.cpus, len(node.gpus), node.memory_bytes) for node in inventory.nodes)


def share_of(inventory: Inventory, count: int, workers: int | None = None) -> Inventory:
    """Return the part of the inventory that each of `count` trainings should plan with.

    With GPUs, these are dealt out whole: all of them where there are at least as many trainings, else as many as each
    can have. Without, the CPUs are: as many trainings at once as there are CPUs for their workers, each worker with the
    most threads that leave room for the others.

    Args:
        inventory: what there is.
        count: trainings that wait, at least one.
        workers: of each training, where the recipe says so.
    """
    if count <= 1:
        return inventory
    least = workers or 1
    if len(inventory.gpus) >= least:
        return _share_of_gpus(inventory, count, least, is_fixed=workers is not None)
    cpus = [int(node.cpus) for node in inventory.nodes]
    lanes = max(1, min(count, sum(cpus) // least))
    threads = max(
        (each for each in range(1, max(cpus) + 1) if sum(one // each for one in cpus) >= lanes * least), default=1
    )
    nodes = inventory.nodes
    shares = [min(1.0, threads / max(node.cpus, 1)) for node in nodes]
    memory = min(int(node.memory_bytes * share) for node, share in zip(nodes, shares, strict=True))
    installed = [node.physical_bytes or node.memory_bytes for node in nodes]
    physical = min(int(size * share) for size, share in zip(installed, shares, strict=True))
    part = Node(
        cpus=float(threads * least),
        memory_bytes=memory * least,
        has_cpu_bf16=all(node.has_cpu_bf16 for node in nodes),
        processor=" + ".join(sorted({node.processor for node in nodes if node.processor})),
        physical_bytes=physical * least,
    )
    return replace(inventory, nodes=(part,), source=f"a share of {inventory.source}")


def _share_of_gpus(inventory: Inventory, count: int, least: int, *, is_fixed: bool) -> Inventory:
    gpus = sorted(inventory.gpus, key=lambda gpu: (gpu.capability, gpu.memory_bytes))
    lanes = max(1, min(count, len(gpus) // least))
    each = least if is_fixed else len(gpus) // lanes
    holders = [node for node in inventory.nodes if node.gpus]
    part = Node(
        cpus=float(max(each, int(min(node.cpus / len(node.gpus) for node in holders) * each))),
        memory_bytes=int(min(node.memory_bytes / len(node.gpus) for node in holders) * each),
        gpus=tuple(gpus[:each]),  # the weakest: what is planned for them runs on any
        has_cpu_bf16=all(node.has_cpu_bf16 for node in holders),
    )
    return replace(inventory, nodes=(part,), source=f"a share of {inventory.source}")


def admit(waiting: Iterable[Demand], rooms: Sequence[Room]) -> tuple[list[Placed], tuple[Room, ...]]:
    """Return what starts now, largest first, and what is free then; what does not fit lets smaller ones pass."""
    started: list[Placed] = []
    free = tuple(rooms)
    for demand in largest_first(waiting):
        nodes = place(demand, free)
        if nodes is not None:
            started.append(Placed(demand, nodes))
            free = occupy(free, started[-1])
    return started, free


def largest_first(demands: Iterable[Demand]) -> list[Demand]:
    """Return the demands by what they occupy and for how long; equal ones by name."""
    return sorted(demands, key=lambda one: (-one.size * one.workers, one.name))


def place(demand: Demand, rooms: Sequence[Room]) -> tuple[int, ...] | None:
    """Return a node for each worker, on as few nodes as a first fit from the fullest finds; None without room."""
    nodes: list[int] = []
    order = sorted(range(len(rooms)), key=lambda index: (rooms[index].gpus, rooms[index].cpus, index))
    for index in order:
        fits = min(demand.workers - len(nodes), _num_fitting(demand, rooms[index]))
        nodes += [index] * fits
        if len(nodes) == demand.workers:
            return tuple(nodes)
    return None


def occupy(rooms: Sequence[Room], placed: Placed) -> tuple[Room, ...]:
    """Return what is free once a training runs."""
    return _changed(rooms, placed, -1)


def release(rooms: Sequence[Room], placed: Placed) -> tuple[Room, ...]:
    """Return what is free once it has ended."""
    return _changed(rooms, placed, 1)


def pack(
    demands: Sequence[Demand], inventory: Inventory, lasts: Mapping[str, float] | None = None
) -> tuple[Stretch, ...]:
    """Return when each training runs, by their begin; whenever one ends, the largest that fit begin.

    Args:
        demands: what each takes; `size` decides which is the largest.
        inventory: what there is.
        lasts: how long each takes, by name; its size unless given.

    Raises:
        InfeasiblePlanError: one of them does not fit the empty inventory.
    """
    refuse_misfits(demands, inventory)
    waiting, running, done = list(demands), list[tuple[float, Placed]](), list[Stretch]()
    free, now = rooms_of(inventory), 0.0
    while waiting or running:
        started, free = admit(waiting, free)
        for placed in started:
            waiting.remove(placed.demand)
            end = now + (placed.demand.size if lasts is None else lasts[placed.demand.name])
            running.append((end, placed))
            done.append(Stretch(placed.demand.name, placed.nodes, now, end))
        now = min(end for end, _ in running)
        for end, placed in [one for one in running if one[0] <= now]:
            running.remove((end, placed))
            free = release(free, placed)
    return tuple(done)


def choose_held(inventory: Inventory, num_adapters: int, weight_bytes: int | None, cache_bytes: int) -> Decision[int]:
    """Choose how many engines, each with its own copy of a base, one actor holds at once: as many as memory allows.

    An engine takes its weights and its keys and values: Σ = n · (weights + cache), within 85 % of the smallest GPU, or
    n · (1.5 · weights + cache) within a CPU's part of its node's memory.

    Args:
        inventory: what there is.
        num_adapters: that may answer.
        weight_bytes: of the largest base, None where that is not known.
        cache_bytes: of an engine's keys and values.
    """
    if weight_bytes is None:
        return Decision(1, "the size of the base is not known here: one at a time, loaded when it is needed")
    if inventory.gpus:
        room = min(int(GPU_SHARE * gpu.memory_bytes) for gpu in inventory.gpus)
        each, where = weight_bytes + cache_bytes, "the smallest GPU"
    else:
        room = min(int(node.memory_bytes / max(1, int(node.cpus))) for node in inventory.nodes)
        each, where = int(LOADING_FACTOR * weight_bytes) + cache_bytes, "a CPU's part of its node"
    fits = max(1, room // max(1, each))
    taken = f"{each / GIB:.1f} GiB each, {room / GIB:.1f} GiB in {where}"
    if fits >= num_adapters:
        return Decision(num_adapters, f"all of them: {taken}")
    return Decision(fits, f"{taken}; the others are loaded when they are needed")


def refuse_misfits(demands: Iterable[Demand], inventory: Inventory) -> None:
    """Refuse a training that does not fit even where nothing else runs.

    Raises:
        InfeasiblePlanError: names the first one, and what is short.
    """
    for demand in demands:
        if place(demand, rooms_of(inventory)) is not None:
            continue
        what = f"{demand.workers} workers of {demand.cpus:g} CPUs"
        what += f" and {demand.gpus} GPUs" if demand.gpus else ""
        what += f" and {demand.memory_bytes / GIB:.1f} GiB" if demand.memory_bytes else ""
        largest = max(inventory.nodes, key=lambda node: (len(node.gpus), node.cpus))
        raise InfeasiblePlanError(
            f"The training of {demand.name!r} needs {what}; {inventory.source} has {inventory.cpus:g} CPUs and "
            f"{len(inventory.gpus)} GPUs, {largest.memory_bytes / GIB:.1f} GiB on its largest node.",
            "Lower finetune.workers, or add nodes.",
        )


def _num_fitting(demand: Demand, room: Room) -> int:
    limits = [room.cpus // demand.cpus if demand.cpus else demand.workers]
    limits += [room.gpus // demand.gpus] if demand.gpus else []
    limits += [room.memory_bytes // demand.memory_bytes] if demand.memory_bytes else []
    return max(0, int(min(limits)))


def _changed(rooms: Sequence[Room], placed: Placed, sign: int) -> tuple[Room, ...]:
    changed, demand = list(rooms), placed.demand
    for index in placed.nodes:
        room = changed[index]
        changed[index] = Room(
            room.cpus + sign * demand.cpus,
            room.gpus + sign * demand.gpus,
            room.memory_bytes + sign * demand.memory_bytes,
        )
    return tuple(changed)
