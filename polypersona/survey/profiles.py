"""Subgroups: which demographic group each respondent and each persona is in, by the same words and bands on both sides.

A *profile* is one combination of all the named demographics. Statistics are kept by profile; a subgroup is a set of
profiles. Knows no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """The profiles that occur. `members` (profiles, groupings) has the group of each; rows are in sorted order.

    `twins` has the row of the respondent whom a persona is the twin of.
    """

    groupings: tuple[Grouping, ...]
    members: IntArray
    of_respondent: IntArray
    of_persona: Mapping[str, int]
    notes: tuple[str, ...] = ()
    twins: Mapping[str, int] = field(default_factory=dict)

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


def build_profiles(survey: Survey, groupings: Sequence[Grouping], personas: Sequence[Persona]) -> Profiles:
    """Return the profiles of respondents and personas.

    A persona whose id is a respondent's is that respondent's twin (`find_twins`) and has the respondent's groups;
    others are grouped by their attributes.

    Raises:
        SurveyError: no persona has any group of a demographic, so that nothing could be compared by it.
    """
    columns = [groups_of(survey, grouping) for grouping in groupings]
    humans = np.array(columns, np.int64).reshape(len(groupings), survey.num_respondents).T
    twins, said = find_twins(survey, personas)
    ids = [persona.persona_id for persona in personas]
    rows = [
        humans[twins[persona.persona_id]]
        if persona.persona_id in twins
        else [_group_of(persona, grouping) for grouping in groupings]
        for persona in personas
    ]
    synthetic = np.array(rows, np.int64).reshape(len(ids), len(groupings))
    notes = (*said, *_check_known(groupings, synthetic))
    if not groupings:
        nowhere = np.zeros(len(humans), np.int64)
        return Profiles((), np.zeros((1, 0), np.int64), nowhere, dict.fromkeys(ids, 0), notes, twins)
    members, place = np.unique(np.concatenate([humans, synthetic]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    of_persona = dict(zip(ids, place[len(humans) :].tolist(), strict=True))
    return Profiles(tuple(groupings), members, place[: len(humans)].astype(np.int64), of_persona, notes, twins)


def groups_of(survey: Survey, grouping: Grouping) -> IntArray:
    """Return each respondent's group, `UNKNOWN` where the cell is empty, means "not asked" or is in none."""
    return np.array([grouping.place(cell) for cell in _cells(survey, grouping.name)], np.int64)


def find_twins(survey: Survey, personas: Sequence[Persona]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the row of the respondent whose id a persona has, by persona, and a sentence for whoever reads scores.

    Ids that two files number alike make no twins: where most of those personas have an attribute that contradicts the
    respondent's demographics, none of them is a twin.
    """
    row_of = {identity: row for row, identity in enumerate(survey.respondent_ids)}
    same = [persona for persona in personas if persona.persona_id in row_of]
    if not same:
        return {}, ()
    is_contradicted = np.zeros(len(same), bool)
    rows = [row_of[persona.persona_id] for persona in same]
    for one in survey.codebook.demographics:
        if not one.is_integer or any(whole_number(cell or "") is not None for cell in _cells(survey, one.column)):
            (grouping,) = build_groupings(survey, [one.column])
            ours = np.array([_group_of(persona, grouping) for persona in same], np.int64)
            theirs = groups_of(survey, grouping)[rows]
            is_contradicted |= (ours != theirs) & (ours != UNKNOWN) & (theirs != UNKNOWN)
    count = int(is_contradicted.sum())
    if 2 * count > len(same):
        said = f"have the id of a respondent, but {count:,} of their cards contradict the respondent: none is a twin"
        return {}, (f"{len(same):,} of {len(personas):,} personas {said}",)
    said = f"{len(same):,} of {len(personas):,} personas are taken as twins of respondents by their id"
    return {persona.persona_id: row for persona, row in zip(same, rows, strict=True)}, (said,)


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


def _cells(survey: Survey, column: str) -> list[str | None]:
    """Return a demographic's cells, None for those that are empty or mean "not asked"."""
    nothing = {"", *survey.codebook.not_asked}
    return [None if cell in nothing else cell for cell in survey.traits[column]]


def _bands(survey: Survey, one: Demographic) -> Grouping:
    numbers = [None if cell is None else whole_number(cell) for cell in _cells(survey, one.column)]
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
