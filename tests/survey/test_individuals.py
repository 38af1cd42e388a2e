"""Accuracy, r and the demographic back-off, against published figures and by hand."""

import csv
import math
from collections import defaultdict

import numpy as np
import pytest

from polypersona.survey.individuals import (
    PairSums,
    accuracy,
    agreement_matrix,
    back_off,
    correlation,
    predicted_agreement,
    shuffled_accuracy,
)


@pytest.fixture(scope="module")
def twins(test_data):
    """Pairs of human and twin by variable, of Twin-2K-500's mega-study on redistribution (Apache-2.0)."""
    folder = test_data / "twin2k" / "preference_redistribution"
    found = defaultdict(lambda: defaultdict(dict))
    with (folder / "human_vs_twin_individual_level.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["value"]:
                found[row["variable_name"]][row["TWIN_ID"]][row["respondent_type"]] = float(row["value"])
    pairs = {}
    for name, people in found.items():
        both = [(one["human"], one["twin"]) for one in people.values() if len(one) == 2]
        pairs[name] = np.array(both).T
    with (folder / "human_vs_twin_summary.csv").open(encoding="utf-8") as stream:
        published = {row["variable name"]: row for row in csv.DictReader(stream)}
    return pairs, published


# n, r and accuracy as published, six digits.
PUBLISHED = [
    ("Trust", 1162, 0.295795, 0.592943),
    ("Redistribution 1", 1153, 0.620508, 0.779705),
    ("Fairness", 1151, 0.298406, 0.640747),
    ("Work vs Luck", 1158, 0.346408, 0.769862),
]


@pytest.mark.parametrize(("name", "n", "r", "expected"), PUBLISHED)
def test_twins_have_the_published_r_and_accuracy(twins, name, n, r, expected):
    human, twin = twins[0][name]
    assert len(human) == n
    assert correlation(human, twin) == pytest.approx(r, abs=5e-7)
    assert accuracy(human, twin) == pytest.approx(expected, abs=5e-7)


def test_every_variable_has_the_published_figures(twins):
    pairs, published = twins
    assert len(published) == 6
    for name, row in published.items():
        human, twin = pairs[name]
        sums = pair_sums(human, twin)
        assert sums.n == int(row["sample size"])
        assert sums.correlation == pytest.approx(
            float(row["correlation between the responses from humans vs. their twins"]), abs=1e-12
        )
        span = max(human.max(), twin.max()) - min(human.min(), twin.min())
        assert sums.accuracy(span).value == pytest.approx(
            float(row["accuracy between humans vs. their twins"]), abs=1e-12
        )
        assert sums.spread("h") == pytest.approx(float(row["std_human"]), abs=1e-9)
        assert sums.spread("s") == pytest.approx(float(row["std_twin"]), abs=1e-9)
        assert sums.h / sums.n == pytest.approx(float(row["mean_human"]))


def test_trust_has_the_published_means_and_deviations(twins):
    human, twin = twins[0]["Trust"]
    assert (human.mean(), twin.mean()) == (pytest.approx(1.7263, abs=5e-5), pytest.approx(2.2151, abs=5e-5))
    assert (human.std(ddof=1), twin.std(ddof=1)) == (pytest.approx(0.7313, abs=5e-5), pytest.approx(0.9254, abs=5e-5))


def pair_sums(human, twin):
    gaps, one = np.abs(human - twin), np.ones(len(human))
    columns = (one, one, gaps, human == twin, human, twin, human**2, twin**2, human * twin, gaps**2, gaps, one)
    return PairSums(*(int(column.sum()) for column in columns))


def test_the_shuffled_floor_is_the_mean_over_permutations(twins):
    human, twin = twins[0]["Trust"]
    generator = np.random.default_rng(0)
    by_permutation = np.mean([accuracy(human, generator.permutation(twin)) for _ in range(400)])
    values = np.array([1.0, 2, 3])
    counts = [np.array([(side == value).sum() for value in values], float) for side in (twin, human)]
    assert shuffled_accuracy(*counts, values, 2.0) == pytest.approx(by_permutation, abs=0.001)


def test_an_accuracy_without_variation_is_not_a_number():
    assert math.isnan(accuracy(np.ones(4), np.ones(4)))
    assert math.isnan(correlation(np.ones(4), np.arange(4.0)))
    assert math.isnan(PairSums(*[0] * 12).accuracy(2.0).value)


def test_draws_of_one_persona_narrow_no_interval():
    human, twin = np.array([1.0, 2, 3, 1, 2, 3]), np.array([1.0, 3, 3, 2, 2, 1])
    once = pair_sums(human, twin).accuracy(2.0)
    gaps = np.abs(human - twin)
    tenfold = PairSums(
        60, 6, int(10 * gaps.sum()), 30, 120, 120, 280, 280, 200, int((100 * gaps**2).sum()), int(100 * gaps.sum()), 600
    )
    assert tenfold.accuracy(2.0) == pytest.approx(tuple(once))


def test_the_back_off_leaves_out_the_one_it_predicts():
    counts = np.array([[3.0, 1.0], [0.0, 2.0]])
    found = back_off(counts, [np.array([0, 1])], minimum=1)
    assert found[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found[0, 1].tolist() == [1.0, 0.0]
    assert found[1, 1].tolist() == [0.0, 1.0]


def test_a_small_cell_backs_off_to_fewer_demographics_and_at_last_to_everybody():
    counts = np.array([[8.0, 4.0], [1.0, 1.0], [30.0, 0.0]])
    fine, coarse = np.array([0, 1, 2]), np.array([0, 0, 1])
    found = back_off(counts, [fine, coarse], minimum=10)
    assert found[0, 0].tolist() == pytest.approx([7 / 11, 4 / 11])  # own cell
    assert found[1, 0].tolist() == pytest.approx([8 / 13, 5 / 13])  # coarser
    alone = back_off(counts, [fine, coarse], minimum=40)
    assert alone[1, 0].tolist() == pytest.approx([38 / 43, 5 / 43])


def test_prediction_of_nobody_is_not_a_number():
    assert math.isnan(predicted_agreement(np.zeros((1, 2)), np.zeros((1, 2)), np.full((1, 1, 2), 0.5), np.eye(2)))


def test_agreement_falls_with_distance_on_an_ordered_scale_only():
    values = np.array([1.0, 2, 3])
    assert agreement_matrix(values, is_ordered=True)[0].tolist() == [1.0, 0.5, 0.0]
    assert agreement_matrix(values, is_ordered=False)[0].tolist() == [1.0, 0.0, 0.0]
