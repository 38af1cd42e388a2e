"""Weighted, clustered inference from moments: variances by linearisation, effective sample sizes, intervals.

A respondent's or persona's answers to one item are one *cluster*: a vector t_c of weighted totals over the K options
(one entry for a human, several where a persona was asked in several draws). A `Moments` keeps, by profile, Σ t_c,
Σ t_c t_cᵀ, and counts: they add up over shards, and every subgroup's variance follows from them.

For a statistic g of the totals T = Σ t_c that does not change when all totals are multiplied alike (every measure
here), the linearised variance (Woodruff 1971; Binder 1983) is C/(C−1) ∇gᵀ (Σ_c t_c t_cᵀ) ∇g, C clusters; the centring
term −T Tᵀ/C drops out, for ∇gᵀ T = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
# Takes one array (replicates, G·K) per moments, normalised totals; gives (replicates,).
Statistic: TypeAlias = Callable[..., FloatArray]

Z_95 = 1.959963984540054
_STEP = 1e-6


class Interval(NamedTuple):
    """A value with its 95 % interval and standard error; NaN where undefined."""

    value: float
    low: float
    high: float
    error: float


UNDEFINED = Interval(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one item: totals (G, K), squares (G, K, K), clusters (G,) and answers (G,), by profile or subgroup."""

    totals: FloatArray
    squares: FloatArray
    clusters: IntArray
    answers: IntArray

    def collapse(self, members: npt.NDArray[np.bool_]) -> Moments:
        """Return the moments of some profiles together, as one group (G = 1)."""
        return Moments(
            self.totals[members].sum(axis=0, keepdims=True),
            self.squares[members].sum(axis=0, keepdims=True),
            self.clusters[members].sum(keepdims=True),
            self.answers[members].sum(keepdims=True),
        )

    def grouped(self, labels: IntArray, num_groups: int) -> Moments:
        """Return the moments of `num_groups` groups of profiles; profiles with a negative label are left out."""
        parts = [self.collapse(labels == group) for group in range(num_groups)]
        return Moments(
            np.concatenate([part.totals for part in parts]),
            np.concatenate([part.squares for part in parts]),
            np.concatenate([part.clusters for part in parts]),
            np.concatenate([part.answers for part in parts]),
        )

    @property
    def num_clusters(self) -> int:
        """Personas or respondents."""
        return int(self.clusters.sum())

    @property
    def num_answers(self) -> int:
        """Answers: more than clusters where personas were asked several times."""
        return int(self.answers.sum())

    @property
    def effective_n(self) -> float:
        """Kish's (ΣW)² / ΣW² over the clusters' total weights; 0.0 where there is none."""
        return kish(float(self.totals.sum()), float(self.squares.sum()))

    @property
    def share_covariance(self) -> FloatArray:
        """Linearised covariance (K, K) of the shares of all groups together; NaN for fewer than two clusters."""
        totals, squares = self.totals.sum(axis=0), self.squares.sum(axis=0)
        weight, num = float(totals.sum()), self.num_clusters
        if weight <= 0 or num < 2:
            return np.full(squares.shape, math.nan)
        # ∇p_k of totals is (e_k − p_k 1)/W.
        gradient = (np.eye(len(totals)) - totals[:, None] / weight) / weight
        return np.asarray(gradient @ squares @ gradient.T * (num / (num - 1)))

    def share_intervals(self, scale: float = 100.0) -> list[Interval]:
        """Return the shares of all groups together with their intervals, in percent."""
        totals = self.totals.sum(axis=0)
        if not totals.sum() > 0:
            return [UNDEFINED] * len(totals)
        p, errors = scale * totals / totals.sum(), scale * np.sqrt(np.clip(np.diag(self.share_covariance), 0.0, None))
        reach = Z_95 * errors
        return [
            Interval(float(a), float(max(0.0, a - b)), float(min(scale, a + b)), float(c))
            for a, b, c in zip(p, reach, errors, strict=True)
        ]


def kish(weight_sum: float, square_sum: float) -> float:
    """Return the effective sample size (Σw)² / Σw² (Kish 1965). In [0, n]; 0.0 for no weight at all."""
    return weight_sum * weight_sum / square_sum if square_sum > 0 else 0.0


def kish_of(weights: FloatArray) -> float:
    """Return Kish's effective sample size of some weights."""
    return kish(float(weights.sum()), float((weights * weights).sum()))


