"""How near predicted shares come to those of respondents who were held out, item by item and subgroup by subgroup.

A prediction is a share of each option for each held-out respondent; a subgroup's is their weighted mean. Beside it
stand what a table of the training respondents would have said, and how near the held-out come to themselves. Pure
functions of a survey; cells of fewer than `MIN_CELL` people are left out and counted. Knows no run and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.records import digest
from polypersona.survey.cells import MIN_CELL
from polypersona.survey.distribution import w1_alignment
from polypersona.survey.microdata import Survey
from polypersona.survey.profiles import UNKNOWN, Grouping, groups_of

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

# What every prediction is judged beside: no knowledge, the training respondents all together, those of the subgroup,
# a random half of the held-out against the other, and the same for the whole sample.
BASELINES = ("uniform", "marginal", "subgroup_marginal", "halves_of_holdout", "halves_of_sample")


@dataclass(frozen=True, slots=True)
class HoldoutCell:
    """One item in one subgroup. `n` are the held-out people who answered; `alignment` is by predictor."""

    item_id: str
    by: str
    group: str
    n: int
    alignment: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Holdout:
    """All cells that may be shown, and how many are too small."""

    cells: tuple[HoldoutCell, ...]
    num_hidden: int

    def mean(self, predictor: str, items: Sequence[str]) -> float:
        """Return a predictor's mean alignment over the cells of these items; NaN where there is none."""
        found = [cell.alignment[predictor] for cell in self.cells if cell.item_id in items]
        return float(np.mean(found)) if found else float("nan")


def compare_holdout(
    survey: Survey,
    groupings: Sequence[Grouping],
    items: Sequence[str],
    held_out: BoolArray,
    predictions: Mapping[str, Mapping[str, FloatArray]],
) -> Holdout:
    """Return the alignment 1 − W₁ / range of every predictor with the held-out, by item and subgroup.

    Args:
        survey: all respondents.
        groupings: by which demographics.
        items: ids of closed items.
        held_out: which respondents the predictions are for, shape (N,); the others trained.
        predictions: by predictor and item, the shares of the options for each respondent, shape (N, K); rows of people
            who are not held out are not read.
    """
    halves = _half_of(survey, held_out), _half_of(survey, np.ones(survey.num_respondents, bool))
    cells, num_hidden = [], 0
    for item_id in items:
        answers, question = survey.answers[item_id], survey.codebook.question(item_id)
        values = np.array(question.values)
        is_answered = answers.is_answered
        for by, group, members in _groups(survey, groupings):
            own = members & is_answered & held_out
            if own.sum() < MIN_CELL:
                num_hidden += 1
                continue
            human = _totals(survey, item_id, own)
            pairs = {
                "uniform": (np.ones_like(human), human),
                "marginal": (_totals(survey, item_id, ~held_out), human),
                "subgroup_marginal": (_totals(survey, item_id, ~held_out & members), human),
                "halves_of_holdout": tuple(_totals(survey, item_id, own & part) for part in (halves[0], ~halves[0])),
                "halves_of_sample": tuple(_totals(survey, item_id, members & part) for part in (halves[1], ~halves[1])),
            }
            for name, shares in predictions.items():
                pairs[name] = (survey.weights[own] @ shares[item_id][own], human)
            found = {name: float(w1_alignment(p, q, values)) for name, (p, q) in pairs.items()}
            cells.append(HoldoutCell(item_id, by, group, int(own.sum()), found))
    return Holdout(tuple(cells), num_hidden)


def _groups(survey: Survey, groupings: Sequence[Grouping]) -> Iterator[tuple[str, str, BoolArray]]:
    for grouping in groupings:
        places = groups_of(survey, grouping)
        for place, label in enumerate(grouping.labels):
            if place != UNKNOWN:
                yield grouping.name, label, places == place


def _totals(survey: Survey, item_id: str, chosen: BoolArray) -> FloatArray:
    """Return the weights of those among the chosen who took each option, shape (K,)."""
    options = survey.answers[item_id].options
    kept = chosen & (options >= 0)
    size = len(survey.codebook.question(item_id).codes)
    return np.bincount(options[kept], weights=survey.weights[kept], minlength=size).astype(np.float64)


def _half_of(survey: Survey, chosen: BoolArray) -> BoolArray:
    """Return a random half of the chosen respondents, a function of their ids."""
    rows = np.flatnonzero(chosen)
    seed = int(digest("holdout", *(survey.respondent_ids[row] for row in rows)), 16)
    half = np.zeros(len(chosen), bool)
    half[np.random.default_rng(seed).permutation(rows)[: len(rows) // 2]] = True
    return half
