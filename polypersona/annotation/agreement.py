"""How far raters agree, and how sure a mean of their ratings is. Pure arithmetic; undefined is NaN with n = 0.

Krippendorff's alpha (K. Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", University of Pennsylvania)
is 1 − D_o / D_e over the coincidences of values. A unit with m ≥ 2 ratings adds 1 / (m − 1) to o_ck for every ordered
pair of ratings c, k by different raters; units with fewer add nothing, so ratings may be missing. With the margins
n_c = Σ_k o_ck and n = Σ_c n_c,

    alpha = 1 − (n − 1) · Σ_c Σ_k o_ck δ²_ck / Σ_c Σ_k n_c n_k δ²_ck

    nominal   δ²_ck = 1 where c ≠ k
    ordinal   δ²_ck = (Σ_{g=c…k} n_g − (n_c + n_k) / 2)²
    interval  δ²_ck = (c − k)²

It is 1 where raters always agree, 0 where they agree as chance would, and below 0 where they disagree more than that.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]
# One unit's ratings; None where a rater gave none.
Unit: TypeAlias = Sequence[float | None]
NUM_REPLICATES = 1_000
_Z = NormalDist().inv_cdf(0.975)


class Estimate(NamedTuple):
    """A value, how many ratings (of alpha: units) it rests on, and its 95 % interval."""

    value: float
    n: int
    low: float = math.nan
    high: float = math.nan


UNDEFINED = Estimate(math.nan, 0)


@dataclass(frozen=True, slots=True)
class Observation:
    """One rating, and whom it is about: ratings that share a cluster are not independent."""

    value: float
    cluster: Hashable


def krippendorff_alpha(units: Sequence[Unit], level: Level) -> float:
    """Return alpha of a table of units × raters (see the module); NaN where no two values can be told apart."""
    _, coincidences = _coincidences(units)
    return _alpha(coincidences.sum(axis=0), _values(units), level)


def alpha_interval(units: Sequence[Unit], clusters: Sequence[Hashable], level: Level, seed: int) -> Estimate:
    """Return alpha with a percentile interval, n being the units that two raters rated.

    Args:
        units: the ratings of each unit.
        clusters: to what each unit belongs; a bootstrap draws whole clusters.
        level: of measurement.
        seed: of the bootstrap.
    """
    paired, coincidences = _coincidences(units)
    values = _values(units)
    alpha = _alpha(coincidences.sum(axis=0), values, level)
    if math.isnan(alpha):
        return UNDEFINED
    names = sorted({str(clusters[place]) for place in paired})
    index = {name: place for place, name in enumerate(names)}
    sums = np.zeros((len(names), *coincidences.shape[1:]))
    for matrix, place in zip(coincidences, paired, strict=True):
        sums[index[str(clusters[place])]] += matrix
    if len(names) < 2:
        return Estimate(alpha, len(paired))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_REPLICATES)
    replicates = [_alpha(total, values, level) for total in np.tensordot(draws.astype(float), sums, axes=1)]
    defined = [value for value in replicates if not math.isnan(value)]
    low, high = np.quantile(defined, (0.025, 0.975)) if defined else (math.nan, math.nan)
    return Estimate(alpha, len(paired), float(low), float(high))


def clustered_mean(observations: Sequence[Observation], low: float, high: float) -> Estimate:
    """Return the mean with a 95 % interval within [low, high].

    The variance is linearised by cluster: with G clusters and e_g = Σ_{i in g} (y_i − ȳ), it is
    G / (G − 1) · Σ_g e_g² / n² (Cochran 1977, 6.4, for a ratio of totals), and the interval is Student's on G − 1
    degrees of freedom. With one cluster there is no interval.
    """
    return _bounded(*_mean(observations), low, high)


def clustered_difference(first: Sequence[Observation], second: Sequence[Observation], span: float) -> Estimate:
    """Return mean(first) − mean(second) with a 95 % interval within ±`span`; n is the ratings of both.

    Linearised as in `clustered_mean`; a cluster with ratings on both sides counts with their covariance.
    """
    if not first or not second:
        return UNDEFINED
    residuals: dict[Hashable, float] = {}
    means = []
    for sign, side in ((1, first), (-1, second)):
        mean = math.fsum(one.value for one in side) / len(side)
        means.append(mean)
        for one in side:
            residuals[one.cluster] = residuals.get(one.cluster, 0.0) + sign * (one.value - mean) / len(side)
    error = _standard_error(list(residuals.values()))
    return _bounded(means[0] - means[1], len(first) + len(second), error, len(residuals), -span, span)


def detection_rate(observations: Sequence[Observation]) -> Estimate:
    """Return the share of ones with Wilson's interval at the effective sample size.

    Ratings of one cluster are not independent, so n is divided by the design effect: the clustered variance of the
    share over p (1 − p) / n, never less than 1 (Korn & Graubard 1998). Where all ratings are equal, the effective size
    is the number of clusters.
    """
    share, n, error, clusters = _mean(observations)
    if n == 0:
        return UNDEFINED
    effective = share * (1 - share) / error**2 if error > 0 and 0 < share < 1 else float(clusters)
    low, high = wilson_interval(share, min(float(n), max(effective, 1.0)))
    return Estimate(share, n, low, high)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share of n (E. B. Wilson 1927); n need not be whole."""
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return 0.0 if share == 0 else max(0.0, low), 1.0 if share == 1 else min(1.0, high)


