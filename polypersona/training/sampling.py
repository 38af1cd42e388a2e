"""Which example is seen when: a function of lengths, global batch, seed and epochs, whatever the number of workers.

Examples of like length share a batch, so that little is computed on padding. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from polypersona.records import seed_from

# Lengths are sorted within this many global batches, so that an epoch is still a shuffle.
POOL_BATCHES = 50


def num_steps(num_examples: int, global_batch: int, epochs: float) -> int:
    """Return the optimiser steps of a training; a started batch is a whole one."""
    return max(1, math.ceil(epochs * steps_per_epoch(num_examples, global_batch)))


def steps_per_epoch(num_examples: int, global_batch: int) -> int:
    """Return the optimiser steps of one pass over the examples."""
    return max(1, math.ceil(num_examples / global_batch))


def training_order(
    lengths: Sequence[int], global_batch: int, seed: int, epochs: float, weights: Sequence[float] | None = None
) -> list[int]:
    """Return the examples' indices for all steps of a training, `global_batch` a step.

    Each epoch holds every example once; its last batch is filled up with the epoch's own first examples. With sampling
    weights each epoch is drawn anew, as many examples as there are (`draw_epoch`). Drawing, and not a weight in the
    loss, lets every step learn from as much of the population, and spends nothing on examples that hardly count.
    """
    steps = num_steps(len(lengths), global_batch, epochs)
    order: list[int] = []
    epoch = 0
    while len(order) < steps * global_batch:
        order += epoch_order(lengths, global_batch, seed_from(seed, "order", epoch), weights)
        epoch += 1
    return order[: steps * global_batch]


def draw_epoch(weights: Sequence[float], shuffler: random.Random) -> list[int]:
    """Return as many indices as there are weights, drawn by them.

    By systematic sampling (Madow 1949): index i stands in it n·wᵢ/Σw times, rounded up or down, on average exactly.
    """
    order = list(range(len(weights)))
    shuffler.shuffle(order)
    step, place, at = sum(weights) / len(weights), shuffler.random(), 0.0
    drawn: list[int] = []
    for index in order:
        at += weights[index] / step
        while len(drawn) + place < at and len(drawn) < len(weights):
            drawn.append(index)
    shuffler.shuffle(drawn)
    return drawn


def epoch_order(
    lengths: Sequence[int], global_batch: int, seed: int, weights: Sequence[float] | None = None
) -> list[int]:
    """Return one epoch's indices: shuffled, grouped by length, batches shuffled, the batch with the longest first.

    The longest comes first so that a shortage of memory shows at once.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths))) if weights is None else draw_epoch(weights, shuffler)
    shuffler.shuffle(order)
    while len(order) % global_batch:
        order += order[: global_batch - len(order) % global_batch]
    pool = POOL_BATCHES * global_batch
    batches = []
    for begin in range(0, len(order), pool):
        grouped = sorted(order[begin : begin + pool], key=lambda index: lengths[index], reverse=True)
        batches += [grouped[at : at + global_batch] for at in range(0, len(grouped), global_batch)]
    shuffler.shuffle(batches)
    longest = max(range(len(batches)), key=lambda at: lengths[batches[at][0]])
    batches[0], batches[longest] = batches[longest], batches[0]
    return [index for batch in batches for index in batch]


def accumulation_of(global_batch: int, workers: int, micro_batch: int) -> int:
    """Return how many forwards a worker makes in a step; of the largest share where they differ by a row."""
    return math.ceil(math.ceil(global_batch / workers) / micro_batch)
