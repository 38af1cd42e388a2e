"""The pools of actors: one for each kind of place, which all take shards of the same ledger. Pure: no clock, no Ray.

A kind of place is the CPUs of all nodes, or the nodes that hold one kind of GPU. A kind of GPU answers only if it
computes the precision and holds the weights that the run is frozen to; one that cannot is left out with its reason,
because a shard must not depend on where it was answered. Recipes reach older devices by asking for another
`model.dtype` before the run begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.scheduling.machines import ACCELERATOR, GIB, MARKET, NODE_ID, SPOT, Decision, Inventory, Node
from polypersona.scheduling.precision import LEAST_CAPABILITY

CPU = "CPU"
# Bytes of weights, measured in those of 16 bits.
WEIGHT_SHARES: Mapping[str, float] = {"fp32": 2.0, "fp16": 1.0, "bf16": 1.0, "nf4": 0.3, "int8": 0.55}
# Of a GPU's memory, what weights and cache may take together; the rest is activations and the runtime.
GPU_USABLE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors on one kind of place: how many, what each reserves, and the labels of the nodes they run on.

    `most` is what the pool may grow to while nodes join, None where only the places limit it. `selector` is asked for
    first, then each of `fallback`; both are Ray's label selectors, and empty ones take any node.
    """

    name: str
    actors: Decision[int]
    most: int | None
    cpus_per_actor: float
    gpus_per_actor: int
    memory_per_actor: int = 0
    selector: Mapping[str, str] = field(default_factory=dict)
    fallback: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A kind of GPU that does not answer, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a GPU must be able to do for a run; None where that is still to be decided."""

    dtype: str | None
    quantization: str | None
    cache_bytes: int | None
    weight_bytes: int | None
    origin: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A living node as the cluster lists it: amounts by Ray resource name, and labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def demand_of(recipe: Recipe, weight_bytes: int | None, frozen: Mapping[str, Any] | None) -> Demand:
    """Return what is settled of precision, quantisation and cache: what a run has frozen, else what the recipe says."""
    if frozen is not None:
        cache = frozen.get("cache_bytes")
        return Demand(frozen["dtype"], frozen["quantization"], cache, weight_bytes, "frozen at the run's first start")
    dtype, quantization = (None if word == "auto" else word for word in (recipe.model.dtype, recipe.model.quantization))
    return Demand(dtype, quantization, None, weight_bytes, "which the recipe asks for")


def leave_out(inventory: Inventory, demand: Demand) -> tuple[Inventory, tuple[LeftOut, ...]]:
    """Return the inventory without the GPUs that cannot do what the run demands, and those with their reasons.

    Raises:
        InfeasiblePlanError: the kind of a GPU is not known, or none of them can.
    """
    refuse_unknown_gpus(inventory)
    reasons: dict[str, str] = {}
    for name, nodes in nodes_by_kind(inventory).items():
        if reason := _shortcoming(nodes, demand):
            reasons[name] = reason
    if reasons and len(reasons) == len(nodes_by_kind(inventory)):
        raise InfeasiblePlanError(
            f"No GPU can answer: {'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}.",
            "Add GPUs that can, set cluster.limits.GPU: 0 to answer on CPUs, or begin a run with another model.dtype.",
        )
    used = tuple(replace(node, gpus=()) if node.accelerator in reasons else node for node in inventory.nodes)
    return replace(inventory, nodes=used), tuple(LeftOut(*pair) for pair in reasons.items())


def refuse_unknown_gpus(inventory: Inventory) -> None:
    """Refuse GPUs that nobody could describe: what fits them is not known.

    Raises:
        InfeasiblePlanError: a node offers such devices.
    """
    for node in inventory.nodes:
        if node.unknown_gpus:
            raise InfeasiblePlanError(
                f"{node.node_id or 'A node'} offers {node.unknown_gpus} GPUs of unknown kind and memory: its "
                "nvidia-smi does not list them.",
                "Install nvidia-smi there, or set cluster.limits.GPU: 0 to compute on CPUs.",
            )


def nodes_by_kind(inventory: Inventory) -> dict[str, list[Node]]:
    """Return the nodes with GPUs by kind, the strongest kind first."""
    found: dict[str, list[Node]] = {}
    for node in inventory.nodes:
        if node.gpus:
            found.setdefault(node.accelerator, []).append(node)
    return dict(sorted(found.items(), key=lambda pair: (_strength(pair[1]), pair[0]), reverse=True))


def plan_pools(
    inventory: Inventory,
    left_out: Sequence[LeftOut],
    actors: Decision[int],
    *,
    cpus_per_actor: float,
    memory_per_actor: int,
    uses_gpus: bool,
    most: int | None,
) -> tuple[Pool, ...]:
    """Spread the actors over the kinds of places, the strongest GPUs first.

    Args:
        inventory: what answers, without the GPUs that are left out.
        left_out: the kinds of GPU that do not answer.
        actors: all of them.
        cpus_per_actor: what each reserves where it has no GPU; with one, no more than its share of the node.
        memory_per_actor: what each reserves where it has no GPU, in bytes; 0 reserves nothing.
        uses_gpus: whether each actor holds a GPU.
        most: what all pools together may grow to, None where only the places limit them.
    """
    if not uses_gpus:
        selector, fallback = _prefer_spot({}, inventory.nodes)
        bound = _bound(actors.value, most, inventory.limits.get(CPU), cpus_per_actor)
        return (Pool(CPU, actors, bound, cpus_per_actor, 0, memory_per_actor, selector, fallback),)
    kinds = nodes_by_kind(inventory)
    is_only = len(kinds) + len(left_out) == 1
    counts = _spread(actors.value, {name: sum(len(node.gpus) for node in nodes) for name, nodes in kinds.items()})
    limit = inventory.limits.get("GPU")
    pools = []
    for name, count in counts.items():
        nodes = kinds[name]
        share = min(min(1.0, int(1000 * node.cpus / len(node.gpus)) / 1000) for node in nodes)
        selector, fallback = _prefer_spot({} if is_only else node_selector(name, nodes), nodes)
        reason = actors.reason if is_only else f"{actors.reason}; of these {name}: {count}"
        bound = count if limit is not None and len(counts) > 1 else _bound(count, most, limit, 1)
        pools.append(Pool(name, Decision(count, reason), bound, share, 1, 0, selector, fallback))
    return tuple(pools)


def count_places(pool: Pool, offers: Iterable[Offer]) -> int:
    """Return how many of a pool's actors the living nodes could hold, if nothing else ran on them."""
    widest = pool.fallback[-1] if pool.fallback else pool.selector
    needs = {CPU: pool.cpus_per_actor, "GPU": float(pool.gpus_per_actor), "memory": float(pool.memory_per_actor)}
    needs = {name: amount for name, amount in needs.items() if amount}
    matching = [offer for offer in offers if _matches(widest, offer.labels)]
    if not needs:
        return pool.actors.value if matching else 0
    return sum(_places_of(offer, needs) for offer in matching)


