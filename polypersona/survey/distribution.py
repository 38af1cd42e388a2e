"""Measures between two distributions over the options of one closed item, as pure functions of arrays.

Everywhere `p` (synthetic) and `q` (human) have shape (..., K): shares, or any non-negative totals in proportion to
them, which are divided by their sums; `values` (K,) are what the options count as, in scale order. Leading axes
broadcast, so replicates and gradients are one call. A measure is NaN where a total is zero or where it is undefined
(an order for a nominal item), never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Measure: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
_MIN_RANKED = 3


def shares(totals: FloatArray) -> FloatArray:
    """Return totals (..., K) divided by their sum over the options; NaN where the sum is zero."""
    total = totals.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(totals, total, out=np.full(totals.shape, np.nan), where=total > 0))


def w1_alignment(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return 1 − W₁(p, q) / (max v − min v), where W₁ = Σ_k |P(v_k) − Q(v_k)| (v_{k+1} − v_k), P and Q cumulative.

    The earth mover's distance of the line (Vallender 1974) as a share of the scale; "alignment" as in Santurkar et al.
    2023. Ordered items. In [0, 1], higher is better.
    """
    order = np.argsort(values, kind="stable")
    steps = np.diff(values[order])
    gaps = np.abs(np.cumsum(shares(p)[..., order], axis=-1) - np.cumsum(shares(q)[..., order], axis=-1))[..., :-1]
    span = steps.sum()
    return np.asarray(1 - (gaps * steps).sum(axis=-1) / span) if span > 0 else _undefined(p, q)


