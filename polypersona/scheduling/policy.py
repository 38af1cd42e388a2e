"""The policy: inventory + recipe → plan. Pure: no clock, no Ray, no file; every decision carries its reason.

`auto` values of the recipe are decided here and nowhere else. Those that decide content (precision, quantisation,
slots, threads) are frozen in run.json at the run's first start; the others may be decided anew at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.machines import GIB, Decision, Inventory
from polypersona.scheduling.pools import LeftOut, Pool, demand_of, leave_out, plan_pools

Value = TypeVar("Value")
MODEL_ENGINES = ("packed", "vllm")
CPU_SLOTS, GPU_SLOTS = 128, 128
# vLLM schedules requests itself; what it keeps of prompts on a CPU is given to it, or it would take most of the node.
VLLM_GPU_SLOTS, VLLM_CPU_CACHE_BYTES = 256, 4 * GIB
# An actor holds its weights once, and while it loads them a part of them twice; the rest is cache and the runtime.
ACTOR_MEMORY_FACTOR = 1.5
ACTOR_BASE_BYTES = GIB // 2
# Keys and values of a packed engine on a CPU at most; the engine takes fewer slots where longer prompts need more.
CPU_CACHE_BYTES, LEAST_CACHE_BYTES, CACHE_FACTOR = GIB, GIB // 4, 2
GPU_CACHE_SHARE = 0.25
# The share of a GPU's memory that weights may take, so that the cache of keys and values has room.
GPU_WEIGHT_SHARE = 0.6
NF4_SHARE_OF_BF16 = 0.3


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How the adapter would be tuned. `workers` × `batch_size` × `accumulation` is the recipe's global batch."""

    workers: Decision[int]
    gpus_per_worker: int
    cpus_per_worker: float
    batch_size: int
    accumulation: int


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run where."""

    inventory: Inventory
    train: TrainPlan
    generate: GeneratePlan
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def build_plan(
    recipe: Recipe, inventory: Inventory, num_shards: int | None = None, weight_bytes: int | None = None
) -> Plan:
    """Decide everything the recipe leaves to `auto`.

    Args:
        recipe: what is asked for.
        inventory: what there is, limits already applied.
        num_shards: how many shards are left to answer; None where that is not known yet.
        weight_bytes: size of the base model's weights in 16 bits; None where it is not known.

    Raises:
        InfeasiblePlanError: not even one actor or worker fits; the message names the shortest resource.
    """
    train = plan_training(recipe, inventory)
    return Plan(inventory, train, plan_generation(recipe, inventory, num_shards, weight_bytes))


def plan_training(recipe: Recipe, inventory: Inventory) -> TrainPlan:
    """Choose the training workers. The global batch is the recipe's, whatever their number."""
    _refuse_without_cpu(inventory)
    settings = finetune_settings(recipe.finetune)
    asked = recipe.finetune.workers
    num_gpus = len(inventory.gpus)
    if asked != "auto":
        workers = Decision(_divisor(settings.global_batch, asked), "finetune.workers in the recipe")
        if workers.value != asked:
            text = f"the recipe asks for {asked}, which does not divide the global batch of {settings.global_batch}"
            workers = Decision(workers.value, text)
    elif num_gpus:
        count = _divisor(settings.global_batch, num_gpus)
        workers = Decision(count, f"{num_gpus} GPUs, a whole one each; a global batch of {settings.global_batch}")
    else:
        workers = Decision(1, "no GPU: one process with several threads beats several processes on a machine")
    per_step = settings.global_batch // workers.value
    batch_size = _divisor(per_step, settings.batch_size)
    is_on_gpu = num_gpus >= workers.value
    return TrainPlan(
        workers=workers,
        gpus_per_worker=1 if is_on_gpu else 0,
        cpus_per_worker=1.0,
        batch_size=batch_size,
        accumulation=per_step // batch_size,
    )


