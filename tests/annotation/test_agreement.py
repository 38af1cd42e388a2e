"""Alpha, means and shares against published tables, and what must hold for any ratings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.annotation.agreement import (
    Observation,
    alpha_interval,
    clustered_difference,
    clustered_mean,
    detection_rate,
    krippendorff_alpha,
    student_quantile,
    wilson_interval,
)

_ = None
# Krippendorff 2011, section D: four observers, twelve units, missing data.
SECTION_D = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
        strict=True,
    )
)
# Section A: two observers, ten units, two values. Section B: two observers, five values a … e.
SECTION_A = list(zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True))
SECTION_B = [
    ("abcde".index(one), "abcde".index(other)) for one, other in zip("aabbdcccedda", "babbbccceddd", strict=True)
]
# The three coders of the example in Krippendorff's Wikipedia article.
CODERS = list(
    zip(
        [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
        [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
        [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("units", "level", "alpha"),
    [
        (SECTION_A, "nominal", 0.095),
        (SECTION_B, "nominal", 0.692),
        (SECTION_D, "nominal", 0.743),
        (SECTION_D, "ordinal", 0.815),
        (SECTION_D, "interval", 0.849),
        (CODERS, "nominal", 0.691),
        (CODERS, "interval", 0.811),
    ],
)
def test_alpha_is_the_published_one(units, level, alpha):
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_undefined_where_nothing_could_differ():
    assert krippendorff_alpha([(1, 1), (2, 2), (5, 5)], "ordinal") == 1.0
    assert math.isnan(krippendorff_alpha([(3, 3), (3, 3)], "nominal"))
    assert math.isnan(krippendorff_alpha([(3, None), (None, 4)], "interval"))
    assert math.isnan(krippendorff_alpha([], "interval"))
    nothing = alpha_interval([(3, None)], ["p"], "ordinal", 7)
    assert (math.isnan(nothing.value), nothing.n) == (True, 0)


def test_alphas_interval_holds_alpha_and_is_the_same_for_the_same_seed():
    clusters = [f"p{index}" for index in range(len(SECTION_D))]
    found = alpha_interval(SECTION_D, clusters, "ordinal", 7)
    assert found.value == pytest.approx(0.815, abs=5e-4)
    assert found.n == 11  # the twelfth unit has one rating
    assert found.low < found.value < found.high <= 1.0
    assert found == alpha_interval(SECTION_D, clusters, "ordinal", 7)


ratings = st.lists(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=3, max_size=3), min_size=1, max_size=12)


@given(ratings, st.sampled_from(["nominal", "ordinal", "interval"]), st.randoms(use_true_random=False))
def test_alpha_does_not_depend_on_the_order_of_units_or_raters(units, level, rng):
    shuffled = [rng.sample(unit, len(unit)) for unit in rng.sample(units, len(units))]
    before, after = krippendorff_alpha(units, level), krippendorff_alpha(shuffled, level)
    assert before == pytest.approx(after, nan_ok=True, abs=1e-12)
    assert math.isnan(before) or before <= 1.0


@given(ratings)
def test_interval_alpha_does_not_depend_on_the_unit_of_the_scale(units):
    scaled = [[None if value is None else 10.0 * value - 3 for value in unit] for unit in units]
    expected = krippendorff_alpha(units, "interval")
    assert krippendorff_alpha(scaled, "interval") == pytest.approx(expected, nan_ok=True, abs=1e-9)


# R. G. Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits, n, low, high):
    assert wilson_interval(hits / n, n) == pytest.approx((low, high), abs=5e-5)


# Quantiles 97.5 % of any printed table.
@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042), (120, 1.980)]
)
def test_students_quantile_is_that_of_the_tables(df, quantile):
    assert student_quantile(df) == pytest.approx(quantile, abs=5e-3 if df < 5 else 1e-3)


def test_a_mean_of_single_ratings_has_students_interval():
    # 1 … 5, one a person: mean 3, s² = 2.5, standard error √0.5, t(4) = 2.776
    found = clustered_mean([Observation(value, value) for value in range(1, 6)], 1, 5)
    assert (found.value, found.n) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((1.0370, 4.9630), abs=2e-3)


def test_ratings_of_one_person_count_as_one_cluster():
    apart = clustered_mean([Observation(value, index) for index, value in enumerate([2, 2, 3, 3, 4, 4])], 1, 5)
    paired = clustered_mean([Observation(value, index // 2) for index, value in enumerate([2, 2, 3, 3, 4, 4])], 1, 5)
    assert paired.value == apart.value
    assert paired.high - paired.low > apart.high - apart.low
    single = clustered_mean([Observation(value, "p") for value in (2, 4)], 1, 5)
    assert (single.value, single.n, math.isnan(single.low)) == (3.0, 2, True)


def test_a_difference_pairs_what_one_person_got_on_both_sides():
    first = [Observation(value + 1, value) for value in range(1, 5)]
    second = [Observation(value, value) for value in range(1, 5)]
    found = clustered_difference(first, second, 4)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.n == 8
    nothing = clustered_difference(first, [], 4)
    assert (math.isnan(nothing.value), nothing.n) == (True, 0)


def test_a_rate_of_independent_ratings_has_about_wilsons_interval_and_of_clustered_ones_a_wider():
    hits = [Observation(float(index < 30), index) for index in range(100)]
    found = detection_rate(hits)
    assert (found.value, found.n) == (0.3, 100)
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.3, 100), abs=2e-3)
    clustered = detection_rate([Observation(one.value, one.cluster // 5) for one in hits])
    assert clustered.high - clustered.low > 1.8 * (found.high - found.low)
    same = detection_rate([Observation(1.0, index // 5) for index in range(100)])
    assert (same.value, same.low, same.high) == (1.0, *wilson_interval(1.0, 20))
    assert detection_rate([]).n == 0
