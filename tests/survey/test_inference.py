"""Variances, effective sizes and intervals, against closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.survey.distribution import js_distance, w1_alignment
from polypersona.survey.inference import Moments, Probe, fisher_interval, interval_of, kish, kish_of


def moments_of(clusters):
    """Moments of one group from clusters of totals, shape (C, K)."""
    rows = np.asarray(clusters, float)
    count = np.array([len(rows)])
    return Moments(rows.sum(axis=0)[None], (rows.T @ rows)[None], count, count)


def one_hot(codes, num_options, weights=None):
    rows = np.eye(num_options)[codes]
    return rows if weights is None else rows * np.asarray(weights)[:, None]


def test_kish_of_equal_weights_is_their_number():
    assert kish_of(np.full(50, 1.7)) == pytest.approx(50)
    assert kish(0.0, 0.0) == 0.0


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_kish_is_never_more_than_the_number_of_weights(weights):
    assert 1 - 1e-9 <= kish_of(np.array(weights)) <= len(weights) + 1e-9


def test_the_error_of_an_unweighted_share_is_the_textbooks():
    codes = np.array([0] * 30 + [1] * 70)
    interval = moments_of(one_hot(codes, 2)).share_intervals(1.0)[0]
    assert interval.value == pytest.approx(0.3)
    assert interval.error == pytest.approx(math.sqrt(0.3 * 0.7 / 99), rel=1e-9)  # s/√n with n − 1


def test_the_error_of_a_weighted_mean_is_the_linearised_one():
    # survey::svymean of R on the same numbers gives √(n/(n−1) Σ w²(y − ȳ)²)/Σw.
    y, w = np.array([0, 1, 1, 0, 1, 1, 0, 1]), np.array([1.0, 2, 0.5, 1.5, 3, 1, 1, 0.7])
    mean = (w * y).sum() / w.sum()
    expected = math.sqrt(8 / 7 * (w**2 * (y - mean) ** 2).sum()) / w.sum()
    found = interval_of(lambda t: t[:, 1] / t.sum(axis=1), [moments_of(one_hot(y, 2, w))])
    assert (found.value, found.error) == (pytest.approx(mean), pytest.approx(expected, rel=1e-5))


def test_answers_of_one_persona_count_as_one_cluster():
    once = moments_of(one_hot(np.array([0, 1] * 50), 2))
    ten_times = moments_of(10 * one_hot(np.array([0, 1] * 50), 2))
    assert ten_times.effective_n == pytest.approx(once.effective_n)
    assert ten_times.share_intervals()[0].error == pytest.approx(once.share_intervals()[0].error)


def test_the_two_ways_to_an_interval_agree():
    generator = np.random.default_rng(3)
    first = moments_of(one_hot(generator.integers(0, 4, 300), 4, generator.uniform(0.5, 2, 300)))
    second = moments_of(one_hot(generator.choice(4, 500, p=[0.4, 0.3, 0.2, 0.1]), 4))
    values = np.arange(1.0, 5)
    probe = Probe(first, second, [(np.ones((1, 4)), second.totals)])
    by_probe, rest = probe.interval(w1_alignment(probe.p, probe.q, values), 0, 1)
    by_quotient = interval_of(lambda p, q: w1_alignment(p, q, values), [first, second], 0, 1)
    assert by_probe == pytest.approx(tuple(by_quotient))
    assert rest.tolist() == pytest.approx([float(w1_alignment(np.ones(4), second.totals[0], values))])


@pytest.mark.parametrize("measure", [w1_alignment, js_distance])
def test_intervals_hold_the_truth_about_as_often_as_they_say(measure):
    generator = np.random.default_rng(11)
    p, q, values = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.35, 0.3, 0.2, 0.15]), np.arange(1.0, 5)
    truth, held, tries = float(measure(p, q, values)), 0, 300
    for _ in range(tries):
        weights = generator.uniform(0.4, 2.0, 400)
        samples = [moments_of(one_hot(generator.choice(4, 400, p=one), 4, weights)) for one in (p, q)]
        found = interval_of(lambda a, b: measure(a, b, values), samples)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / tries <= 0.985


def test_one_cluster_has_a_value_and_no_interval():
    found = interval_of(lambda t: t[:, 0] / t.sum(axis=1), [moments_of([[1.0, 3.0]])])
    assert found.value == pytest.approx(0.25)
    assert math.isnan(found.low)
    assert math.isnan(found.error)


def test_nobody_has_no_value():
    nobody = Moments(np.zeros((1, 2)), np.zeros((1, 2, 2)), np.zeros(1, int), np.zeros(1, int))
    assert all(math.isnan(one.value) for one in nobody.share_intervals())
    assert nobody.effective_n == 0.0


def test_fishers_interval_is_the_published_one():
    # human_vs_twin_summary.csv of Twin-2K-500, Redistribution 1: r, n and the bounds printed there.
    found = fisher_interval(0.6205083978918056, 1153)
    assert found.low == pytest.approx(0.583685944081672, abs=2e-4)
    assert found.high == pytest.approx(0.6548797538997655, abs=2e-4)
    assert math.isnan(fisher_interval(0.5, 3).low)
