"""Run: pytest tests/metrics/test_rouge.py. Oracle: rouge-score's own scorer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from polypersona.metrics.base import Pair
from polypersona.metrics.rouge import Rouge, lcs_length, rouge
from polypersona.records import Item

TEXT = st.lists(st.sampled_from(["I", "walk", "my", "dog", "every", "day.", "–", "é", "3", "Dog"]), max_size=16)
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"])


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
def test_every_kind_equals_the_package_exactly(left, right):
    text, reference = " ".join(left), " ".join(right)
    expected = SCORER.score(reference, text)
    for kind in ("1", "2", "L"):
        assert rouge(kind, text, reference) == expected[f"rouge{kind}"].fmeasure


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [("abcbdab", "bdcaba", 4), ("", "abc", 0), ("abc", "abc", 3), ("abc", "xyz", 0), ("a" * 200, "ba" * 150, 150)],
)
def test_the_longest_common_subsequence_has_the_textbook_length(left, right, expected):
    # Row 1: Cormen et al., Introduction to Algorithms, section 15.4.
    assert lcs_length(left, right) == expected


def test_the_mean_is_over_defined_pairs():
    item = Item("lifestyle.open.01", "lifestyle", "Stem?", "open")
    rows = Rouge("1").measure([Pair(item, "a b", reference="a c"), Pair(item, "a b", reference="a b"), Pair(item, "a")])
    total = rows.sum(axis=0, keepdims=True)
    assert total[0, 0] == 2
    assert Rouge("1").score(total)[0] == pytest.approx(0.75)
