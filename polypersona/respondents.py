"""Coded answers of people → examples: a respondent's demographics become the card, real answers the references.

Takes a recipe's `dataset.survey`, gives examples by split. Refused and unasked cells are no examples. Respondents are
divided, so none is in two splits; their weights are kept as sampling weights, by which training weighs an answer. Ids
are hashed and rows ordered by them, so that no row says which line of the file it came from. Knows no file of the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from polypersona.chatml import ShowOptions, render_answer, shown_place
from polypersona.engines.base import Answer
from polypersona.errors import SurveyError, nearest
from polypersona.examples import build_example
from polypersona.panel.rows import read_bytes
from polypersona.recipe_sections import DatasetRecipe, SurveyRecipe
from polypersona.records import Assignment, AttributeValue, Example, Item, Persona, digest
from polypersona.splits import Row, divide
from polypersona.survey.codebook import Codebook, Demographic, codebook_items
from polypersona.survey.microdata import Outcome, Survey, load_human
from polypersona.survey.profiles import Grouping, build_groupings

RESPONDENTS_VERSION = 2


@dataclass(frozen=True, slots=True)
class Respondents:
    """People with their cards, in the order of their hashed ids. `rows` are their places in the survey's file.

    `tuned` and `withheld` are the items that examples teach, and those asked of the held-out only; `groupings` are the
    demographics that a card shows, a number by its bands, at the quartiles where neither recipe nor codebook has any.
    """

    survey: Survey
    personas: tuple[Persona, ...]
    rows: tuple[int, ...]
    tuned: tuple[Item, ...]
    withheld: tuple[Item, ...]
    groupings: tuple[Grouping, ...]


@dataclass(frozen=True, slots=True)
class HumanExamples:
    """Examples by split, and what is no example: answers that are none, by how the cell ended."""

    splits: dict[str, list[Example]]
    outcomes: dict[str, int]


def load_respondents(source: str, settings: SurveyRecipe) -> Respondents:
    """Read the survey and make a persona of each respondent who has a weight above zero.

    Raises:
        SurveyError: data and codebook contradict each other, or an item or attribute is named that is not there.
    """
    assert settings.codebook is not None
    survey = load_human(source, settings.codebook)
    book = survey.codebook
    tuned, withheld = _items(book, settings, survey)
    shown = _shown(book, settings)
    groupings = build_groupings(
        replace(survey, codebook=replace(book, demographics=shown)), [one.column for one in shown]
    )
    people = []
    for row, identity in enumerate(survey.respondent_ids):
        if survey.weights[row] > 0:
            attributes = _card(survey, row, groupings)
            key = digest("respondent", book.title, identity, size=8)
            people.append((key, row, attributes))
    people.sort(key=lambda one: one[0])
    total = sum(float(survey.weights[row]) for _, row, _ in people)
    scale = len(people) / total
    personas = tuple(
        Persona(key, attributes, weight=float(survey.weights[row]) * scale) for key, row, attributes in people
    )
    return Respondents(survey, personas, tuple(row for _, row, _ in people), tuned, withheld, groupings)


def build_splits(people: Respondents, dataset: DatasetRecipe, seed: int, show: ShowOptions) -> HumanExamples:
    """Return the examples of each split; those of withheld items are in the test split alone.

    Raises:
        DatasetError: the respondents cannot be divided by the shares.
    """
    rows: list[Row] = []
    cells: list[tuple[int, Item]] = []
    for place, persona in enumerate(people.personas):
        for item in (*people.tuned, *people.withheld):
            if people.survey.answers[item.item_id].options[people.rows[place]] >= 0:
                rows.append(Row(persona.persona_id, item.item_id, item.domain, item.response_type))
                cells.append((place, item))
    division = divide(rows, dataset.splits, "persona", seed)
    withheld = {item.item_id for item in people.withheld}
    splits = {
        split: [
            _example(people, place, item, show)
            for place, item in (cells[number] for number in getattr(division, split))
            if split == "test" or item.item_id not in withheld
        ]
        for split in ("train", "validation", "test")
    }
    return HumanExamples(splits, _outcomes(people))


def survey_content(source: str, settings: SurveyRecipe, people: Respondents) -> dict[str, Any]:
    """Return what the examples follow from, besides the recipe's keys: the file's and the codebook's hashes."""
    assert settings.codebook is not None
    return {
        "survey.hash": hash_file(source),
        "survey.codebook_hash": hash_file(settings.codebook),
        "survey.respondents": len(people.personas),
        "respondents_version": RESPONDENTS_VERSION,
        **{f"survey.shown.{item.item_id}": item.shown for item in (*people.tuned, *people.withheld) if item.shown},
    }