def student_quantile(df: int) -> float:
    """Return the 97.5 % quantile of Student's t: exact for 1 and 2, else the expansion of Abramowitz & Stegun 26.7.5.

    The expansion is within 0.003 of the quantile from three degrees of freedom on.
    """
    if df == 1:
        return math.tan(math.pi * 0.475)
    if df == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4)
    )


def _mean(observations: Sequence[Observation]) -> tuple[float, int, float, int]:
    """Return mean, n, standard error and number of clusters."""
    n = len(observations)
    if n == 0:
        return math.nan, 0, math.nan, 0
    mean = math.fsum(one.value for one in observations) / n
    residuals: dict[Hashable, float] = {}
    for one in observations:
        residuals[one.cluster] = residuals.get(one.cluster, 0.0) + (one.value - mean) / n
    return mean, n, _standard_error(list(residuals.values())), len(residuals)


def _standard_error(residuals: Sequence[float]) -> float:
    count = len(residuals)
    return math.sqrt(count / (count - 1) * math.fsum(one * one for one in residuals)) if count > 1 else math.nan


def _bounded(value: float, n: int, error: float, clusters: int, low: float, high: float) -> Estimate:
    if math.isnan(error):
        return Estimate(value, n)
    half = student_quantile(clusters - 1) * error
    return Estimate(value, n, max(low, value - half), min(high, value + half))


def _values(units: Sequence[Unit]) -> FloatArray:
    return np.array(sorted({float(value) for unit in units for value in unit if value is not None}))


def _coincidences(units: Sequence[Unit]) -> tuple[list[int], FloatArray]:
    """Return the places of the units with two ratings or more, and the coincidence matrix of each."""
    values = _values(units)
    place = {value: index for index, value in enumerate(values.tolist())}
    paired, matrices = [], []
    for index, unit in enumerate(units):
        counts = np.zeros(len(values))
        for value in unit:
            if value is not None:
                counts[place[float(value)]] += 1
        ratings = counts.sum()
        if ratings >= 2:
            paired.append(index)
            matrices.append((np.outer(counts, counts) - np.diag(counts)) / (ratings - 1))
    return paired, np.array(matrices) if matrices else np.zeros((0, len(values), len(values)))


def _alpha(coincidences: FloatArray, values: FloatArray, level: Level) -> float:
    margins = coincidences.sum(axis=1)
    n = margins.sum()
    distances = _distances(margins, values, level)
    expected = float(margins @ distances @ margins)
    if expected <= 0:
        return math.nan
    return float(1 - (n - 1) * (coincidences * distances).sum() / expected)


def _distances(margins: FloatArray, values: FloatArray, level: Level) -> FloatArray:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.asarray((values[:, None] - values[None, :]) ** 2)
    # Σ_{g=c…k} n_g − (n_c + n_k) / 2 is the distance between the middles of both values' ranges of ranks.
    middle = np.cumsum(margins) - margins / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)
