"""How cells are answered: inventory + recipe → actors, slots, threads, precision. Pure: no clock, no Ray, no file.

Those decisions that decide content (precision, quantisation, slots, threads) are frozen in run.json at the run's first
start; the others may be decided anew at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.scheduling.machines import GIB, Decision, Inventory
from polypersona.scheduling.memory import answer_memory
from polypersona.scheduling.memory import weight_bytes as bytes_of_weights
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.pools import LeftOut, Pool, demand_of, leave_out, plan_pools
from polypersona.scheduling.precision import MODEL_ENGINES, choose_dtype, choose_quantization, refuse_without_cpu

Value = TypeVar("Value")
CPU_SLOTS, GPU_SLOTS = 128, 128
# vLLM schedules requests itself; what it keeps of prompts on a CPU is given to it, or it would take most of the node.
VLLM_GPU_SLOTS, VLLM_CPU_CACHE_BYTES = 256, 4 * GIB
# An actor holds its weights once, and while it loads them a part of them twice; the rest is cache and the runtime.
ACTOR_MEMORY_FACTOR = 1.5
ACTOR_BASE_BYTES = GIB // 2
# Keys and values of a packed engine on a CPU at most; the engine takes fewer slots where longer prompts need more.
CPU_CACHE_BYTES, LEAST_CACHE_BYTES, CACHE_FACTOR = GIB, GIB // 4, 2
GPU_CACHE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class GeneratePlan:
    """How the cells would be answered. `cpus_per_actor` is Ray's reservation, not the number of threads.

    `actors` are those of all `pools`; `left_out` are the kinds of GPU that cannot honour what the run is frozen to.
    """

    actors: Decision[int]
    cpus_per_actor: float
    gpus_per_actor: int
    dtype: Decision[str]
    quantization: Decision[str]
    slots: Decision[int]
    cache_bytes: Decision[int]
    threads: Decision[int]
    pools: tuple[Pool, ...]
    left_out: tuple[LeftOut, ...] = ()


def plan_generation(
    recipe: Recipe,
    inventory: Inventory,
    num_shards: int | None = None,
    weight_bytes: int | None = None,
    frozen: Mapping[str, Any] | None = None,
    shape: ModelShape | None = None,
) -> GeneratePlan:
    """Choose actors, precision, quantisation, slots and threads of generation.

    Args:
        recipe: what is asked for.
        inventory: what there is, limits already applied.
        num_shards: how many shards are left to answer; None where that is not known yet.
        weight_bytes: size of the base model's weights in 16 bits; None where it is not known.
        frozen: what the run's first start has decided and run.json holds; None before that.
        shape: the base model's; None where it is not known, then an actor's memory is a multiple of its weights.

    Raises:
        InfeasiblePlanError: not even one actor fits; the message names the shortest resource.
    """
    refuse_without_cpu(inventory)
    uses_model = recipe.generate.engine in MODEL_ENGINES
    counted = None if shape is None or shape.is_stored_quantised else shape
    left_out: tuple[LeftOut, ...] = ()
    if uses_model:
        # A folder's files may hold more bits than 16.
        size = weight_bytes if counted is None else bytes_of_weights(counted, "bf16", "none")
        inventory, left_out = leave_out(inventory, demand_of(recipe, size, frozen))
    dtype = _frozen_or("dtype", frozen, lambda: choose_dtype(recipe, inventory))
    quantization = _frozen_or(
        "quantization", frozen, lambda: choose_quantization(recipe, inventory, weight_bytes, counted, dtype.value)
    )
    each = _actor_bytes(recipe, inventory, weight_bytes)
    if each is not None and counted is not None:
        each = _needed(recipe, inventory, counted, dtype.value, quantization.value, weight_bytes)
    actors = choose_actors(recipe, inventory, num_shards, weight_bytes, each)
    uses_gpus = uses_model and bool(inventory.gpus)
    cpus_per_actor = _cpus_per_actor(inventory, actors.value, is_alone=recipe.generate.engine == "vllm")
    pools = plan_pools(
        inventory,
        left_out,
        actors,
        cpus_per_actor=cpus_per_actor,
        memory_per_actor=each if each is not None and recipe.generate.actors == "auto" else 0,
        uses_gpus=uses_gpus,
        most=_most_actors(recipe, actors, num_shards),
    )
    return GeneratePlan(
        actors=actors,
        cpus_per_actor=pools[0].cpus_per_actor,
        gpus_per_actor=pools[0].gpus_per_actor,
        dtype=dtype,
        quantization=quantization,
        slots=_frozen_or("slots", frozen, lambda: choose_slots(recipe, inventory)),
        cache_bytes=_frozen_or("cache_bytes", frozen, lambda: choose_cache(recipe, inventory, weight_bytes)),
        threads=_frozen_or("threads", frozen, lambda: choose_threads(recipe)),
        pools=pools,
        left_out=left_out,
    )


def freeze_plan(recipe: Recipe, plan: GeneratePlan) -> dict[str, Any]:
    """Return the values that decide content, as a run's first start freezes them in run.json."""
    return {
        "engine": recipe.generate.engine,
        "dtype": plan.dtype.value,
        "quantization": plan.quantization.value,
        "slots": plan.slots.value,
        "cache_bytes": plan.cache_bytes.value,
        "threads": plan.threads.value,
        "shard_personas": recipe.generate.shard_personas,
    }


