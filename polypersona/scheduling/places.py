"""Where adapters are tuned: one kind of GPU, or the CPUs, and with how many workers. Pure: no clock, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.machines import GIB, Decision, Inventory, Node
from polypersona.scheduling.pools import node_selector, nodes_by_kind, refuse_unknown_gpus

# Of a device's memory, what a worker may be planned to hold; the rest is fragments and what is predicted too low.
GPU_SHARE, NODE_SHARE = 0.9, 0.9
Workers = int | str | tuple[int, int]


@dataclass(frozen=True, slots=True)
class TrainingPlace:
    """The nodes that train, and with how many workers.

    `room_bytes` is what a worker may hold: of its GPU, or its part of the node. `capability` is the least of the GPUs,
    0 without; `selector` is Ray's, empty for any node.
    """

    name: str
    nodes: tuple[Node, ...]
    is_on_gpu: bool
    workers: Decision[int]
    least_workers: Decision[int]
    room_bytes: int
    capability: float
    selector: Mapping[str, str] = field(default_factory=dict)


def choose_place(asked: Workers, inventory: Inventory, batch: int, memory_gb: float | None) -> TrainingPlace:
    """Return where to train and with how many workers.

    Workers share one kind of GPU, because a step waits for its slowest worker and all compute in one precision: the
    kind with the most memory in all, which stands for speed. Where more workers are asked for (of a range, the fewest)
    than a kind has GPUs, all kinds are taken; where no GPUs do, the CPUs.

    Args:
        asked: `auto`, a number, or a range; a range is elastic.
        inventory: what there is.
        batch: the global batch, which the workers divide.
        memory_gb: what a worker may hold at most, None for all there is.

    Raises:
        InfeasiblePlanError: the workers do not divide the batch or are not there, or the kind of a GPU is not known.
    """
    refuse_unknown_gpus(inventory)
    least, most = asked if isinstance(asked, tuple) else (None, asked)
    if isinstance(most, int):
        _refuse_undivided(most, batch, is_range=least is not None)
    kinds = nodes_by_kind(inventory)
    counts = {name: sum(len(node.gpus) for node in nodes) for name, nodes in kinds.items()}
    wanted = least or (most if isinstance(most, int) else 1)
    fitting = [name for name, count in counts.items() if count >= wanted]
    if fitting:
        name = max(fitting, key=lambda kind: sum(gpu.memory_bytes for node in kinds[kind] for gpu in node.gpus))
        selector = node_selector(name, kinds[name]) if len(kinds) > 1 else {}
        return _on_gpus(name, kinds[name], selector, counts[name], least, most, batch, memory_gb)
    holders = [node for nodes in kinds.values() for node in nodes]
    if holders and sum(counts.values()) >= wanted:
        return _on_gpus(" and ".join(kinds), holders, {}, sum(counts.values()), least, most, batch, memory_gb)
    return _on_cpus(inventory, least, most, batch, memory_gb)


def within(recipe: Recipe, inventory: Inventory) -> Recipe:
    """Return the recipe of one of several trainings: of a range of workers it takes no more than its share can hold."""
    asked = recipe.finetune.workers
    if not isinstance(asked, tuple):
        return recipe
    least, most = asked
    places = len(inventory.gpus) if len(inventory.gpus) >= least else int(inventory.cpus)
    batch = finetune_settings(recipe.finetune).global_batch
    workers = least, max(least, largest_divisor(batch, min(most, places)))
    return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"workers": workers})})


def fewest_workers(recipe: Recipe) -> int | None:
    """Return how many workers a training wants, the fewest of a range; None where the recipe leaves that open."""
    asked = recipe.finetune.workers
    if asked == "auto":
        return None
    return asked[0] if isinstance(asked, tuple) else asked


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is not above `at_most`."""
    return max(candidate for candidate in range(1, max(1, at_most) + 1) if number % candidate == 0)


def _on_gpus(
    name: str,
    nodes: Sequence[Node],
    selector: Mapping[str, str],
    count: int,
    least: int | None,
    most: int | str,
    batch: int,
    memory_gb: float | None,
) -> TrainingPlace:
    gpus = [gpu for node in nodes for gpu in node.gpus]
    if isinstance(most, int):
        workers = Decision(most, "finetune.workers in the recipe")
    else:
        workers = Decision(
            largest_divisor(batch, count), f"{count} GPUs ({name}), a whole one each; a global batch of {batch}"
        )
    free = min(gpu.memory_bytes if gpu.free_bytes is None else min(gpu.free_bytes, gpu.memory_bytes) for gpu in gpus)
    room = _limited(int(GPU_SHARE * free), memory_gb)
    is_spread = most == "auto" and len(nodes) > 1 and workers.value > 1
    return TrainingPlace(
        name=f"a GPU ({name})",
        nodes=tuple(nodes),
        is_on_gpu=True,
        workers=workers,
        least_workers=_least(workers.value, least, is_spread=is_spread),
        room_bytes=room,
        capability=min(gpu.capability for gpu in gpus),
        selector=dict(selector),
    )


def _on_cpus(
    inventory: Inventory, least: int | None, most: int | str, batch: int, memory_gb: float | None
) -> TrainingPlace:
    available = int(inventory.cpus)
    if isinstance(most, int):
        needed = least or most
        if needed > available:
            raise InfeasiblePlanError(
                f"finetune.workers: {needed} workers need as many CPUs; {inventory.source} has {available}.",
                f"Use {largest_divisor(batch, max(1, available))} workers or fewer, or add nodes.",
            )
        workers = Decision(most, "finetune.workers in the recipe")
    else:
        workers = Decision(1, "no GPU: one process with several threads beats several processes on a machine")
    on_a_node = -(-min(workers.value, available) // len(inventory.nodes))
    smallest = min(node.memory_bytes for node in inventory.nodes)
    return TrainingPlace(
        name="a node",
        nodes=inventory.nodes,
        is_on_gpu=False,
        workers=workers,
        least_workers=_least(workers.value, least, is_spread=False),
        room_bytes=_limited(int(NODE_SHARE * smallest / on_a_node), memory_gb),
        capability=0.0,
    )


def _least(workers: int, asked: int | None, *, is_spread: bool) -> Decision[int]:
    if asked is not None:
        return Decision(asked, "the range of finetune.workers in the recipe")
    if is_spread:
        return Decision(1, "several nodes: where one leaves, the others go on from the last checkpoint")
    return Decision(workers, "a fixed number: a worker that dies is started again")


def _limited(room: int, memory_gb: float | None) -> int:
    return room if memory_gb is None else min(room, int(memory_gb * GIB))


def _refuse_undivided(workers: int, batch: int, *, is_range: bool) -> None:
    nearest = largest_divisor(batch, workers)
    if nearest != workers:
        what = "at most " if is_range else ""
        raise InfeasiblePlanError(
            f"finetune.workers: {what}{workers} workers do not divide the global batch of {batch} examples.",
            f"Use {nearest} workers, or change finetune.batch_size or finetune.accumulation.",
        )
