"""Rectification: the synthetic mean plus the mean residual of a small sample of people, with a joint standard error.

Let f be what the run answers for a kind of respondent: the mean over the personas of a profile, or over all where the
profile has none. With N personas and n people who were asked,

    θ = (1/N) Σ_i f(x_i) + (1/n) Σ_j (y_j − f(x_j)),    s.e.² = Var f(x)/N + Var(y − f(x))/n,

weighted, both variances linearised. This is prediction-powered inference (Angelopoulos et al. 2023, *Prediction-Powered
Inference*, Science 382), which keeps its coverage however wrong f is, if the personas' profiles are those of the
population; raked weights see to that. It is narrower than the sample alone as far as f explains y. f is taken as fixed:
the few draws behind it are no source of error beyond what the residuals show.

Positions are those of the codebook's values, as a share of the scale, in [0, 1]. The people of the sample are chosen by
the digest of their ids, so it is the same in every run and larger samples hold smaller ones; the others are the
benchmark. Pure functions of arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polypersona.records import digest
from polypersona.survey.inference import UNDEFINED, Z_95, FloatArray, Interval, Moments

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class People:
    """Answers of some people to one item: profile, position in [0, 1] and weight of each."""

    profile: IntArray
    position: FloatArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True)
class Rectified:
    """Means of one item, in shares of the scale, and the width of the rectified interval over the sample's own."""

    synthetic: Interval
    sample: Interval
    rectified: Interval
    benchmark: Interval

    @property
    def width_ratio(self) -> float:
        """Standard error of the rectified mean over that of the sample alone; below 1 the run adds information."""
        return self.rectified.error / self.sample.error if self.sample.error > 0 else math.nan


def choose_sample(respondent_ids: tuple[str, ...], size: int) -> npt.NDArray[np.bool_]:
    """Return which respondents are in the sample, shape (N,)."""
    order = sorted(range(len(respondent_ids)), key=lambda place: digest("rectified", respondent_ids[place]))
    chosen = np.zeros(len(respondent_ids), bool)
    chosen[order[:size]] = True
    return chosen


def rectify(moments: Moments, values: FloatArray, sample: People, benchmark: People) -> Rectified:
    """Return the means of an item: the run's, the sample's, both together, and the benchmark's.

    Args:
        moments: the run's, by profile; already reweighted where that is wanted.
        values: what the options count as, in scale order of the codes.
        sample: people who were asked.
        benchmark: other people, who say what is true.
    """
    places = (values - values.min()) / (values.max() - values.min())
    weights = moments.totals.sum(axis=1)
    total = float(weights.sum())
    whole = float(moments.totals.sum(axis=0) @ places) / total if total > 0 else math.nan
    predicted = np.divide(moments.totals @ places, weights, out=np.full(len(weights), whole), where=weights > 0)
    synthetic = _synthetic(moments, places, whole)
    residual = weighted_mean(sample.position - predicted[sample.profile], sample.weight)
    spread = _between(moments, predicted, whole)
    error = math.hypot(spread, residual.error)
    center = whole + residual.value
    rectified = (
        UNDEFINED
        if math.isnan(center)
        else Interval(center, center - Z_95 * error, center + Z_95 * error, error)
    )  # fmt: skip
    return Rectified(
        synthetic,
        weighted_mean(sample.position, sample.weight),
        rectified,
        weighted_mean(benchmark.position, benchmark.weight),
    )


def weighted_mean(values: FloatArray, weights: FloatArray) -> Interval:
    """Return Σ w v / Σ w with its linearised interval; each value is a cluster."""
    total = float(weights.sum())
    if not total > 0:
        return UNDEFINED
    mean = float(weights @ values) / total
    num = len(values)
    if num < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    error = math.sqrt(float((weights * weights) @ (values - mean) ** 2) * num / (num - 1)) / total
    return Interval(mean, mean - Z_95 * error, mean + Z_95 * error, error)


def _synthetic(moments: Moments, places: FloatArray, mean: float) -> Interval:
    """Return the run's own mean with its interval, clustered by persona."""
    total, num = float(moments.totals.sum()), moments.num_clusters
    if not total > 0:
        return UNDEFINED
    gradient = (places - mean) / total
    squares = moments.squares.sum(axis=0)
    if num < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    error = math.sqrt(max(0.0, float(gradient @ squares @ gradient) * num / (num - 1)))
    return Interval(mean, mean - Z_95 * error, mean + Z_95 * error, error)


def _between(moments: Moments, predicted: FloatArray, mean: float) -> float:
    """Return the standard error of the mean of f over the panel: f varies with the profile alone."""
    total, num = float(moments.totals.sum()), moments.num_clusters
    if not total > 0 or num < 2:
        return math.nan
    # Σ over personas of their squared weight, by profile: the sum over all pairs of options of t tᵀ.
    squared = moments.squares.sum(axis=(1, 2))
    return math.sqrt(float(squared @ (predicted - mean) ** 2) * num / (num - 1)) / total