def hash_file(location: str) -> str:
    """Return the hash by which `survey_content` knows a survey's file or codebook again, wherever it lies."""
    return hashlib.blake2b(read_bytes(location), digest_size=16).hexdigest()


def _items(book: Codebook, settings: SurveyRecipe, survey: Survey) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    items = {item.item_id: item for item in codebook_items(book)}
    usable = {name: item for name, item in items.items() if name in survey.answers and item.is_closed}
    for key, names in (("items", settings.items), ("withheld", settings.withheld)):
        for name in names:
            if name not in usable:
                why = "is no closed item" if name in items else "is not in the codebook"
                raise SurveyError(
                    f"dataset.survey.{key}: {name!r} {why}.{nearest(name, usable)}", f"Items are {', '.join(usable)}."
                )
    if both := sorted(set(settings.items) & set(settings.withheld)):
        raise SurveyError(f"dataset.survey: {both[0]!r} is both tuned on and withheld.", "Name it in one list only.")
    tuned = [usable[name] for name in settings.items or usable if name not in settings.withheld]
    return tuple(tuned), tuple(usable[name] for name in settings.withheld)


def _shown(book: Codebook, settings: SurveyRecipe) -> tuple[Demographic, ...]:
    """Return the demographics of a card, with the recipe's bands in place of the codebook's."""
    by_name = {name: one for one in book.demographics for name in (one.attribute, one.column)}
    for key, names in (("attributes", settings.attributes), ("bands", list(settings.bands))):
        for name in names:
            if name not in by_name:
                raise SurveyError(
                    f"dataset.survey.{key}: the codebook has no demographic {name!r}.{nearest(name, by_name)}",
                    f"Demographics are {', '.join(one.attribute for one in book.demographics)}.",
                )
    bands = {by_name[name].column: tuple(starts) for name, starts in settings.bands.items()}
    for column in bands:
        if not by_name[column].is_integer:
            raise SurveyError(f"dataset.survey.bands: {column!r} is no number.", "Leave it out.")
    chosen = [by_name[name] for name in settings.attributes] if settings.attributes else list(book.demographics)
    return tuple(replace(one, bands=bands.get(one.column, one.bands)) for one in dict.fromkeys(chosen))


def _card(survey: Survey, row: int, groupings: Sequence[Grouping]) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for grouping in groupings:
        one = grouping.demographic
        cell = survey.traits[one.column][row]
        if not cell or cell in survey.codebook.not_asked:
            continue
        if one.bands:
            place = grouping.place(cell)
            found[one.attribute] = grouping.labels[place] if place >= 0 else f"under {one.bands[0]}"
        else:
            found[one.attribute] = int(float(cell)) if one.is_integer else cell
    return found


def _example(people: Respondents, place: int, item: Item, show: ShowOptions) -> Example:
    persona = people.personas[place]
    chosen = people.survey.answers[item.item_id].options[people.rows[place]]
    code = people.survey.codebook.question(item.item_id).codes[chosen]
    option = item.codes.index(code)
    text = render_answer(item.options[option], "", show, shown_place(option, item.shown or None))
    assignment = Assignment(persona.persona_id, item.item_id).assignment_id
    answer = Answer(assignment, text, "complete", code=code, label=item.options[option])
    example = build_example(persona, item, answer, show)
    metadata = {**example.metadata, "sampling_weight": persona.weight, "is_human": True}
    return replace(example, metadata=metadata)


def _outcomes(people: Respondents) -> dict[str, int]:
    names = {Outcome.REFUSED: "refused", Outcome.MISSING: "missing", Outcome.NOT_ASKED: "not asked"}
    found = dict.fromkeys(names.values(), 0)
    rows = list(people.rows)
    for item in (*people.tuned, *people.withheld):
        outcomes = people.survey.answers[item.item_id].outcomes[rows]
        for outcome, name in names.items():
            found[name] += int((outcomes == outcome).sum())
    return found