class Probe:
    """Two samples' totals, each moved a little option by option, stacked: one call of a measure gives value and error.

    Args:
        first: the synthetic sample, one group.
        second: the humans, one group; independent of the first.
        others: further (p, q) rows to measure in the same call, such as floors and random halves.
    """

    def __init__(self, first: Moments, second: Moments, others: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        self._samples = (first, second)
        self._totals = [sample.totals[0] / max(float(sample.totals.sum()), 1e-300) for sample in self._samples]
        self._chosen = [np.flatnonzero(here > 0) for here in self._totals]
        moved = [_moved(here, chosen) for here, chosen in zip(self._totals, self._chosen, strict=True)]
        (p, steps_p), (q, steps_q) = moved
        self._steps = (steps_p, steps_q)
        rows = [
            (self._totals[0][None], self._totals[1][None]),
            (p, np.broadcast_to(self._totals[1], p.shape)),
            (np.broadcast_to(self._totals[0], q.shape), q),
            *others,
        ]
        self.p = np.concatenate([row[0] for row in rows])
        self.q = np.concatenate([row[1] for row in rows])
        self._begin = 1 + len(p) + len(q)

    def rest(self, measured: FloatArray) -> FloatArray:
        """Return a measure's values of the other rows."""
        return measured[self._begin :]

    def interval(self, measured: FloatArray, low: float, high: float) -> tuple[Interval, FloatArray]:
        """Return the interval of a measure from its values on (`p`, `q`), and the values of the other rows."""
        value, rest = float(measured[0]), self.rest(measured)
        if math.isnan(value):
            return UNDEFINED, rest
        variance, begin = 0.0, 1
        for sample, chosen, steps in zip(self._samples, self._chosen, self._steps, strict=True):
            ahead, behind = (
                measured[begin : begin + len(chosen)],
                measured[begin + len(chosen) : begin + 2 * len(chosen)],
            )
            begin += 2 * len(chosen)
            gradient = np.zeros(sample.totals.shape[1])
            gradient[chosen] = (ahead - behind) / (2 * steps)
            num, weight = sample.num_clusters, float(sample.totals.sum())
            scaled = float(gradient @ sample.squares[0] @ gradient) / (weight * weight)
            variance += scaled * num / (num - 1) if num > 1 else math.nan
        return _bounded(value, variance, low, high), rest


def _moved(here: FloatArray, chosen: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return totals with each chosen option raised, then each lowered, and the steps."""
    steps = np.minimum(_STEP, here[chosen] / 2)
    moved = np.repeat(here[None], 2 * len(chosen), axis=0)
    rows = np.arange(len(chosen))
    moved[rows, chosen] += steps
    moved[rows + len(chosen), chosen] -= steps
    return moved, steps


def _bounded(value: float, variance: float, low: float, high: float) -> Interval:
    if not math.isfinite(variance):
        return Interval(value, math.nan, math.nan, math.nan)
    error = math.sqrt(max(variance, 0.0))
    return Interval(value, max(low, value - Z_95 * error), min(high, value + Z_95 * error), error)


def interval_of(
    statistic: Statistic, samples: Sequence[Moments], low: float = -math.inf, high: float = math.inf
) -> Interval:
    """Return a statistic of one or more independent samples with its linearised interval, cut to its range.

    Args:
        statistic: takes one array (R, G·K) of totals per sample, gives (R,); unchanged when a sample's totals are
            multiplied alike, and smooth enough for a difference quotient. Where it bends (a distance at zero), the
            interval is rough.
        samples: the moments of each.
        low: least possible value.
        high: largest possible value.
    """
    totals = [sample.totals.reshape(1, -1) / max(float(sample.totals.sum()), 1e-300) for sample in samples]
    value = float(statistic(*totals)[0])
    if math.isnan(value):
        return UNDEFINED
    variance = 0.0
    for place, sample in enumerate(samples):
        if sample.num_clusters < 2:
            return Interval(value, math.nan, math.nan, math.nan)
        variance += _variance_of(statistic, totals, place, sample)
    return _bounded(value, variance, low, high)


def _variance_of(statistic: Statistic, totals: Sequence[FloatArray], place: int, sample: Moments) -> float:
    gradient = _gradient(statistic, totals, place).reshape(sample.totals.shape)
    weight = float(sample.totals.sum())
    scaled = np.einsum("gk,gkl,gl->", gradient, sample.squares, gradient) / (weight * weight)
    return float(scaled * sample.num_clusters / (sample.num_clusters - 1))


def _gradient(statistic: Statistic, totals: Sequence[FloatArray], place: int) -> FloatArray:
    """Return ∂statistic/∂totals of one sample by central differences; an option nobody chose contributes nothing."""
    here = totals[place][0]
    chosen = np.flatnonzero(here > 0)
    moved, steps = _moved(here, chosen)
    arguments = [moved if index == place else other for index, other in enumerate(totals)]
    found = np.broadcast_to(statistic(*arguments), (2 * len(chosen),))
    gradient = np.zeros(len(here))
    gradient[chosen] = (found[: len(chosen)] - found[len(chosen) :]) / (2 * steps)
    return gradient


def fisher_interval(correlation: float, num_pairs: int) -> Interval:
    """Return a correlation with Fisher's (1915) interval tanh(atanh r ± 1.96/√(n − 3)); NaN bounds for n < 4."""
    if math.isnan(correlation) or num_pairs < 4:
        return Interval(correlation, math.nan, math.nan, math.nan)
    if abs(correlation) >= 1:
        return Interval(correlation, correlation, correlation, 0.0)
    center, error = math.atanh(correlation), 1 / math.sqrt(num_pairs - 3)
    return Interval(correlation, math.tanh(center - Z_95 * error), math.tanh(center + Z_95 * error), error)