def choose_slots(recipe: Recipe, inventory: Inventory) -> Decision[int]:
    """Choose how many cells an actor has in flight."""
    if recipe.generate.engine == "endpoint":
        return Decision(recipe.generate.endpoint.concurrency, "generate.endpoint.concurrency: requests in flight")
    if recipe.generate.slots != "auto":
        return Decision(recipe.generate.slots, "generate.slots in the recipe")
    if inventory.gpus and recipe.generate.engine == "vllm":
        return Decision(VLLM_GPU_SLOTS, "a GPU: as many requests as vLLM may run together")
    if inventory.gpus and recipe.generate.engine in MODEL_ENGINES:
        return Decision(GPU_SLOTS, "a GPU")
    return Decision(CPU_SLOTS, "a CPU: more cells in flight gain little")


def choose_cache(recipe: Recipe, inventory: Inventory, weight_bytes: int | None = None) -> Decision[int]:
    """Choose the bytes that an actor's keys and values may take; 0 where the engine decides itself."""
    if recipe.generate.engine != "packed":
        return Decision(0, f"the {recipe.generate.engine} engine keeps none, or decides itself")
    if inventory.gpus:
        smallest = min(gpu.memory_bytes for gpu in inventory.gpus)
        return Decision(int(GPU_CACHE_SHARE * smallest), f"{GPU_CACHE_SHARE:.0%} of the smallest GPU")
    asked = CPU_CACHE_BYTES if weight_bytes is None else max(LEAST_CACHE_BYTES, CACHE_FACTOR * weight_bytes)
    return Decision(min(CPU_CACHE_BYTES, asked), "a CPU: slots are left out where longer prompts would need more")


def choose_threads(recipe: Recipe) -> Decision[int]:
    """Choose the threads of an actor's own process."""
    if recipe.generate.engine == "vllm":
        return Decision(1, "one for the actor; vLLM's own process takes what it needs")
    return Decision(1, "one thread an actor: two processes of one thread outrun one of two")


