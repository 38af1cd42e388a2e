"""Cramér's V, its pattern over items, and regressions compared."""

import math

import numpy as np
import pytest

from polypersona.survey.association import compare_fits, compare_patterns, cramers_v, fit_model
from polypersona.survey.inference import Moments


def profile_moments(profile, codes, num_profiles, num_options, weights):
    totals, squares = np.zeros((num_profiles, num_options)), np.zeros((num_profiles, num_options, num_options))
    count = np.bincount(profile, minlength=num_profiles)
    for group, code, weight in zip(profile, codes, weights, strict=True):
        totals[group, code] += weight
        squares[group, code, code] += weight**2
    return Moments(totals, squares, count, count)


def test_perfect_association_is_one_and_none_is_zero():
    assert cramers_v(np.eye(3) * 100, 300) == pytest.approx(1.0, abs=0.01)
    assert cramers_v(np.ones((3, 4)), 1200) == 0.0


def test_the_correction_is_bergsmas():
    # phi2 = 0.04, n = 100, 2 × 2: phi2~ = 0.04 − 1/99, r~ = c~ = 2 − 1/99.
    table = np.array([[30.0, 20], [20, 30]])
    expected = math.sqrt((0.04 - 1 / 99) / (1 - 1 / 99))
    assert cramers_v(table, 100) == pytest.approx(expected)


def test_an_item_that_does_not_vary_has_no_association():
    assert math.isnan(cramers_v(np.array([[5.0, 5], [0, 0]]), 10))


def test_noise_alone_has_almost_no_corrected_association():
    generator = np.random.default_rng(1)
    found = [
        cramers_v(generator.multinomial(60, np.full(12, 1 / 12)).reshape(3, 4).astype(float), 60) for _ in range(200)
    ]
    assert np.mean(found) < 0.09  # 0.24 without the correction


def test_equal_patterns_correlate_and_opposite_ones_do_not():
    generator = np.random.default_rng(2)
    values = generator.uniform(0, 0.6, (6, 6))
    human = (values + values.T) / 2
    found = compare_patterns(human, human * 0.5)
    assert (found.num_pairs, found.correlation.value) == (15, pytest.approx(1.0))
    assert found.mean_synthetic == pytest.approx(found.mean_human / 2)
    assert compare_patterns(human, 0.6 - human).correlation.value == pytest.approx(-1.0)
    assert math.isnan(compare_patterns(human, np.full((6, 6), np.nan)).correlation.value)


def test_a_fit_is_weighted_least_squares_with_a_sandwich():
    generator = np.random.default_rng(4)
    profile, weights = generator.integers(0, 3, 400), generator.uniform(0.5, 2, 400)
    codes = (generator.random(400) < 0.3 + 0.2 * (profile == 1)).astype(int)
    design = np.array([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]])
    fit = fit_model(profile_moments(profile, codes, 3, 2, weights), design, np.array([0.0, 1.0]))
    x, y = design[profile], codes.astype(float)
    bread = np.linalg.inv(x.T @ (x * weights[:, None]))
    expected = bread @ x.T @ (weights * y)
    score = x * (weights * (y - x @ expected))[:, None]
    covariance = bread @ score.T @ score @ bread * 400 / 399
    assert fit.coefficients.tolist() == pytest.approx(expected.tolist())
    assert fit.covariance.ravel().tolist() == pytest.approx(covariance.ravel().tolist())


def test_two_samples_of_one_population_differ_in_about_five_percent_of_coefficients():
    generator = np.random.default_rng(6)
    design, different, total = np.array([[1.0, 0], [1, 1]]), 0, 0
    for _ in range(400):
        fits = []
        for _ in range(2):
            profile = generator.integers(0, 2, 150)
            codes = (generator.random(150) < 0.4 + 0.1 * profile).astype(int)
            fits.append(fit_model(profile_moments(profile, codes, 2, 2, np.ones(150)), design, np.array([0.0, 1.0])))
        (term,) = compare_fits(fits[0], fits[1], ["intercept", "group"])
        different += term.is_different
        total += 1
    assert 0.025 <= different / total <= 0.085


def test_a_flipped_effect_is_named_a_flip():
    generator = np.random.default_rng(8)
    fits = []
    for sign in (1, -1):
        profile = generator.integers(0, 2, 2000)
        codes = (generator.random(2000) < 0.5 + 0.2 * sign * (profile - 0.5)).astype(int)
        moments = profile_moments(profile, codes, 2, 2, np.ones(2000))
        fits.append(fit_model(moments, np.array([[1.0, 0], [1, 1]]), np.array([0.0, 1.0])))
    (term,) = compare_fits(fits[0], fits[1], ["intercept", "group"])
    assert term.is_flipped
    assert term.z < -1.96


def test_a_design_that_says_the_same_twice_is_not_fitted():
    moments = profile_moments(np.array([0, 1] * 20), np.array([0, 1, 1, 0] * 10), 2, 2, np.ones(40))
    assert fit_model(moments, np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([0.0, 1.0])) is None
