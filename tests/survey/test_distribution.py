"""Golden tables and properties of the measures between two distributions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.survey.distribution import (
    METRICS,
    effective_human_n,
    entropy,
    eta_squared,
    js_distance,
    js_divergence,
    ks_similarity,
    mean_difference,
    mean_ranks,
    nominal_eta_squared,
    nominal_variance_ratio,
    rank_correlation,
    total_variation,
    variance_ratio,
    w1_alignment,
)

VALUES = np.array([1.0, 2.0, 3.0, 4.0])
P, Q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
# By scipy 1.17: wasserstein_distance(v, v, p, q) = 1.0; distance.jensenshannon(p, q, base=2) = 0.30302;
# spearmanr(p, q) = -1; entropy(p, base=2) = 1.84644; the others by hand.
GOLDEN = [
    (w1_alignment, P, Q, 1 - 1.0 / 3),
    (total_variation, P, Q, 0.4),
    (ks_similarity, P, Q, 0.6),
    (rank_correlation, P, Q, -1.0),
    (mean_difference, P, Q, 1.0 / 3),
    (variance_ratio, P, Q, 1.0),
    (variance_ratio, np.array([0.5, 0.0, 0.0, 0.5]), np.array([0.25, 0.25, 0.25, 0.25]), 2.25 / 1.25),
    (nominal_variance_ratio, np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.25, 0.25, 0.25, 0.25]), 0.5 / 0.75),
    (js_divergence, np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0, 0.0]), 1.0),
    (js_distance, np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.5, 0.0, 0.5, 0.0]), math.sqrt(0.5)),
]
shares_of = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(lambda counts: sum(counts) > 0)


@pytest.mark.parametrize(("measure", "p", "q", "expected"), GOLDEN)
def test_a_measure_has_the_published_value(measure, p, q, expected):
    assert measure(p, q, VALUES) == pytest.approx(expected, abs=1e-12)


def test_jensen_shannon_is_what_its_definition_gives_term_by_term():
    mean = (P + Q) / 2
    by_hand = sum(a * math.log2(a / m) / 2 for a, m in zip(P, mean, strict=True))
    by_hand += sum(b * math.log2(b / m) / 2 for b, m in zip(Q, mean, strict=True))
    assert js_divergence(P, Q, VALUES) == pytest.approx(by_hand)


def test_a_uniform_distribution_has_the_most_entropy():
    assert entropy(np.ones(8)) == pytest.approx(3.0)


def test_earth_moves_by_the_distance_of_codes_not_by_their_number():
    assert w1_alignment(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([1.0, 2.0, 10.0])) == pytest.approx(
        8 / 9
    )


def test_the_order_of_options_does_not_matter_to_an_ordered_measure():
    order = np.array([2, 0, 3, 1])
    for measure in (w1_alignment, ks_similarity, variance_ratio):
        assert measure(P[order], Q[order], VALUES[order]) == pytest.approx(float(measure(P, Q, VALUES)))


def test_ties_share_their_mean_rank():
    assert mean_ranks(np.array([0.2, 0.2, 0.5, 0.1])).tolist() == [2.5, 2.5, 4.0, 1.0]


@given(shares_of, shares_of)
def test_every_measure_stays_in_its_range_and_ignores_the_size_of_totals(p, q):
    a, b = np.array(p, float), np.array(q, float)
    for metric in METRICS:
        found = float(metric.measure(a, b, VALUES))
        if math.isnan(found):
            continue
        assert metric.low - 1e-9 <= found <= metric.high + 1e-9
        assert found == pytest.approx(float(metric.measure(7 * a, 0.3 * b, VALUES)), abs=1e-6)


@given(shares_of)
def test_a_distribution_beside_itself_has_the_best_score(p):
    a = np.array(p, float)
    for metric in METRICS:
        found = float(metric.measure(a, a, VALUES))
        assert math.isnan(found) or found == pytest.approx(metric.best, abs=1e-6)


@given(shares_of, shares_of, shares_of)
def test_the_jensen_shannon_distance_is_a_metric(p, q, r):
    a, b, c = (np.array(one, float) for one in (p, q, r))
    assert js_distance(a, b, VALUES) == pytest.approx(float(js_distance(b, a, VALUES)), abs=1e-7)
    assert js_distance(a, c, VALUES) <= js_distance(a, b, VALUES) + js_distance(b, c, VALUES) + 1e-6


def test_measures_of_nobody_are_not_a_number():
    nothing = np.zeros(4)
    assert all(math.isnan(float(metric.measure(nothing, Q, VALUES))) for metric in METRICS)


def test_a_rank_correlation_needs_three_options():
    assert math.isnan(float(rank_correlation(np.array([0.3, 0.7]), np.array([0.3, 0.7]), VALUES[:2])))


def test_rows_are_measured_at_once_as_they_are_alone():
    rows = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [0, 0, 1, 1]])
    for metric in METRICS:
        alone = [float(metric.measure(row, Q, VALUES)) for row in rows]
        assert metric.measure(rows, Q, VALUES).tolist() == pytest.approx(alone, nan_ok=True)


def test_a_sample_of_n_people_is_worth_about_n_people():
    generator = np.random.default_rng(5)
    drawn = generator.multinomial(200, Q, size=4000) / 200
    mse = ((drawn - Q) ** 2).sum(axis=1).mean()
    assert (Q * (1 - Q)).sum() / mse == pytest.approx(200, rel=0.05)
    one = np.array([0.42, 0.28, 0.2, 0.1])
    assert effective_human_n(one, Q, np.array(0.0)) == pytest.approx(0.7 / 0.0008)


def test_an_error_no_larger_than_the_benchmarks_own_is_worth_any_number_of_people():
    assert effective_human_n(np.array([0.41, 0.29, 0.2, 0.1]), Q, np.array(0.001)) == math.inf


def test_eta_squared_is_the_share_of_variance_between_groups():
    # Two groups, all variance between them; then none.
    assert eta_squared(np.array([[10.0, 0], [0, 10.0]]), np.array([1.0, 2.0])) == pytest.approx(1.0)
    assert eta_squared(np.array([[5.0, 5], [3, 3]]), np.array([1.0, 2.0])) == pytest.approx(0.0)
    # By hand: means 1.25 and 1.75, variance 0.25, between 0.0625.
    assert eta_squared(np.array([[3.0, 1], [1, 3]]), np.array([1.0, 2.0])) == pytest.approx(0.25)


def test_nominal_eta_squared_of_two_options_is_eta_squared():
    groups = np.array([[30.0, 10], [12, 25], [7, 7]])
    assert nominal_eta_squared(groups, VALUES[:2]) == pytest.approx(float(eta_squared(groups, VALUES[:2])))


def test_eta_squared_of_no_variance_is_not_a_number():
    assert math.isnan(float(eta_squared(np.array([[4.0, 0], [9, 0]]), VALUES[:2])))
