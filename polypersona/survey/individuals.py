"""Person by person: how well an answer meets the answer of the same human, and how well demographics alone would do.

Accuracy and r are Twin-2K-500's (Toubia et al. 2025). The demographic back-off predicts a respondent from the other
respondents of the same profile, and from fewer demographics where those are few. Pure functions of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.survey.inference import Z_95, Interval

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

MIN_CELL = 10  # respondents whom a back-off cell needs beside the one it predicts


def accuracy(human: FloatArray, synthetic: FloatArray) -> float:
    """Return 1 − mean|h − s| / (max − min over both) of pairs (Toubia et al. 2025). In [0, 1], higher is better.

    Unweighted. NaN for no pair, or where all answers of both are one value. It rewards answers near the middle, so
    read it beside its shuffled floor.
    """
    if not len(human):
        return math.nan
    span = max(human.max(), synthetic.max()) - min(human.min(), synthetic.min())
    return float(1 - np.abs(human - synthetic).mean() / span) if span > 0 else math.nan


def correlation(human: FloatArray, synthetic: FloatArray) -> float:
    """Return Pearson's r of pairs. In [−1, 1], higher is better; NaN for fewer than two or where one does not vary."""
    if len(human) < 2:
        return math.nan
    x, y = human - human.mean(), synthetic - synthetic.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


@dataclass(frozen=True, slots=True)
class PairSums:
    """Exact sums over the pairs of one item and group; every score of pairs follows from them.

    `h` and `s` are codes. The last three are Σ over personas of d², d·n and n², where d and n are a persona's sum of
    |h − s| and number of pairs.
    """

    n: int
    personas: int
    absolute: int
    equal: int
    h: int
    s: int
    hh: int
    ss: int
    hs: int
    dd: int
    dn: int
    nn: int

    @property
    def correlation(self) -> float:
        """Pearson's r."""
        if self.n < 2:
            return math.nan
        covariance = self.n * self.hs - self.h * self.s
        scale = (self.n * self.hh - self.h**2) * (self.n * self.ss - self.s**2)
        return covariance / math.sqrt(scale) if scale > 0 else math.nan

    def accuracy(self, span: float) -> Interval:
        """Return the accuracy with an interval clustered by persona; `span` is max − min over both."""
        if not self.n or span <= 0:
            return Interval(math.nan, math.nan, math.nan, math.nan)
        mean = self.absolute / self.n
        value = 1 - mean / span
        if self.personas < 2:
            return Interval(value, math.nan, math.nan, math.nan)
        squares = self.dd - 2 * mean * self.dn + mean * mean * self.nn
        error = math.sqrt(max(squares, 0.0) * self.personas / (self.personas - 1)) / self.n / span
        return Interval(value, max(0.0, value - Z_95 * error), min(1.0, value + Z_95 * error), error)

    def spread(self, which: str) -> float:
        """Return the standard deviation (ddof = 1) of one side's codes: `h` or `s`."""
        total, squares = (self.h, self.hh) if which == "h" else (self.s, self.ss)
        return math.sqrt(max(0.0, (squares - total * total / self.n) / (self.n - 1))) if self.n > 1 else math.nan


def shuffled_accuracy(p: FloatArray, q: FloatArray, values: FloatArray, span: float) -> float:
    """Return the mean accuracy over all permutations of the pairs' synthetic answers: 1 − E|v_i − v_j| / span. Exact.

    `p` and `q` (K,) are how many of the pairs' answers on either side are each option, unweighted as `accuracy` is. The
    floor of `accuracy`; r has the floor 0.
    """
    gaps = np.abs(values[:, None] - values[None, :])
    return (
        float(1 - (p / p.sum()) @ gaps @ (q / q.sum()) / span) if span > 0 and p.sum() > 0 and q.sum() > 0 else math.nan
    )


def agreement_matrix(values: FloatArray, *, is_ordered: bool) -> FloatArray:
    """Return how well option l meets option k, shape (K, K): 1 − |v_k − v_l|/range, or equality for a nominal item."""
    if not is_ordered or values.max() == values.min():
        return np.eye(len(values))
    return np.asarray(1 - np.abs(values[:, None] - values[None, :]) / (values.max() - values.min()))


def back_off(
    counts: FloatArray, ladder: Sequence[IntArray], minimum: int = MIN_CELL, *, leave_one_out: bool = True
) -> FloatArray:
    """Return the distribution that demographics alone predict for each profile and own answer, shape (G, K, K).

    Entry (g, k, :) is the share of answers among the *other* respondents (leave one out) in the finest cell of
    profile g that has at least `minimum` of them: the profile itself, then the cells of the ladder, at last everybody.
    Backing off as in Katz (1987). NaN where nobody else answered.

    Args:
        counts: (G, K) respondents by profile and answer, unweighted.
        ladder: from fine to coarse, the cell (a number) of every profile.
        minimum: respondents a cell needs.
        leave_one_out: whether the one to predict is among the counted.
    """
    num_profiles, num_options = counts.shape
    own = np.eye(num_options)[None] * leave_one_out
    found = np.full((num_profiles, num_options, num_options), np.nan)
    is_open = np.ones((num_profiles, num_options), dtype=bool)
    steps = [*ladder, np.zeros(num_profiles, np.int64)]
    for place, cells in enumerate(steps):
        totals = np.zeros((int(cells.max(initial=0)) + 1, num_options))
        np.add.at(totals, cells, counts)
        others = np.clip(totals[cells][:, None, :] - own, 0.0, None)
        sizes = others.sum(axis=-1)
        wanted = 1 if place == len(steps) - 1 else minimum
        here = is_open & (sizes >= wanted)
        found[here] = others[here] / sizes[here][:, None]
        is_open &= ~here
    return found


def predicted_agreement(counts: FloatArray, weights: FloatArray, predicted: FloatArray, match: FloatArray) -> float:
    """Return the mean agreement of respondents with a draw from what is predicted. In [0, 1], higher is better.

    Args:
        counts: (G, K) respondents; those without a prediction are left out.
        weights: (G, K) their total weights.
        predicted: (G, K, L), or (G, 1, L) where it does not depend on the own answer.
        match: (K, L) from `agreement_matrix`.
    """
    expected = np.einsum("gkl,kl->gk", np.broadcast_to(predicted, (*counts.shape, match.shape[1])), match)
    known = (counts > 0) & ~np.isnan(expected)
    total = weights[known].sum()
    return float((weights[known] * expected[known]).sum() / total) if total > 0 else math.nan
