"""Sample order: complete, grouped by length, and the same for any number of workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.training.sampling import accumulation_of, epoch_order, num_steps, training_order

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 16), st.integers(0, 2**32))
def test_an_epoch_holds_every_example_and_only_whole_batches(lengths: list[int], batch: int, seed: int) -> None:
    order = epoch_order(lengths, batch, seed)
    assert set(order) == set(range(len(lengths)))
    assert len(order) == num_steps(len(lengths), batch, 1) * batch


@given(LENGTHS, st.integers(1, 16), st.integers(0, 2**32))
def test_the_first_batch_holds_the_longest_example(lengths: list[int], batch: int, seed: int) -> None:
    order = epoch_order(lengths, batch, seed)
    assert max(lengths[index] for index in order[:batch]) == max(lengths)


@given(LENGTHS, st.integers(1, 8), st.integers(0, 99), st.floats(0.1, 4))
def test_a_training_has_its_steps_and_repeats_with_its_seed(
    lengths: list[int], batch: int, seed: int, epochs: float
) -> None:
    order = training_order(lengths, batch, seed, epochs)
    assert len(order) == num_steps(len(lengths), batch, epochs) * batch
    assert order == training_order(lengths, batch, seed, epochs)


def test_grouping_by_length_saves_padding() -> None:
    lengths = [10 + 390 * (index % 2) for index in range(160)]
    order = epoch_order(lengths, 8, seed=1)
    batches = [[lengths[index] for index in order[at : at + 8]] for at in range(0, len(order), 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded <= 1.05 * sum(lengths)


def test_epochs_differ_and_seeds_differ() -> None:
    lengths = list(range(1, 65))
    order = training_order(lengths, 8, 7, 2)
    assert order[:64] != order[64:]
    assert order != training_order(lengths, 8, 8, 2)


# (global batch, workers, micro-batch) → accumulation; workers need not divide the batch
SHARES = [((16, 1, 4), 4), ((16, 2, 4), 2), ((16, 2, 8), 1), ((15, 5, 3), 1), ((16, 3, 4), 2), ((2, 4, 1), 1)]


@pytest.mark.parametrize(("asked", "expected"), SHARES)
def test_accumulation_follows_from_the_number_of_workers(asked: tuple[int, int, int], expected: int) -> None:
    assert accumulation_of(*asked) == expected
    batch, workers, _ = asked
    rows = list(range(batch))
    assert sorted(row for rank in range(workers) for row in rows[rank::workers]) == rows
