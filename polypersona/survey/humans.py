"""The humans' side of a comparison: moments of each item by profile, random halves, and joint tables of pairs.

Pure functions of a survey and its profiles; no run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.records import digest
from polypersona.survey.alignment import Aligned
from polypersona.survey.association import cramers_v
from polypersona.survey.inference import Moments
from polypersona.survey.microdata import Survey
from polypersona.survey.profiles import Profiles

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

# Random halves of the respondents; of large samples fewer do.
MAX_HALVES, MIN_HALVES, HALVED_CELLS = 40, 8, 400_000
_SEED = "split-half"


@dataclass(frozen=True)
class Humans:
    """Respondents, their profiles, and the items to compare."""

    survey: Survey
    profiles: Profiles
    items: tuple[Aligned, ...]

    def moments(self, item: int) -> Moments:
        """Return an item's moments by profile: each respondent is one cluster of one answer."""
        aligned = self.items[item]
        options, profile, weights = self._answered(item)
        shape = (self.profiles.count, aligned.num_options)
        cells = profile * shape[1] + options
        totals, squares = (
            _sums(cells, values, shape[0] * shape[1]).reshape(shape) for values in (weights, weights * weights)
        )
        count = np.bincount(profile, minlength=shape[0])
        return Moments(totals, squares[:, :, None] * np.eye(shape[1]), count, count)

    def counts(self, item: int) -> FloatArray:
        """Return respondents by profile and option, unweighted, shape (G, K)."""
        options, profile, _ = self._answered(item)
        shape = (self.profiles.count, self.items[item].num_options)
        return np.bincount(profile * shape[1] + options, minlength=shape[0] * shape[1]).reshape(shape).astype(float)

    @cached_property
    def halves(self) -> npt.NDArray[np.bool_]:
        """Whether a respondent is in the first half, by replicate; a function of the ids alone. Shape (R, N)."""
        num = self.survey.num_respondents
        replicates = max(MIN_HALVES, min(MAX_HALVES, HALVED_CELLS // max(num, 1)))
        generator = np.random.default_rng(int(digest(_SEED, *self.survey.respondent_ids), 16))
        first = np.zeros((replicates, num), dtype=bool)
        for replicate in range(replicates):
            first[replicate, generator.permutation(num)[: num // 2]] = True
        return first

    def half_totals(self, item: int) -> FloatArray:
        """Return an item's weighted totals in random halves, shape (R, 2, G, K)."""
        options, profile, weights = self._answered(item)
        is_answered = self.survey.answers[self.items[item].question.item_id].is_answered
        shape = (2, self.profiles.count, self.items[item].num_options)
        cells = profile * shape[2] + options
        size = shape[1] * shape[2]
        found = [_sums(cells + np.where(first[is_answered], 0, size), weights, 2 * size) for first in self.halves]
        return np.stack(found).reshape(len(found), *shape)

    def associations(self, num_items: int, chosen: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """Return Cramér's V of all pairs of the first items, among the chosen respondents, shape (I, I)."""
        offsets = np.cumsum([0, *(one.num_options for one in self.items[:num_items])])
        who = np.ones(self.survey.num_respondents, bool) if chosen is None else chosen
        indicators = np.zeros((int(who.sum()), int(offsets[-1])))
        asked = np.zeros((len(indicators), num_items))
        for place in range(num_items):
            options = self.survey.answers[self.items[place].question.item_id].options[who]
            rows = np.flatnonzero(options >= 0)
            indicators[rows, offsets[place] + options[rows]] = 1.0
            asked[rows, place] = 1.0
        weights = self.survey.weights[who][:, None]
        sums, squares = asked.T @ (asked * weights), asked.T @ (asked * weights * weights)
        effective = np.divide(sums * sums, squares, out=np.zeros_like(sums), where=squares > 0)
        return associations_of(indicators.T @ (indicators * weights), offsets, effective)

    def joint_counts(self, num_items: int) -> IntArray:
        """Return how many respondents answered both of each pair of the first items, shape (I, I)."""
        known = [self.survey.answers[one.question.item_id].is_answered for one in self.items[:num_items]]
        answered = np.array(known, float).reshape(num_items, self.survey.num_respondents)
        return np.asarray(answered @ answered.T, dtype=np.int64)

    def _answered(self, item: int) -> tuple[IntArray, IntArray, FloatArray]:
        answers = self.survey.answers[self.items[item].question.item_id]
        kept = answers.is_answered
        return answers.options[kept], self.profiles.of_respondent[kept], self.survey.weights[kept]


def _sums(cells: IntArray, weights: FloatArray, size: int) -> FloatArray:
    return np.asarray(np.bincount(cells, weights=weights, minlength=size), dtype=np.float64)


def associations_of(joint: FloatArray, offsets: IntArray, effective: FloatArray) -> FloatArray:
    """Return Cramér's V of all pairs of items from the joint table of all their options, NaN on the diagonal.

    Args:
        joint: (ΣK, ΣK) weighted counts.
        offsets: where each item's options begin, and their number.
        effective: (items, items) effective sample sizes.
    """
    num = len(offsets) - 1
    found = np.full((num, num), math.nan)
    for a in range(num):
        for b in range(a + 1, num):
            table = joint[offsets[a] : offsets[a + 1], offsets[b] : offsets[b + 1]]
            found[a, b] = found[b, a] = cramers_v(table, float(effective[a, b])) if table.any() else math.nan
    return found


def ladder_of(members: IntArray) -> Sequence[IntArray]:
    """Return the cells of each profile from fine to coarse, dropping the last demographic first."""
    found = []
    for kept in range(members.shape[1], 0, -1):
        _, cells = np.unique(members[:, :kept], axis=0, return_inverse=True)
        found.append(cells.reshape(-1).astype(np.int64))
    return found
