"""Which way of training fits a device, and the fastest of those: quantisation, checkpointing, attention, micro-batch.

Pure. A way is a `memory.TrainSetup`; what it takes comes from `memory.train_memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from polypersona.scheduling.memory import Memory, TrainSetup, train_memory
from polypersona.scheduling.model_shape import ModelShape

# Tokens of one forward from which a GPU is busy; below them, computing activations again buys larger products.
BUSY_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Layout:
    """What of a training may change without changing what is trained, beside the micro-batch."""

    is_checkpointed: bool
    attention: str
    keeps_freed: bool = False

    def apply(self, setup: TrainSetup, quantization: str) -> TrainSetup:
        """Return the setup in this layout."""
        return replace(
            setup,
            quantization=quantization,
            is_checkpointed=self.is_checkpointed,
            attention=self.attention,
            keeps_freed=self.keeps_freed,
        )


ON_GPU = (Layout(False, "sdpa"), Layout(True, "sdpa"))
ON_CPU = (
    Layout(False, "eager", keeps_freed=True),
    Layout(False, "eager"),
    Layout(False, "sdpa"),
    Layout(True, "eager"),
    Layout(True, "sdpa"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A way of training and what it takes."""

    setup: TrainSetup
    memory: Memory


def fitting_choice(
    shape: ModelShape,
    base: TrainSetup,
    *,
    micro_batches: Sequence[int],
    quantizations: Sequence[str],
    layouts: Sequence[Layout],
    room: int,
) -> Choice | None:
    """Return the fastest way that fits, or None.

    Quantisation changes the adapter, so the first one that fits is taken. Among layouts the
    first is taken that fits with enough tokens to keep the device busy, else the one with the largest micro-batch.

    Args:
        shape: the model's.
        base: what is settled already.
        micro_batches: which are allowed.
        quantizations: which are allowed, the preferred first.
        layouts: which are allowed, the fastest first.
        room: bytes that a worker may hold.
    """
    enough = BUSY_TOKENS if base.is_on_gpu else 0
    for quantization in quantizations:
        found = []
        for layout in layouts:
            setup = layout.apply(base, quantization)
            choice = _largest(shape, setup, micro_batches, room)
            if choice is None:
                continue
            if choice.setup.micro_batch * setup.tokens >= enough:
                return choice
            found.append(choice)
        if found:
            return max(found, key=lambda choice: choice.setup.micro_batch)
    return None


def least_choice(
    shape: ModelShape, base: TrainSetup, quantizations: Sequence[str], layouts: Sequence[Layout]
) -> Choice:
    """Return the way that needs the least memory, with a micro-batch of one."""
    return min(_ways(shape, base, quantizations, layouts), key=lambda choice: choice.memory.needed)


def _largest(shape: ModelShape, setup: TrainSetup, micro_batches: Sequence[int], room: int) -> Choice | None:
    for micro in sorted(micro_batches, reverse=True):
        tried = replace(setup, micro_batch=micro)
        memory = train_memory(shape, tried)
        if memory.needed <= room:
            return Choice(tried, memory)
    return None


def _ways(
    shape: ModelShape, base: TrainSetup, quantizations: Sequence[str], layouts: Sequence[Layout]
) -> Iterator[Choice]:
    for quantization in quantizations:
        for layout in layouts:
            setup = replace(layout.apply(base, quantization), micro_batch=1)
            yield Choice(setup, train_memory(shape, setup))
