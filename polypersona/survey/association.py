"""How items hang together and what predicts them, in the humans and in the synthetic answers.

Cramér's V over pairs of items, and one linear model of an item on demographics fitted to both. Pure functions of
tables and moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.survey.inference import Z_95, Interval, Moments

FloatArray: TypeAlias = npt.NDArray[np.float64]


def cramers_v(table: FloatArray, effective_n: float) -> float:
    """Return the bias-corrected Cramér's V of a weighted two-way table (Cramér 1946; Bergsma 2013).

    φ̃² = max(0, χ²/n − (r−1)(c−1)/(n−1)), V = √(φ̃² / min(r̃−1, c̃−1)) with r̃ = r − (r−1)²/(n−1); rows and columns
    nobody chose do not count; n is Kish's. In [0, 1], 0 for independence; NaN where one item does not vary or n < 2.
    """
    kept = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    rows, columns = kept.shape
    if min(rows, columns) < 2 or effective_n < 2:
        return math.nan
    p = kept / kept.sum()
    expected = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    phi2 = float(((p - expected) ** 2 / expected).sum())
    corrected = max(0.0, phi2 - (rows - 1) * (columns - 1) / (effective_n - 1))
    height = rows - (rows - 1) ** 2 / (effective_n - 1)
    width = columns - (columns - 1) ** 2 / (effective_n - 1)
    least = min(height, width) - 1
    return min(1.0, math.sqrt(corrected / least)) if least > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Pattern:
    """Cramér's V of the same pairs of items, compared.

    `correlation` is Pearson's over the pairs, with a delete-one-item jackknife interval (pairs share items);
    `mean_difference` is mean synthetic minus mean human V, `mean_absolute` the mean |difference|.
    """

    num_pairs: int
    correlation: Interval
    mean_human: float
    mean_synthetic: float
    mean_absolute: float


def compare_patterns(human: FloatArray, synthetic: FloatArray) -> Pattern:
    """Compare two symmetric matrices (items, items) of V; pairs where either is NaN are left out.

    The correlation is in [−1, 1], higher is better; NaN for fewer than three pairs, or where one side does not vary.
    """
    upper = np.triu_indices(len(human), 1)
    a, b = human[upper], synthetic[upper]
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        nothing = Interval(math.nan, math.nan, math.nan, math.nan)
        return Pattern(0, nothing, math.nan, math.nan, math.nan)
    a, b = a[both], b[both]
    value = _pearson(a, b)
    first, second = upper[0][both], upper[1][both]
    items = np.unique(np.concatenate([first, second]))
    held = [_pearson(a[keep], b[keep]) for item in items if (keep := (first != item) & (second != item)).sum() > 2]
    without = np.array([one for one in held if not math.isnan(one)])
    error = math.nan
    if len(without) > 2 and not math.isnan(value):
        error = math.sqrt((len(without) - 1) / len(without) * float(((without - without.mean()) ** 2).sum()))
    correlation = Interval(value, max(-1.0, value - Z_95 * error), min(1.0, value + Z_95 * error), error)
    if math.isnan(error):
        correlation = Interval(value, math.nan, math.nan, math.nan)
    return Pattern(len(a), correlation, float(a.mean()), float(b.mean()), float(np.abs(a - b).mean()))


def _pearson(a: FloatArray, b: FloatArray) -> float:
    if len(a) < 3:
        return math.nan
    x, y = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-15 else math.nan


@dataclass(frozen=True, slots=True)
class Fit:
    """A weighted linear model: coefficients and their linearised covariance, in the design's order of columns."""

    coefficients: FloatArray
    covariance: FloatArray

    @property
    def errors(self) -> FloatArray:
        """Standard errors."""
        return np.sqrt(np.clip(np.diag(self.covariance), 0.0, None))


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One term in both fits. `z` is the difference by its error; positive where the synthetic one is larger."""

    term: str
    human: float
    human_error: float
    synthetic: float
    synthetic_error: float
    z: float

    @property
    def is_different(self) -> bool:
        """Whether |z| > 1.96."""
        return abs(self.z) > Z_95

    @property
    def is_flipped(self) -> bool:
        """Whether the two differ and have opposite signs."""
        return self.is_different and self.human * self.synthetic < 0


def fit_model(moments: Moments, design: FloatArray, outcome: FloatArray) -> Fit | None:
    """Fit E[outcome] = design · b by weighted least squares, with a sandwich variance clustered by respondent.

    b = (Σ W_g x_g x_gᵀ)⁻¹ Σ x_g Σ_k T_gk y_k over profiles g; the meat is Σ_g x_g x_gᵀ (r_gᵀ S_g r_g) with
    r_gk = y_k − x_gᵀ b and S_g the profile's Σ t tᵀ (Binder 1983). None where the design is singular or too few
    clusters are there.

    Args:
        moments: of one item, by profile.
        design: (G, P), one row a profile, the first column 1.
        outcome: (K,), what each option counts as.
    """
    weights = moments.totals.sum(axis=1)
    bread = design.T @ (design * weights[:, None])
    if moments.num_clusters <= design.shape[1] or np.linalg.cond(bread) > 1e10:
        return None
    inverse = np.linalg.inv(bread)
    coefficients = inverse @ (design.T @ (moments.totals @ outcome))
    residuals = outcome[None, :] - (design @ coefficients)[:, None]
    squares = np.einsum("gk,gkl,gl->g", residuals, moments.squares, residuals)
    meat = design.T @ (design * squares[:, None])
    num = moments.num_clusters
    return Fit(coefficients, inverse @ meat @ inverse * num / (num - 1))


def compare_fits(human: Fit, synthetic: Fit, terms: Sequence[str]) -> list[Coefficient]:
    """Return the terms of both fits with z = (b_s − b_h)/√(se_s² + se_h²); the intercept (the first) is left out.

    As Bisbee et al. (2024) compare synthetic with real survey data: the share of |z| > 1.96 (about 0.05 where both are
    samples of one population), and among those the share whose sign flips. Both in [0, 1], lower is better.
    """
    found = []
    for place, term in enumerate(terms):
        if place == 0:
            continue
        a, b = float(human.coefficients[place]), float(synthetic.coefficients[place])
        error_a, error_b = float(human.errors[place]), float(synthetic.errors[place])
        spread = math.sqrt(error_a**2 + error_b**2)
        found.append(Coefficient(term, a, error_a, b, error_b, (b - a) / spread if spread > 0 else math.nan))
    return found
