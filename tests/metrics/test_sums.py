"""Run: pytest tests/metrics/test_sums.py."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.metrics.base import SCALE, mean_rows, mean_score
from polypersona.metrics.sums import MAX_ITEM_REPLICATES, Sums, exact_matmul, group_labels, persona_weights

ROWS = st.lists(
    st.tuples(st.floats(-1, 1), st.sampled_from("pqrs"), st.sampled_from("xy"), st.integers(0, 3)),
    min_size=1,
    max_size=24,
)


def add(sums: Sums, rows: list[tuple[float, str, str, int]]) -> Sums:
    if rows:
        labels = group_labels((row[2] for row in rows), ("open" for _ in rows), (f"i{row[2]}" for row in rows))
        sums.add(mean_rows([row[0] for row in rows]), [row[1] for row in rows], labels)
    return sums


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_sharding_and_any_order_gives_the_same_bytes(rows):
    whole = add(Sums(7, 50), rows)
    merged = Sums(7, 50)
    for shard in (2, 0, 3, 1):
        merged.merge(add(Sums(7, 50), [row for row in rows if row[3] == shard]))
    assert {key: totals.tobytes() for key, totals in whole.groups.items()} == {
        key: totals.tobytes() for key, totals in merged.groups.items()
    }
    assert whole.spans == merged.spans


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-(2**45), 2**45), min_size=3, max_size=3), min_size=1, max_size=9), st.integers(0, 99)
)
def test_the_fast_product_of_integers_is_exact(sums, seed):
    matrix = np.array(sums, dtype=np.int64)
    weights = np.random.default_rng(seed).poisson(1, (20, len(sums))).astype(np.int64)
    assert np.array_equal(exact_matmul(weights, matrix), weights @ matrix)


def test_weights_are_poisson_and_belong_to_the_persona_and_the_seed():
    weights = persona_weights(7, "p1", 20_000)
    assert weights[0] == 1
    assert abs(weights[1:].mean() - 1) < 0.03
    assert abs(weights[1:].var() - 1) < 0.05
    assert np.array_equal(weights, persona_weights(7, "p1", 20_000))
    assert not np.array_equal(weights, persona_weights(7, "p2", 20_000))
    assert not np.array_equal(weights, persona_weights(8, "p1", 20_000))


def test_replicates_resample_personas_and_not_rows():
    # 40 personas, of which half answer 1 ten times and half 0: the standard error is that of 40 draws, 0.079.
    rows = [(float(index % 2), f"p{index}", "x", 0) for index in range(40) for _ in range(10)]
    sums = add(Sums(7, 2000), rows)
    replicates = mean_score(sums.groups["overall", "all"])[1:]
    assert 0.07 < replicates.std() < 0.09


def test_row_zero_is_the_plain_sum_and_items_have_fewer_replicates():
    sums = add(Sums(7, 500), [(0.5, "p", "x", 0), (0.25, "q", "x", 0)])
    assert sums.groups["overall", "all"][0].tolist() == [2, SCALE * 3 // 4]
    assert len(sums.groups["overall", "all"]) == 501
    assert len(sums.groups["item", "ix"]) == MAX_ITEM_REPLICATES + 1


def test_one_persona_or_no_replicate_gives_no_interval():
    assert not add(Sums(7, 50), [(0.5, "p", "x", 0), (0.2, "p", "x", 0)]).has_interval(("overall", "all"))
    assert not add(Sums(7, 0), [(0.5, "p", "x", 0), (0.2, "q", "x", 0)]).has_interval(("overall", "all"))
    assert add(Sums(7, 50), [(0.5, "p", "x", 0), (0.2, "q", "x", 0)]).has_interval(("overall", "all"))