def js_divergence(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return the Jensen–Shannon divergence H((p + q)/2) − (H(p) + H(q))/2 in bits (Lin 1991).

    In [0, 1], lower is better.
    """
    a, b = shares(p), shares(q)
    return np.clip(_entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2, 0.0, 1.0)


def js_distance(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return √(Jensen–Shannon divergence in bits), a metric (Endres, Schindelin 2003). In [0, 1], lower is better."""
    return np.sqrt(js_divergence(p, q, values))


def total_variation(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return ½ Σ_k |p_k − q_k|: the share of answers that would have to change. In [0, 1], lower is better."""
    return np.asarray(np.abs(shares(p) - shares(q)).sum(axis=-1) / 2)


def ks_similarity(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return 1 − max_k |P(v_k) − Q(v_k)|, one minus the Kolmogorov–Smirnov statistic. Ordered items.

    In [0, 1], higher is better.
    """
    order = np.argsort(values, kind="stable")
    gaps = np.abs(np.cumsum(shares(p)[..., order], axis=-1) - np.cumsum(shares(q)[..., order], axis=-1))
    return np.asarray(1 - gaps.max(axis=-1))


def rank_correlation(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return Spearman's ρ of the options' shares, ties sharing their mean rank (Spearman 1904).

    Whether the options are popular in the same order. In [−1, 1], higher is better. NaN for fewer than three options
    and where all of them are equally popular.
    """
    a, b = np.broadcast_arrays(shares(p), shares(q))
    if a.shape[-1] < _MIN_RANKED:
        return _undefined(p, q)
    x, y = mean_ranks(a), mean_ranks(b)
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    found = np.full(scale.shape, np.nan)
    np.divide((x * y).sum(axis=-1), scale, out=found, where=scale > 0)
    found[np.isnan(a).any(axis=-1) | np.isnan(b).any(axis=-1)] = np.nan
    return found


def mean_ranks(x: FloatArray) -> FloatArray:
    """Return the ranks 1…K of (..., K), ties sharing their mean; values closer than 1e-12 are a tie."""
    apart = x[..., :, None] - x[..., None, :]
    below = (apart > 1e-12).sum(axis=-1)
    equal = (np.abs(apart) <= 1e-12).sum(axis=-1)
    return np.asarray(below + (equal + 1) / 2)


def variance_ratio(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return Var(p) / Var(q) of the options' values. Ordered items. In [0, ∞), 1 is best, below it answers collapse.

    Variances of distributions, without a correction for the degrees of freedom. NaN where the humans all agree.
    """
    return _ratio(_variance(p, values), _variance(q, values))


def nominal_variance_ratio(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return (1 − Σ p²) / (1 − Σ q²), the ratio of Gini's variances (Light and Margolin 1971). Nominal items.

    For two options it is the variance ratio. In [0, ∞), 1 is best.
    """
    return _ratio(gini_variance(p), gini_variance(q))


def gini_variance(totals: FloatArray) -> FloatArray:
    """Return 1 − Σ p²: the chance that two answers differ. In [0, 1 − 1/K]."""
    return np.asarray(1 - (shares(totals) ** 2).sum(axis=-1))


def entropy(totals: FloatArray) -> FloatArray:
    """Return Shannon's entropy −Σ p log₂ p in bits (Shannon 1948). In [0, log₂ K]."""
    return _entropy(shares(totals))


def entropy_difference(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return H(p) − H(q) in bits. In [−log₂ K, log₂ K], 0 is best, below it the synthetic answers are less varied."""
    return np.asarray(entropy(p) - entropy(q))


def mean_difference(p: FloatArray, q: FloatArray, values: FloatArray) -> FloatArray:
    """Return (E_p v − E_q v) / (max v − min v), a share of the scale. Ordered items. In [−1, 1], 0 is best."""
    span = values.max() - values.min()
    return np.asarray((shares(p) @ values - shares(q) @ values) / span) if span > 0 else _undefined(p, q)


def effective_human_n(p: FloatArray, q: FloatArray, error: FloatArray) -> FloatArray:
    """Return the size of a simple random sample of people that would be as wrong as the synthetic shares are.

    n = Σ q(1 − q) / MSE: a sample of n people has E Σ(q̂ − q)² = Σ q(1 − q)/n; the synthetic answers' squared error is
    Σ(p − q)² less `error`, the human benchmark's own sampling variance (its trace). That equation of mean squared
    errors is Meng's (2018) definition of an effective sample size. In (0, ∞), higher is better; infinite where the
    difference is no larger than the benchmark's own error, so a caller caps it by the benchmark's effective n. NaN
    where the humans all agree.
    """
    a, b = shares(p), shares(q)
    excess = ((a - b) ** 2).sum(axis=-1) - error
    spread = (b * (1 - b)).sum(axis=-1)
    found = np.full(np.broadcast(spread, excess).shape, np.inf)
    np.divide(spread, excess, out=found, where=excess > 0)
    return np.where(np.isnan(excess) | ~(spread > 1e-12), np.nan, found)


def eta_squared(totals: FloatArray, values: FloatArray, chance: float = 0.0) -> FloatArray:
    """Return η² = Var(E[v | group]) / Var(v): the share of variance that lies between groups. Ordered items.

    `totals` are (..., groups, K); `chance` is taken off the variance between groups (`chance_between`). The
    stereotyping index is η² of the synthetic answers minus that of the humans: above zero, groups differ more than
    people do. In [0, 1], below zero where groups differ by less than chance; NaN where nothing varies. (Pearson 1905;
    groups as "flattening" of identity: Wang, Morgenstern and Dickerson 2025.)
    """
    weights = totals.sum(axis=-1)
    means = np.divide(totals @ values, weights, out=np.zeros(weights.shape), where=weights > 0)
    total = weights.sum(axis=-1)
    share = np.divide(weights, total[..., None], out=np.full(weights.shape, np.nan), where=total[..., None] > 0)
    grand = (share * means).sum(axis=-1)
    between = (share * (means - grand[..., None]) ** 2).sum(axis=-1)
    return _ratio(between - chance, _variance(totals.sum(axis=-2), values))


def nominal_eta_squared(totals: FloatArray, values: FloatArray, chance: float = 0.0) -> FloatArray:
    """Return 1 − E[Gini variance | group] / Gini variance: for nominal items (Light, Margolin 1971).

    Arguments and range as of `eta_squared`.
    """
    weights = totals.sum(axis=-1)
    total = weights.sum(axis=-1)
    share = np.divide(weights, total[..., None], out=np.full(weights.shape, np.nan), where=total[..., None] > 0)
    within = (share * np.nan_to_num(gini_variance(totals))).sum(axis=-1)
    whole = gini_variance(totals.sum(axis=-2))
    return _ratio(whole - within - chance, whole)


def chance_between(totals: FloatArray, squares: FloatArray, scores: FloatArray) -> float:
    """Return the variance between groups that sampling their members alone makes: s² Σ_g w_g (1 − w_g) / n_g.

    w_g is a group's share of the weight, n_g Kish's effective number of its members and s² the variance of a member's
    own mean within groups, pooled. With one answer each and equal weights, η² less this is Kelley's (1935) unbiased
    ε² = 1 − (1 − η²)(n − 1) / (n − G). Members whose answers are expected shares differ by less than answers do, and
    their groups' means by less chance. NaN where no group has two members.

    Args:
        totals: (G, K).
        squares: (G, K, K), Σ t tᵀ over members.
        scores: (K, D) what the options count as: the values as one column, the identity for nominal items.
    """
    known = totals.sum(axis=1) > 0
    totals, squares = totals[known], squares[known]
    weights = totals.sum(axis=1)
    sizes = weights**2 / squares.sum(axis=(1, 2))
    apart = scores - (totals @ scores / weights[:, None])[:, None, :]
    spread = np.einsum("gkd,gkl,gld->g", apart, squares, apart) * (sizes / weights) ** 2
    freedom = float((sizes - 1).sum())
    share = weights / weights.sum()
    return float(spread.sum() / freedom * (share * (1 - share) / sizes).sum()) if freedom > 1e-9 else float("nan")


@dataclass(frozen=True, slots=True)
class DistributionMetric:
    """A measure with what a table needs to know of it. `best` is 1 or 0 where neither end of the range is."""

    name: str
    label: str
    measure: Measure
    higher_is_better: bool | None
    low: float
    high: float
    best: float
    is_for_ordered: bool = False
    is_for_nominal: bool = False
    is_smooth: bool = True

    def applies(self, *, is_ordered: bool) -> bool:
        """Return whether the measure is defined for items of that scale."""
        return not (self.is_for_ordered and not is_ordered) and not (self.is_for_nominal and is_ordered)

    @property
    def signature(self) -> str:
        """The settings that change the number."""
        how = "linearised" if self.is_smooth else "drawn:400"
        return f"{self.name}|weights:survey|interval:{how},95%,clusters:persona|range:{self.low:g}..{self.high:g}"


_INF = float("inf")
METRICS: tuple[DistributionMetric, ...] = (
    DistributionMetric("w1_alignment", "W₁ alignment", w1_alignment, True, 0, 1, 1, is_for_ordered=True),
    DistributionMetric("total_variation", "Total variation", total_variation, False, 0, 1, 0),
    DistributionMetric("js_distance", "Jensen–Shannon distance", js_distance, False, 0, 1, 0),
    DistributionMetric("js_divergence", "Jensen–Shannon divergence, bits", js_divergence, False, 0, 1, 0),
    DistributionMetric("ks_similarity", "KS similarity", ks_similarity, True, 0, 1, 1, is_for_ordered=True),
    DistributionMetric(
        "rank_correlation", "Rank correlation of options", rank_correlation, True, -1, 1, 1, is_smooth=False
    ),
    DistributionMetric("mean_difference", "Shift of the mean", mean_difference, None, -1, 1, 0, is_for_ordered=True),
    DistributionMetric("variance_ratio", "Variance ratio", variance_ratio, None, 0, _INF, 1, is_for_ordered=True),
    DistributionMetric(
        "variance_ratio", "Variance ratio", nominal_variance_ratio, None, 0, _INF, 1, is_for_nominal=True
    ),
    DistributionMetric("entropy_difference", "Entropy difference, bits", entropy_difference, None, -_INF, _INF, 0),
)


def _entropy(p: FloatArray) -> FloatArray:
    logs = np.log2(p, out=np.zeros(p.shape), where=p > 0)
    return np.asarray(-(p * logs).sum(axis=-1))


def _variance(totals: FloatArray, values: FloatArray) -> FloatArray:
    p = shares(totals)
    means = p @ values
    return np.asarray((p * (values - means[..., None]) ** 2).sum(axis=-1))


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    above, below = np.broadcast_arrays(np.asarray(above), np.asarray(below))
    found = np.full(above.shape, np.nan)
    np.divide(above, below, out=found, where=below > 1e-15)
    return found


def _undefined(p: FloatArray, q: FloatArray) -> FloatArray:
    return np.full(np.broadcast_shapes(p.shape, q.shape)[:-1], np.nan)