def choose_actors(
    recipe: Recipe,
    inventory: Inventory,
    num_shards: int | None = None,
    weight_bytes: int | None = None,
    each: int | None = None,
) -> Decision[int]:
    """Choose the size of the actor pool; never more actors than shards are left.

    Raises:
        InfeasiblePlanError: an actor needs `each` bytes, and no node has them.
    """
    limit = max(1, num_shards) if num_shards is not None else None
    if recipe.generate.engine == "endpoint":
        endpoint = recipe.generate.endpoint
        pace = "" if endpoint.requests_per_minute is None else f", {endpoint.requests_per_minute:g} a minute at most"
        flight = f"one actor keeps {endpoint.concurrency} requests in flight{pace}"
        return Decision(1, f"{endpoint.model} at {endpoint.url} answers: {flight}")
    if recipe.generate.engine == "vllm":
        return _at_most(_choose_vllm_actors(recipe, inventory, weight_bytes), limit)
    if recipe.generate.actors != "auto":
        return _at_most(Decision(recipe.generate.actors, "generate.actors in the recipe"), limit)
    if recipe.generate.engine in MODEL_ENGINES and inventory.gpus:
        return _at_most(Decision(len(inventory.gpus), f"{len(inventory.gpus)} GPUs, one actor each"), limit)
    cpus = max(1, int(inventory.cpus))
    if each is None:
        return _at_most(Decision(cpus, f"{cpus} CPUs, one actor each"), limit)
    fits = sum(int(min(node.cpus, node.memory_bytes // each)) for node in inventory.nodes)
    most = recipe.cluster.memory_gb
    if most is not None and each > most * GIB:
        raise InfeasiblePlanError(
            f"No plan fits: memory is short. An actor needs {each / GIB:.1f} GiB, cluster.memory_gb is {most:g}.",
            "Raise cluster.memory_gb, use a smaller model.base or model.quantization: nf4.",
        )
    if fits < 1:
        raise _memory_is_short(inventory, each)
    if fits < cpus:
        return _at_most(Decision(fits, f"memory: an actor needs {each / GIB:.1f} GiB"), limit)
    return _at_most(Decision(cpus, f"{cpus} CPUs, one actor each"), limit)


def _choose_vllm_actors(recipe: Recipe, inventory: Inventory, weight_bytes: int | None) -> Decision[int]:
    """Choose one vLLM a GPU, or one a node: its CPU build takes all cores. The reason says which build it needs."""
    asked = recipe.generate.actors
    if count := len(inventory.gpus):
        needs = f"{count} GPUs, one vLLM each (the extra polypersona[vllm] on every node)"
        most = count
    else:
        each = ACTOR_BASE_BYTES + VLLM_CPU_CACHE_BYTES + int(ACTOR_MEMORY_FACTOR * (weight_bytes or 0))
        most = sum(node.memory_bytes >= each and node.cpus >= 1 for node in inventory.nodes)
        if not most:
            raise _memory_is_short(inventory, each)
        needs = "no GPU: one vLLM a node, on all its cores; this needs vLLM's CPU build in place of the extra's"
    if asked == "auto":
        return Decision(most, needs)
    return Decision(min(asked, most), f"generate.actors in the recipe ({asked}); {needs}")


def _memory_is_short(inventory: Inventory, each: int) -> InfeasiblePlanError:
    largest = max(node.memory_bytes for node in inventory.nodes)
    return InfeasiblePlanError(
        f"No plan fits: memory is short. An actor needs {each / GIB:.1f} GiB, the largest node has "
        f"{largest / GIB:.1f} GiB.",
        "Use a smaller model.base or a larger node.",
    )


def _actor_bytes(recipe: Recipe, inventory: Inventory, weight_bytes: int | None) -> int | None:
    """Return the memory of a packed engine's actor on a CPU; None where there is none, or where it is not known."""
    if recipe.generate.engine != "packed" or weight_bytes is None or inventory.gpus:
        return None
    cache = choose_cache(recipe, inventory, weight_bytes).value
    return ACTOR_BASE_BYTES + cache + int(ACTOR_MEMORY_FACTOR * weight_bytes)


def _needed(
    recipe: Recipe,
    inventory: Inventory,
    shape: ModelShape,
    dtype: str,
    quantization: str,
    weight_bytes: int | None,
) -> int:
    """Return the memory of a packed engine's actor on a CPU, from the model's shape."""
    return answer_memory(
        shape,
        dtype=dtype,
        quantization=quantization,
        cache_bytes=choose_cache(recipe, inventory, weight_bytes).value,
        slots=choose_slots(recipe, inventory).value,
        is_on_gpu=False,
    ).needed


def _most_actors(recipe: Recipe, actors: Decision[int], num_shards: int | None) -> int | None:
    """Return what the pools may grow to when nodes join; None where only the places limit them."""
    if recipe.generate.actors != "auto" or recipe.generate.engine == "endpoint":
        return actors.value
    return num_shards


def _frozen_or(name: str, frozen: Mapping[str, Any] | None, decide: Callable[[], Decision[Value]]) -> Decision[Value]:
    """Return what the first start has frozen; what it did not know is decided."""
    if frozen is not None and name in frozen:
        return Decision(frozen[name], "frozen at the run's first start")
    return decide()


def _at_most(actors: Decision[int], limit: int | None) -> Decision[int]:
    if limit is None or actors.value <= limit:
        return actors
    return Decision(limit, f"{limit} shards are left to answer")


def _cpus_per_actor(inventory: Inventory, actors: int, *, is_alone: bool = False) -> float:
    """Return Ray's reservation for an actor without GPU: a whole CPU, or its share where more actors are asked for.

    An actor that is to be alone on a node without GPU reserves all but one of the smallest node's CPUs.
    """
    if is_alone and not inventory.gpus:
        return float(max(0, int(min(node.cpus for node in inventory.nodes)) - 1))
    places = sum(int(node.cpus) for node in inventory.nodes)
    return 1.0 if actors <= places else int(1000 * inventory.cpus / actors) / 1000
