"""Run: pytest tests/metrics/test_agreement.py. Kappa's oracle is the textbook definition over a confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.metrics.agreement import ExactAgreement, NearAgreement, QuadraticKappa, StanceAgreement, Validity
from polypersona.metrics.base import Agreement, Metric, Pair
from polypersona.records import Item

SCALE = ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree")
LIKERT = Item("finance.likert.01", "finance", "I save.", "likert", SCALE, construct="saving_habit")
REVERSED = Item("finance.likert.02", "finance", "I waste.", "likert", SCALE, construct="saving_habit", reverse=True)
YESNO = Item("finance.yesno.01", "finance", "Do you save?", "yesno", ("No", "Yes"), construct="saving_habit")
COLOURS = Item("x.single.01", "x", "Colour?", "single", ("Red", "Green", "Blue"), scale="nominal")
CODES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=30)


def coded(item: Item, code: int | None, expected: int | None) -> Pair:
    label = item.options[item.codes.index(code)] + "." if code else "Well."
    reference = item.options[item.codes.index(expected)] + "." if expected else None
    return Pair(item, label, code, "complete" if code else "invalid", reference, expected)


def score(metric: Metric, pairs: list[Pair]) -> float:
    return float(metric.score(metric.measure(pairs).sum(axis=0, keepdims=True))[0])


def kappa(pairs: list[tuple[int, int]], num_options: int) -> float:
    """Cohen 1968: 1 − Σ w·observed / Σ w·expected, w = (i − j)²."""
    observed = np.zeros((num_options, num_options))
    for left, right in pairs:
        observed[left - 1, right - 1] += 1 / len(pairs)
    weights = np.subtract.outer(np.arange(num_options), np.arange(num_options)) ** 2
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    return float(1 - (weights * observed).sum() / (weights * expected).sum())


@settings(max_examples=80, deadline=None)
@given(CODES)
def test_quadratic_kappa_of_one_item_is_cohens(codes):
    found = score(QuadraticKappa(), [coded(LIKERT, *pair) for pair in codes])
    if len({code for pair in codes for code in pair}) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(kappa(codes, 5), abs=1e-6)


def test_exact_and_near_agreement_count_options_apart():
    pairs = [coded(LIKERT, 1, 1), coded(LIKERT, 1, 2), coded(LIKERT, 1, 3), coded(LIKERT, 5, 4)]
    assert score(ExactAgreement(), pairs) == 0.25
    assert score(NearAgreement(), pairs) == 0.75


def test_within_one_point_is_undefined_for_two_options_and_for_nominal_ones():
    assert not NearAgreement().measure([coded(YESNO, 1, 2), coded(COLOURS, 1, 2)]).any()
    assert score(ExactAgreement(), [coded(YESNO, 1, 2), coded(COLOURS, 3, 3)]) == 0.5
    assert not QuadraticKappa().measure([coded(COLOURS, 1, 2)]).any()


def test_uncoded_answers_are_left_out_of_agreement_and_counted_by_validity():
    pairs = [coded(LIKERT, None, 3), coded(LIKERT, 3, 3), coded(LIKERT, 3, None)]
    assert ExactAgreement().measure(pairs)[:, 0].tolist() == [0, 1, 0]
    assert score(Validity(), pairs) == pytest.approx(2 / 3, abs=1e-8)
    assert not Validity().measure([Pair(LIKERT, "", disposition="not_asked")]).any()


def test_stance_agreement_turns_reversed_items_and_sees_the_neutral_point():
    assert score(StanceAgreement(), [coded(LIKERT, 4, 5)]) == 1
    assert score(StanceAgreement(), [coded(LIKERT, 3, 4)]) == 0
    assert score(StanceAgreement(), [coded(REVERSED, 1, 2), coded(REVERSED, 5, 2)]) == 0.5
    assert not StanceAgreement().measure([coded(COLOURS, 1, 1), coded(LIKERT, None, 1)]).any()


@pytest.mark.parametrize(
    ("metric", "pair", "expected"),
    [
        (ExactAgreement(), coded(LIKERT, 2, 1), 0.2),
        (ExactAgreement(), coded(YESNO, 2, 1), 0.5),
        (NearAgreement(), coded(LIKERT, 2, 1), 0.4),
        (NearAgreement(), coded(LIKERT, 2, 3), 0.6),
        (StanceAgreement(), coded(LIKERT, 2, 1), 0.4),
        (StanceAgreement(), coded(LIKERT, 2, 3), 0.2),
    ],
)
def test_chance_is_what_a_uniform_answer_scores(metric: Agreement, pair, expected):
    assert metric.score(metric.chance([pair]))[0] == pytest.approx(expected, abs=1e-8)


def test_a_uniform_answer_has_a_kappa_of_zero():
    pairs = [coded(LIKERT, 1, expected) for expected in (1, 2, 2, 5)]
    total = QuadraticKappa().chance(pairs).sum(axis=0, keepdims=True)
    assert QuadraticKappa().score(total)[0] == pytest.approx(0, abs=1e-7)
