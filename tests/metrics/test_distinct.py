"""Run: pytest tests/metrics/test_distinct.py. Oracle: sets of tuples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.metrics.distinct import NUM_FOLDS, Distinct, fold_of

TEXTS = st.lists(
    st.tuples(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), st.integers(0, NUM_FOLDS - 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sampled_from([1, 2]), st.integers(0, 12))
def test_any_sharding_gives_the_same_set_and_the_textbook_ratio(rows, order, cut):
    metric = Distinct(order)
    texts, folds = [row[0] for row in rows], [row[1] for row in rows]
    whole = metric.collect(texts, folds)
    parts = metric.collect(texts[cut:], folds[cut:]).union(metric.collect(texts[:cut], folds[:cut]))
    for left, right in zip(
        (whole.hashes, whole.folds, whole.totals), (parts.hashes, parts.folds, parts.totals), strict=True
    ):
        assert np.array_equal(left, right)
        assert left.dtype == right.dtype
    words = [text.split() for text in texts]
    ngrams = [tuple(line[start : start + order]) for line in words for start in range(len(line) - order + 1)]
    if ngrams:
        assert metric.score(whole).score == pytest.approx(len(set(ngrams)) / len(ngrams))
    else:
        assert math.isnan(metric.score(whole).score)


def test_one_persona_alone_has_no_interval_and_many_have_one_around_the_score():
    metric = Distinct(1)
    alone = metric.score(metric.collect(["a b c", "a d"], [3, 3]))
    assert alone.score == pytest.approx(0.8)
    assert math.isnan(alone.low)
    texts = [f"common words and {index}" for index in range(300)]
    many = metric.score(metric.collect(texts, [fold_of(str(index)) for index in range(300)]))
    assert many.low <= many.score <= many.high
    assert many.high > many.low


def test_a_fold_depends_on_the_persona_alone():
    assert fold_of("p1") == fold_of("p1")
    assert len({fold_of(str(index)) for index in range(400)}) == NUM_FOLDS
