"""Subgroups: which demographic group each respondent and each persona is in, by the same words and bands on both sides.

A *profile* is one combination of all the named demographics. Statistics are kept by profile; a subgroup is a set of
profiles. Knows no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.errors import SurveyError, nearest
from polypersona.records import AttributeValue, Persona
from polypersona.survey.codebook import Demographic
from polypersona.survey.microdata import Survey, whole_number

IntArray: TypeAlias = npt.NDArray[np.int64]
UNKNOWN = -1
NUM_BANDS = 4


@dataclass(frozen=True, slots=True)
class Grouping:
    """One demographic and its groups' labels. `starts` are where bands of a number begin, empty for categories."""

    demographic: Demographic
    labels: tuple[str, ...]
    starts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The column's name."""
        return self.demographic.column

    def place(self, value: AttributeValue | None) -> int:
        """Return the index of a value's group, `UNKNOWN` where it has none. A band may be given as its label."""
        if value is None:
            return UNKNOWN
        number = whole_number(str(value)) if self.starts else None
        if number is not None:
            return int(np.searchsorted(self.starts, number, side="right")) - 1 if number >= self.starts[0] else UNKNOWN
        folded = " ".join(str(value).casefold().split())
        return next((place for place, label in enumerate(self.labels) if label.casefold() == folded), UNKNOWN)


@dataclass(frozen=True, slots=True)
class Profiles:
    """The profiles that occur. `members` (profiles, groupings) has the group of each; rows are in sorted order."""

    groupings: tuple[Grouping, ...]
    members: IntArray
    of_respondent: IntArray
    of_persona: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many profiles there are."""
        return len(self.members)


def build_groupings(survey: Survey, by: Sequence[str]) -> tuple[Grouping, ...]:
    """Return the groupings that `--by` names: a demographic's column or its name on a card.

    A number is cut where the codebook's `bands` begin, else at the humans' weighted quartiles.

    Raises:
        SurveyError: the codebook has no such demographic.
    """
    known = {name: one for one in survey.codebook.demographics for name in (one.attribute, one.column)}
    found = []
    for name in dict.fromkeys(by):
        if name not in known:
            raise SurveyError(
                f"--by names {name!r}, which is no demographic of the codebook.{nearest(name, known)}",
                f"Demographics: {', '.join(one.column for one in survey.codebook.demographics) or 'none'}.",
            )
        one = known[name]
        found.append(_bands(survey, one) if one.is_integer else Grouping(one, one.values))
    return tuple(found)


def build_profiles(survey: Survey, groupings: Sequence[Grouping], personas: Iterable[Persona]) -> Profiles:
    """Return the profiles of respondents and personas.

    A persona whose id is a respondent's is that respondent's twin and has the respondent's groups; others are grouped
    by their attributes.

    Raises:
        SurveyError: no persona has any group of a demographic, so that nothing could be compared by it.
    """
    columns = [[grouping.place(_cell(cell)) for cell in survey.traits[grouping.name]] for grouping in groupings]
    humans = np.array(columns, np.int64).reshape(len(groupings), survey.num_respondents).T
    row_of = {identity: row for row, identity in enumerate(survey.respondent_ids)}
    ids, rows = [], []
    for persona in personas:
        ids.append(persona.persona_id)
        row = row_of.get(persona.persona_id)
        rows.append(humans[row] if row is not None else [_group_of(persona, grouping) for grouping in groupings])
    synthetic = np.array(rows, np.int64).reshape(len(ids), len(groupings))
    notes = _check_known(groupings, synthetic)
    both = np.concatenate([humans, synthetic])
    if not groupings:
        return Profiles((), np.zeros((1, 0), np.int64), np.zeros(len(humans), np.int64), dict.fromkeys(ids, 0))
    members, place = np.unique(both, axis=0, return_inverse=True)
    place = place.reshape(-1)
    of_persona = dict(zip(ids, place[len(humans) :].tolist(), strict=True))
    return Profiles(tuple(groupings), members, place[: len(humans)].astype(np.int64), of_persona, notes)


def _check_known(groupings: Sequence[Grouping], synthetic: IntArray) -> tuple[str, ...]:
    notes = []
    for place, grouping in enumerate(groupings):
        unknown = int((synthetic[:, place] == UNKNOWN).sum())
        if unknown == len(synthetic):
            one = grouping.demographic
            raise SurveyError(
                f"No persona of the run is in a group of {grouping.name!r}: none has the attribute "
                f"{one.attribute!r} with one of {', '.join(grouping.labels)}.",
                "Generate on the respondents' personas (`compare --personas`), recode the panel's attribute with "
                "panel.mapping, or leave it out of --by.",
            )
        if unknown:
            notes.append(f"{unknown:,} of {len(synthetic):,} personas are in no group of {grouping.name}")
    return tuple(notes)


def _group_of(persona: Persona, grouping: Grouping) -> int:
    one = grouping.demographic
    return grouping.place(persona.attributes.get(one.attribute, persona.attributes.get(one.column)))


def _cell(cell: str) -> str | None:
    return cell or None


def _bands(survey: Survey, one: Demographic) -> Grouping:
    cells = survey.traits[one.column]
    numbers = [whole_number(cell) for cell in cells]
    known = np.array([number is not None for number in numbers])
    if not known.any():
        raise SurveyError(f"No respondent has a number in {one.column!r}.", "Leave it out of --by.")
    values = np.array([number for number in numbers if number is not None], np.int64)
    starts = [*one.bands] or _quartiles(values, survey.weights[known])
    labels = [f"{start}–{end - 1}" if end - 1 > start else str(start) for start, end in pairwise(starts)]
    return Grouping(one, (*labels, f"{starts[-1]} or more"), tuple(starts))


def _quartiles(values: IntArray, weights: npt.NDArray[np.float64]) -> list[int]:
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    cuts = [int(values[order][np.searchsorted(share, quarter / NUM_BANDS)]) for quarter in range(1, NUM_BANDS)]
    return sorted({int(values.min()), *cuts})