def _strength(nodes: Sequence[Node]) -> tuple[float, int]:
    gpus = [gpu for node in nodes for gpu in node.gpus]
    return min(gpu.capability for gpu in gpus), min(gpu.memory_bytes for gpu in gpus)


def _shortcoming(nodes: Sequence[Node], demand: Demand) -> str:
    """Return why GPUs of a kind cannot do what is demanded; empty if they can."""
    capability, memory = _strength(nodes)
    for wanted in (demand.dtype, demand.quantization):
        if wanted is not None and capability < LEAST_CAPABILITY[wanted]:
            return (
                f"its compute capability is {capability:g}, and {wanted}, {demand.origin}, needs "
                f"{LEAST_CAPABILITY[wanted]:g}"
            )
    if demand.weight_bytes is None or demand.quantization is None or demand.dtype is None:
        return ""
    share = WEIGHT_SHARES[demand.dtype if demand.quantization == "none" else demand.quantization]
    need = int(share * demand.weight_bytes) + (demand.cache_bytes or 0)
    if need > GPU_USABLE_SHARE * memory:
        return f"it has {memory / GIB:.1f} GiB, and weights and cache, {demand.origin}, take {need / GIB:.1f} GiB"
    return ""


def _spread(total: int, places: Mapping[str, int]) -> dict[str, int]:
    """Return how many of the actors each kind gets; what exceeds all places waits for more of the first kind."""
    counts, left = {}, total
    for name, count in places.items():
        counts[name] = min(left, count)
        left -= counts[name]
    first = next(iter(places))
    counts[first] += left
    return {name: count for name, count in counts.items() if count}


def _bound(count: int, most: int | None, limit: float | None, each: float) -> int | None:
    bounds = [bound for bound in (most, None if limit is None or not each else int(limit / each)) if bound is not None]
    return max(count, min(bounds)) if bounds else None


def node_selector(name: str, nodes: Sequence[Node]) -> dict[str, str]:
    """Return the labels that choose a kind of GPU: Ray's own where every node has it, else the nodes by id."""
    if all(node.labels.get(ACCELERATOR) == name for node in nodes):
        return {ACCELERATOR: name}
    ids = [node.node_id for node in nodes if node.node_id]
    return {NODE_ID: f"in({','.join(ids)})"} if ids else {}


def _prefer_spot(
    base: Mapping[str, str], nodes: Sequence[Node]
) -> tuple[Mapping[str, str], tuple[Mapping[str, str], ...]]:
    """Return selectors that take spot nodes first where there are both spot nodes and others."""
    is_spot = [node.labels.get(MARKET) == SPOT for node in nodes]
    if all(is_spot) or not any(is_spot):
        return base, ()
    return {**base, MARKET: SPOT}, (base,)


def _places_of(offer: Offer, needs: Mapping[str, float]) -> int:
    # A thousandth more, because Ray counts in ten-thousandths and shares of a CPU are rounded.
    return int(min((offer.resources.get(name, 0.0) + 1e-3) / amount for name, amount in needs.items()))


def _matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node has the labels, in the two forms that are written here: a value, or `in(…)`."""
    for key, wanted in selector.items():
        allowed = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
        if labels.get(key) not in allowed:
            return False
    return True
