"""Post-stratification: weights that give a panel the people's composition, as pure functions of profiles.

Raking (iterative proportional fitting; Deming and Stephan 1940) multiplies the profiles' totals until every
demographic's groups have the shares they have among people. It needs no cell of their cross-table, so a panel of few
personas can be raked to many demographics. Profiles in no group of a demographic keep their weight for that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polypersona.survey.inference import FloatArray, Moments, kish

IntArray = npt.NDArray[np.int64]
MAX_ROUNDS = 200
TOLERANCE = 1e-9
# A factor beyond this many times the mean is cut: few personas shall not speak for everybody.
MAX_FACTOR = 8.0


@dataclass(frozen=True, slots=True)
class Raked:
    """Factors by profile, how far the margins still are from the target (largest difference of shares), and their cost.

    `design_effect` is 1 + CV² of the factors over the panel's weight (Kish 1965): by how much they widen an interval
    where the groups do not differ.
    """

    factors: FloatArray
    distance: float
    design_effect: float


def rake(panel: FloatArray, people: FloatArray, members: IntArray) -> Raked:
    """Return the factors that give the panel the people's margins.

    Args:
        panel: (profiles,) total weight of personas.
        people: (profiles,) total weight of respondents.
        members: (profiles, demographics) the group of each profile; negative is none.
    """
    factors = np.ones(len(panel))
    for _ in range(MAX_ROUNDS):
        before = factors.copy()
        for groups in members.T:
            _fit(factors, panel, people, groups)
        if np.abs(factors - before).max(initial=0.0) < TOLERANCE:
            break
    factors = _trimmed(factors, panel)
    distance = max((_distance(panel * factors, people, groups) for groups in members.T), default=0.0)
    total = float(panel.sum())
    effective = kish(float((panel * factors).sum()), float((panel * factors**2).sum()))
    return Raked(factors, distance, total / effective if effective > 0 else float("nan"))


def reweighted(moments: Moments, factors: FloatArray) -> Moments:
    """Return an item's moments by profile with each profile's weights multiplied."""
    return Moments(
        moments.totals * factors[:, None],
        moments.squares * (factors**2)[:, None, None],
        moments.clusters,
        moments.answers,
    )


def _fit(factors: FloatArray, panel: FloatArray, people: FloatArray, groups: IntArray) -> None:
    """Multiply the factors so that the groups of one demographic have the people's shares."""
    known = groups >= 0
    ours, theirs = _margins(panel * factors, groups), _margins(people, groups)
    # A group that either side lacks cannot be fitted; the others share what is left of it.
    both = (ours > 0) & (theirs > 0)
    if not both.any():
        return
    ratio = np.ones(len(ours))
    ratio[both] = (theirs[both] / theirs[both].sum()) / (ours[both] / ours[both].sum())
    factors[known] *= ratio[groups[known]]


def _trimmed(factors: FloatArray, panel: FloatArray) -> FloatArray:
    """Return the factors with mean 1 and none beyond `MAX_FACTOR`; what is cut goes to all others alike."""
    factors = factors / _mean(factors, panel)
    for _ in range(MAX_ROUNDS):
        if factors.max(initial=0.0) <= MAX_FACTOR * (1 + TOLERANCE):
            break
        factors = np.minimum(factors, MAX_FACTOR)
        factors = factors / _mean(factors, panel)
    return np.asarray(factors)


def _margins(weights: FloatArray, groups: IntArray) -> FloatArray:
    known = groups >= 0
    return np.bincount(groups[known], weights=weights[known], minlength=int(groups.max(initial=-1)) + 1).astype(float)


def _distance(panel: FloatArray, people: FloatArray, groups: IntArray) -> float:
    ours, theirs = _margins(panel, groups), _margins(people, groups)
    if not ours.sum() > 0 or not theirs.sum() > 0:
        return float("nan")
    return float(np.abs(ours / ours.sum() - theirs / theirs.sum()).max(initial=0.0))


def _mean(factors: FloatArray, panel: FloatArray) -> float:
    return float(factors @ panel / panel.sum()) if panel.sum() > 0 else 1.0