def plan_generation(
    recipe: Recipe,
    inventory: Inventory,
    num_shards: int | None = None,
    weight_bytes: int | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> GeneratePlan:
    """Choose actors, precision, quantisation, slots and threads of generation.

    Args:
        recipe: what is asked for.
        inventory: what there is, limits already applied.
        num_shards: how many shards are left to answer; None where that is not known yet.
        weight_bytes: size of the base model's weights in 16 bits; None where it is not known.
        frozen: what the run's first start has decided and run.json holds; None before that.

    Raises:
        InfeasiblePlanError: not even one actor fits; the message names the shortest resource.
    """
    _refuse_without_cpu(inventory)
    uses_model = recipe.generate.engine in MODEL_ENGINES
    left_out: tuple[LeftOut, ...] = ()
    if uses_model:
        inventory, left_out = leave_out(inventory, demand_of(recipe, weight_bytes, frozen))
    actors = choose_actors(recipe, inventory, num_shards, weight_bytes)
    uses_gpus = uses_model and bool(inventory.gpus)
    cpus_per_actor = _cpus_per_actor(inventory, actors.value, is_alone=recipe.generate.engine == "vllm")
    pools = plan_pools(
        inventory,
        left_out,
        actors,
        cpus_per_actor=cpus_per_actor,
        memory_per_actor=_reserved_bytes(recipe, inventory, weight_bytes),
        uses_gpus=uses_gpus,
        most=_most_actors(recipe, actors, num_shards),
    )
    return GeneratePlan(
        actors=actors,
        cpus_per_actor=pools[0].cpus_per_actor,
        gpus_per_actor=pools[0].gpus_per_actor,
        dtype=_frozen_or("dtype", frozen, lambda: choose_dtype(recipe, inventory)),
        quantization=_frozen_or("quantization", frozen, lambda: choose_quantization(recipe, inventory, weight_bytes)),
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


def choose_dtype(recipe: Recipe, inventory: Inventory) -> Decision[str]:
    """Choose the precision of the weights: bf16 where every place that may hold them computes in it, else fp32."""
    if recipe.model.dtype != "auto":
        return Decision(recipe.model.dtype, "model.dtype in the recipe")
    if recipe.generate.engine not in MODEL_ENGINES:
        return Decision("fp32", f"the {recipe.generate.engine} engine holds no weights")
    if inventory.gpus:
        lowest = min(inventory.gpus, key=lambda gpu: gpu.capability)
        if lowest.capability >= 8:
            return Decision("bf16", f"every GPU has compute capability 8.0 or more (lowest: {lowest.name})")
        return Decision("fp32", f"{lowest.name} has compute capability {lowest.capability}, below 8.0")
    if all(node.has_cpu_bf16 for node in inventory.nodes):
        return Decision("bf16", "every CPU has bf16 instructions (avx512_bf16 or amx_bf16)")
    return Decision("fp32", "a CPU without bf16 instructions computes faster in fp32")


def choose_quantization(recipe: Recipe, inventory: Inventory, weight_bytes: int | None = None) -> Decision[str]:
    """Choose the quantisation: none unless a GPU is too small for the weights in 16 bits."""
    if recipe.model.quantization != "auto":
        return Decision(recipe.model.quantization, "model.quantization in the recipe")
    if recipe.generate.engine not in MODEL_ENGINES:
        return Decision("none", f"the {recipe.generate.engine} engine holds no weights")
    if not inventory.gpus:
        return Decision("none", "no GPU: 16 or 32 bits are faster on a CPU")
    if weight_bytes is None:
        return Decision("none", "the size of the weights is not known here")
    smallest = min(gpu.memory_bytes for gpu in inventory.gpus)
    room = GPU_WEIGHT_SHARE * smallest
    need = f"the weights take {weight_bytes / GIB:.1f} GiB in 16 bits, the smallest GPU has {smallest / GIB:.1f} GiB"
    if weight_bytes <= room:
        return Decision("none", need)
    if recipe.generate.engine == "vllm":
        raise InfeasiblePlanError(
            f"No plan fits: {need}, and the vllm engine does not quantise them.",
            f"Use GPUs of {weight_bytes / GPU_WEIGHT_SHARE / GIB:.0f} GiB, a model.base that is stored quantised, or "
            "generate.engine: packed.",
        )
    if weight_bytes * NF4_SHARE_OF_BF16 <= room:
        return Decision("nf4", need)
    raise InfeasiblePlanError(
        f"No plan fits: {need}, and nf4 would still take {weight_bytes * NF4_SHARE_OF_BF16 / GIB:.1f} GiB.",
        f"Use GPUs of {weight_bytes * NF4_SHARE_OF_BF16 / GPU_WEIGHT_SHARE / GIB:.0f} GiB or a smaller model.base.",
    )


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
    recipe: Recipe, inventory: Inventory, num_shards: int | None = None, weight_bytes: int | None = None
) -> Decision[int]:
    """Choose the size of the actor pool; never more actors than shards are left."""
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
    each = _actor_bytes(recipe, inventory, weight_bytes)
    if each is None:
        return _at_most(Decision(cpus, f"{cpus} CPUs, one actor each"), limit)
    fits = sum(int(min(node.cpus, node.memory_bytes // each)) for node in inventory.nodes)
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


def _reserved_bytes(recipe: Recipe, inventory: Inventory, weight_bytes: int | None) -> int:
    """Return the memory that Ray sets aside for an actor, so that nodes that join hold no more than fit."""
    if recipe.generate.actors != "auto":
        return 0  # the recipe's word stands, whatever the memory
    return _actor_bytes(recipe, inventory, weight_bytes) or 0


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


def _refuse_without_cpu(inventory: Inventory) -> None:
    if inventory.cpus <= 0:
        raise InfeasiblePlanError(
            f"{inventory.source} offers no CPU to this run.", "Raise cluster.limits.CPU to at least 1."
        )


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


def _divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is not above `at_most`."""
    return max(candidate for candidate in range(1, max(1, at_most) + 1) if number % candidate == 0)
