"""How adapters are tuned: inventory + recipe → workers, batch, precision, memory. Pure: no clock, no Ray, no file.

`workers` × `micro_batch` × `accumulation` is the recipe's global batch, whatever the hardware; so the plan decides how
fast an adapter is made, and the recipe which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.recipe_sections import QUESTIONS_PER_ROW, finetune_settings
from polypersona.scheduling.fitting import ON_CPU, ON_GPU, Choice, Layout, fitting_choice, least_choice
from polypersona.scheduling.machines import GIB, Decision, Inventory
from polypersona.scheduling.memory import TrainSetup, train_memory
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.places import TrainingPlace, choose_place, largest_divisor
from polypersona.scheduling.precision import LEAST_CAPABILITY, refuse_without_cpu, training_dtype

MAX_THREADS = 8
# Rows a user may shorten to before a plan is called infeasible.
SHORTER_ROWS = (512, 256, 128)
# What a chat template may put around a message.
TEMPLATE_TOKENS = 32
# Why a precision is what it is where the run has settled it.
FROZEN = "frozen at the run's first start"


@dataclass(frozen=True, slots=True)
class RowSizes:
    """The longest row of a dataset, and its longest answer, in tokens or a bound of them."""

    tokens: int
    answer_tokens: int

    @staticmethod
    def bound(conversations: Iterable[Sequence[Mapping[str, str]]]) -> RowSizes:
        """Return what conversations in the form of ChatML cannot exceed: a token covers a byte of UTF-8 at least."""
        tokens, answer = 0, 0
        for messages in conversations:
            sizes = [len(message["content"].encode()) + TEMPLATE_TOKENS for message in messages]
            tokens, answer = max(tokens, sum(sizes)), max(answer, sizes[-1])
        return RowSizes(tokens, answer)


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How an adapter is tuned.

    Attributes:
        workers: processes that share each step's examples.
        least_workers: with how few of them a training may go on where nodes leave; the same number is not elastic.
        gpus_per_worker: whole ones, or none.
        cpus_per_worker: Ray's reservation.
        threads: of a worker's process.
        micro_batch: examples of one forward and backward of one worker.
        accumulation: forwards and backwards of a worker before a step of the optimiser.
        dtype: fp32, bf16 or fp16.
        quantization: none, int8 or nf4.
        checkpointing: whether activations are computed again in the backward instead of being kept.
        optimizer: adamw_torch or paged_adamw_8bit.
        attention: eager or sdpa.
        keeps_freed: whether a worker on a CPU keeps the memory of freed tensors, which is faster and takes more.
        memory_bytes: what a worker is expected to hold at most, of its GPU or of the node; None where the model's
            shape is not known.
        selector: Ray's labels of the nodes that workers run on; empty for any.
    """

    workers: Decision[int]
    least_workers: Decision[int]
    gpus_per_worker: int
    cpus_per_worker: float
    threads: Decision[int]
    micro_batch: Decision[int]
    accumulation: Decision[int]
    dtype: Decision[str]
    quantization: Decision[str]
    checkpointing: Decision[bool]
    optimizer: Decision[str]
    attention: Decision[str]
    keeps_freed: Decision[bool]
    memory_bytes: int | None = None
    selector: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def plan_training(
    recipe: Recipe,
    inventory: Inventory,
    *,
    shape: ModelShape | None = None,
    rows: RowSizes | None = None,
    most_micro_batch: int | None = None,
    frozen: Mapping[str, str] | None = None,
) -> TrainPlan:
    """Decide how the recipe's adapter is tuned.

    Without a shape nothing is known of memory, and micro-batch and quantisation are the recipe's own.

    Args:
        recipe: what is asked for.
        inventory: what there is, limits already applied.
        shape: the base model's; None where it is not known.
        rows: how long the rows are; None for as long as finetune.max_length allows.
        most_micro_batch: the largest micro-batch that this hardware is known to hold; None where nothing is known.
        frozen: `model.dtype` and `model.quantization` as the run's first start has decided them; None before that.

    Raises:
        InfeasiblePlanError: the workers asked for do not divide the global batch or are not there, or memory is short;
            the message names the shortest resource, the hint the nearest plan that fits.
    """
    refuse_without_cpu(inventory)
    settings = finetune_settings(recipe.finetune)
    place = choose_place(recipe.finetune.workers, inventory, settings.global_batch, recipe.cluster.memory_gb)
    share = settings.global_batch // place.workers.value
    dtype = _choose_dtype(recipe, place, shape, frozen)
    longest = settings.max_length * _questions_per_row(recipe)
    setup = TrainSetup(
        micro_batch=largest_divisor(share, settings.batch_size),
        tokens=min(longest, rows.tokens if rows else longest),
        answer_tokens=min(longest, rows.answer_tokens if rows else longest),
        dtype=dtype.value,
        quantization=_asked_quantization(recipe, frozen) or "none",
        is_checkpointed=False,
        optimizer="paged_adamw_8bit" if place.is_on_gpu else "adamw_torch",
        attention="sdpa" if place.is_on_gpu else "eager",
        is_on_gpu=place.is_on_gpu,
        rank=settings.rank,
        dropout=settings.dropout,
        keeps_freed=not place.is_on_gpu,
    )
    # What the recipe alone would give: a quantised base on a GPU is checkpointed.
    setup = replace(setup, is_checkpointed=place.is_on_gpu and setup.quantization != "none")
    known = _Known(recipe, place, share, setup, most_micro_batch, frozen)
    if shape is None:
        return known.plan(known.limited(setup), None, dtype)
    choice = known.choose(shape)
    return known.plan(choice.setup, choice, dtype)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is settled before memory is looked at."""

    recipe: Recipe
    place: TrainingPlace
    share: int
    setup: TrainSetup
    most: int | None
    frozen: Mapping[str, str] | None

    @property
    def is_fixed(self) -> bool:
        return self.recipe.cluster.policy == "fixed"

    def limited(self, setup: TrainSetup) -> TrainSetup:
        """Return the setup with no larger micro-batch than the hardware is known to hold."""
        if self.most is None:
            return setup
        return replace(setup, micro_batch=largest_divisor(self.share, min(setup.micro_batch, self.most)))

    def micro_batches(self) -> list[int]:
        """Return the micro-batches to choose from: on a CPU none above the recipe's, which pads least."""
        asked = finetune_settings(self.recipe.finetune).batch_size
        most = self.share if self.place.is_on_gpu else asked
        most = min(most, self.most) if self.most is not None else most
        return [size for size in range(1, max(1, most) + 1) if self.share % size == 0]

    def quantizations(self) -> tuple[str, ...]:
        asked = _asked_quantization(self.recipe, self.frozen)
        return (asked,) if asked else ("none", "nf4") if self.can_quantise() else ("none",)

    def can_quantise(self) -> bool:
        return not self.place.is_on_gpu or self.place.capability >= LEAST_CAPABILITY["nf4"]

    def layouts(self) -> tuple[Layout, ...]:
        return ON_GPU if self.place.is_on_gpu else ON_CPU

    def choose(self, shape: ModelShape) -> Choice:
        """Return how to train within the place's memory.

        Raises:
            InfeasiblePlanError: nothing fits.
        """
        room = self.place.room_bytes
        if self.is_fixed:
            setup = self.limited(self.setup)
            choice: Choice | None = Choice(setup, train_memory(shape, setup))
            if choice is not None and choice.memory.needed <= room:
                return choice
        else:
            choice = self.fitting(shape, self.setup, self.quantizations(), room)
            if choice is not None:
                return choice
        raise self.infeasible(shape)

    def fitting(self, shape: ModelShape, setup: TrainSetup, quantizations: Sequence[str], room: int) -> Choice | None:
        return fitting_choice(
            shape, setup, micro_batches=self.micro_batches(), quantizations=quantizations, layouts=self.layouts(),
            room=room,
        )  # fmt: skip

    def infeasible(self, shape: ModelShape) -> InfeasiblePlanError:
        """Return the error that names what is short and the nearest plan that fits."""
        if self.is_fixed:
            setup = self.limited(self.setup)
            least = Choice(setup, train_memory(shape, setup))
        else:
            least = least_choice(shape, self.setup, self.quantizations(), self.layouts())
        need, place = least.memory.needed / GIB, self.place
        ways = _ways_of(least.setup)
        return InfeasiblePlanError(
            f"No plan to train fits: memory is short. A worker needs {need:.1f} GiB ({ways}), and {place.name} offers "
            f"it {place.room_bytes / GIB:.1f} GiB.",
            self.nearest(shape, need),
        )

    def nearest(self, shape: ModelShape, need: float) -> str:
        """Return what to change, the smallest change first."""
        room = self.place.room_bytes
        both = tuple(dict.fromkeys((*self.quantizations(), "nf4"))) if self.can_quantise() else self.quantizations()
        if self.is_fixed and (choice := self.fitting(shape, self.setup, self.quantizations(), room)):
            return f"Set cluster.policy: adaptive, which would take {_ways_of(choice.setup)}."
        if choice := self.fitting(shape, self.setup, both, room):
            return f"Set model.quantization: {choice.setup.quantization}, with {_ways_of(choice.setup)}."
        for length in SHORTER_ROWS:
            tokens = length * _questions_per_row(self.recipe)
            shorter = replace(self.setup, tokens=tokens, answer_tokens=min(tokens, self.setup.answer_tokens))
            if tokens < self.setup.tokens and (choice := self.fitting(shape, shorter, both, room)):
                return (
                    f"Set finetune.max_length: {length} and model.quantization: {choice.setup.quantization}, with "
                    f"{_ways_of(choice.setup)}."
                )
        what = "GPUs" if self.place.is_on_gpu else "nodes"
        return f"Use {what} that leave {need:.1f} GiB to a worker, or a smaller model.base."

    def plan(self, setup: TrainSetup, choice: Choice | None, dtype: Decision[str]) -> TrainPlan:
        """Return the plan with its reasons."""
        place, share = self.place, self.share
        threads = _choose_threads(place)
        within = "" if choice is None else _within(choice, place)
        micro = setup.micro_batch
        return TrainPlan(
            workers=place.workers,
            least_workers=place.least_workers,
            gpus_per_worker=1 if place.is_on_gpu else 0,
            cpus_per_worker=float(threads.value),
            threads=threads,
            micro_batch=Decision(micro, self._reason_of(micro) + within),
            accumulation=Decision(share // micro, f"{share} examples a worker and step, {micro} at once"),
            dtype=dtype,
            quantization=self._quantization(setup, choice, within),
            checkpointing=Decision(setup.is_checkpointed, _reason_of_checkpointing(setup, choice)),
            optimizer=Decision(setup.optimizer, _reason_of_optimizer(place.is_on_gpu)),
            attention=Decision(setup.attention, _reason_of_attention(setup)),
            keeps_freed=Decision(setup.keeps_freed, _reason_of_keeping(setup)),
            memory_bytes=None if choice is None else choice.memory.needed,
            selector=place.selector,
        )

    def _reason_of(self, micro: int) -> str:
        asked = finetune_settings(self.recipe.finetune).batch_size
        if self.most is not None and micro < min(asked, self.share) and micro == largest_divisor(self.share, self.most):
            return f"this hardware is known to hold {self.most} examples at once, of finetune.batch_size {asked}"
        if micro == largest_divisor(self.share, asked):
            return f"finetune.batch_size {asked}, which divides a worker's {self.share}"
        return f"the largest part of a worker's {self.share} examples that fits"

    def _quantization(self, setup: TrainSetup, choice: Choice | None, within: str) -> Decision[str]:
        if self.recipe.model.quantization != "auto":
            return Decision(setup.quantization, "model.quantization in the recipe")
        if self.frozen is not None:
            return Decision(setup.quantization, FROZEN)
        if choice is None:
            reason = "the size of the weights is not known here" if self.place.is_on_gpu else "no GPU"
            return Decision("none", f"{reason}: 16 or 32 bits")
        if setup.quantization == "none":
            return Decision("none", f"the weights fit as they are{within}")
        return Decision(setup.quantization, f"the weights do not fit unquantised{within}")


def _questions_per_row(recipe: Recipe) -> int:
    return QUESTIONS_PER_ROW if finetune_settings(recipe.finetune).loss == "options" else 1


def _choose_dtype(
    recipe: Recipe, place: TrainingPlace, shape: ModelShape | None, frozen: Mapping[str, str] | None
) -> Decision[str]:
    if recipe.model.dtype != "auto":
        return Decision(recipe.model.dtype, "model.dtype in the recipe")
    if frozen is not None:
        return Decision(frozen["model.dtype"], FROZEN)
    return training_dtype(place.nodes, shape, uses_gpus=place.is_on_gpu)


def _asked_quantization(recipe: Recipe, frozen: Mapping[str, str] | None) -> str | None:
    if recipe.model.quantization != "auto":
        return recipe.model.quantization
    return None if frozen is None else frozen["model.quantization"]


def _choose_threads(place: TrainingPlace) -> Decision[int]:
    if place.is_on_gpu:
        return Decision(1, "the GPU computes")
    smallest, workers = int(min(node.cpus for node in place.nodes)), place.workers.value
    value = max(1, min(MAX_THREADS, smallest // workers))
    return Decision(value, f"{smallest} CPUs of the smallest node for {workers} workers, {MAX_THREADS} at most")


def _within(choice: Choice, place: TrainingPlace) -> str:
    need, room = choice.memory.needed / GIB, place.room_bytes / GIB
    return f": a worker needs {need:.1f} GiB and {place.name} offers it {room:.1f} GiB"


def _ways_of(setup: TrainSetup) -> str:
    words = [f"micro-batch {setup.micro_batch}", f"rows of {setup.tokens} tokens"]
    words += [setup.quantization] if setup.quantization != "none" else [setup.dtype]
    words += ["activations computed again"] if setup.is_checkpointed else []
    return ", ".join(words)


def _reason_of_checkpointing(setup: TrainSetup, choice: Choice | None) -> str:
    if setup.is_checkpointed:
        return "memory is what is short" if choice else "quantised weights on a GPU: memory is what is short"
    return "activations fit, and computing them again costs a third of a step"


def _reason_of_optimizer(is_on_gpu: bool) -> str:
    if is_on_gpu:
        return "a GPU: its state takes a quarter and may leave for the host's memory"
    return "no GPU: a quarter of the state would be saved at the price of quantising it"


def _reason_of_attention(setup: TrainSetup) -> str:
    if setup.is_on_gpu:
        return "a GPU has a fused kernel"
    if setup.attention == "sdpa":
        return "memory is short: the fused kernel keeps no attention weights"
    return "no GPU: the fused kernel's backward costs twice the plain products"


def _reason_of_keeping(setup: TrainSetup) -> str:
    if setup.is_on_gpu:
        return "a GPU's memory has its own allocator"
    if setup.keeps_freed:
        return "memory suffices: to give it back and ask for it again costs more than the arithmetic of small models"
    return "memory is short: what is freed is given back at once"
