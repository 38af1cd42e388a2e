"""One item in one subgroup, humans beside the run: what every score of a distribution is computed from.

Knows no file, no response and no table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.survey.alignment import Aligned
from polypersona.survey.distribution import DistributionMetric, shares
from polypersona.survey.humans import Humans
from polypersona.survey.inference import Interval, Moments, Probe
from polypersona.survey.tally import Tally

FloatArray: TypeAlias = npt.NDArray[np.float64]
Row: TypeAlias = dict[str, Any]

MIN_CELL = 5
DRAWS = 400
ALL = "all"


@dataclass(frozen=True)
class Group:
    """A subgroup: the demographic, its label, and which profiles are in it."""

    by: str
    label: str
    members: npt.NDArray[np.bool_]

    @property
    def is_all(self) -> bool:
        """Whether it is everybody."""
        return self.by == ALL


@dataclass(frozen=True)
class Cell:
    """One item in one group, both sides. `everybody` are the moments over all groups, of humans and run."""

    aligned: Aligned
    group: Group
    human: Moments
    synthetic: Moments
    everybody: tuple[Moments, Moments]
    halves: FloatArray
    basis: str

    @property
    def is_shown(self) -> bool:
        """Whether at least `MIN_CELL` people and as many personas answered."""
        return min(self.human.num_clusters, self.synthetic.num_clusters) >= MIN_CELL

    @cached_property
    def values(self) -> FloatArray:
        """What the options count as."""
        return np.array(self.aligned.question.values)

    @cached_property
    def probe(self) -> Probe:
        """Both samples, then uniform, marginal and shuffled floors, then the humans' random halves."""
        human = self.human.totals
        floors = (np.ones_like(human), self.everybody[0].totals, self.everybody[1].totals)
        others = [*((floor, human) for floor in floors), (self.halves[:, 0], self.halves[:, 1])]
        return Probe(self.synthetic, self.human, others)

    def drawn(self, metric: DistributionMetric, value: float) -> Interval:
        """Return the interval of a measure that moves in steps: percentiles over normal draws of both sides' shares.

        A parametric bootstrap from the linearised covariances; the draws are the same in every run.
        """
        generator = np.random.default_rng(0)
        p, q = (_draws(generator, sample) for sample in (self.synthetic, self.human))
        found = metric.measure(p, q, self.values)
        known = found[np.isfinite(found)]
        if known.size < DRAWS / 2:
            return Interval(value, math.nan, math.nan, math.nan)
        low, high = np.percentile(known, (2.5, 97.5))
        return Interval(value, min(float(low), value), max(float(high), value), float(known.std()))

    @property
    def head(self) -> Row:
        """The columns every table begins with."""
        return {
            "item": self.aligned.question.item_id,
            "by": self.group.by,
            "group": self.group.label,
            "n": self.synthetic.num_answers,
            "n_effective": self.synthetic.effective_n,
            "human_n": self.human.num_answers,
            "human_n_effective": self.human.effective_n,
        }


@dataclass
class Comparison:
    """Both sides, aligned. `hidden` counts the cells that are too small to show."""

    humans: Humans
    tally: Tally
    hidden: int = 0
    _moments: dict[int, tuple[Moments, Moments]] = field(default_factory=dict, repr=False)

    @property
    def items(self) -> tuple[Aligned, ...]:
        """The shared items."""
        return self.humans.items

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Everybody, then each group of each demographic."""
        profiles = self.humans.profiles
        found = [Group(ALL, ALL, np.ones(profiles.count, bool))]
        for place, grouping in enumerate(profiles.groupings):
            for index, label in enumerate(grouping.labels):
                found.append(Group(grouping.name, label, profiles.members[:, place] == index))
        return tuple(found)

    def moments(self, item: int) -> tuple[Moments, Moments]:
        """Return an item's moments by profile: humans', run's."""
        if item not in self._moments:
            self._moments[item] = self.humans.moments(item), self.tally.moments(item)
        return self._moments[item]

    def cells(self, item: int) -> Iterator[Cell]:
        """Yield an item's cells, everybody's first; those too small are counted and left out."""
        human, synthetic = self.moments(item)
        halves, basis = self.humans.half_totals(item), self.tally.basis(item)
        everyone = self.groups[0].members
        everybody = human.collapse(everyone), synthetic.collapse(everyone)
        for group in self.groups:
            cell = Cell(
                self.items[item],
                group,
                human.collapse(group.members),
                synthetic.collapse(group.members),
                everybody,
                halves[:, :, group.members].sum(axis=2),
                basis,
            )
            if cell.is_shown:
                yield cell
            else:
                self.hidden += 1


def _draws(generator: np.random.Generator, sample: Moments) -> FloatArray:
    """Return normal draws of a sample's shares, (DRAWS, K), none of them negative."""
    p, covariance = shares(sample.totals[0]), sample.share_covariance
    if not np.isfinite(covariance).all():
        return np.full((DRAWS, len(p)), math.nan)
    values, vectors = np.linalg.eigh(covariance)
    normal = generator.standard_normal((DRAWS, len(p)))
    return np.asarray(np.clip(p + (normal * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T, 0.0, None))
