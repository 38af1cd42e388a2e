"""Respondents of human data → personas with their demographics, ids and weights, to generate on the same people."""

from __future__ import annotations

import json

from polypersona.records import AttributeValue, Persona
from polypersona.survey.microdata import Survey, whole_number


def build_personas(survey: Survey) -> tuple[Persona, ...]:
    """Return one persona per respondent, in the data's order.

    Attributes are the demographics under their names on a card; a cell that is empty or means "not asked" leaves its
    attribute out. The persona's id is the respondent's, so a run on these personas can be compared person by person.
    """
    return tuple(
        Persona(identity, _attributes(survey, row), weight=float(survey.weights[row]))
        for row, identity in enumerate(survey.respondent_ids)
        if survey.weights[row] > 0
    )


def render_personas(survey: Survey) -> bytes:
    """Return the personas as JSON Lines in this project's own shape; each says whose data it is made from."""
    marks = {"is_human": True, "source": survey.codebook.source or survey.location, **_license(survey)}
    rows = (
        {
            "persona_id": persona.persona_id,
            "attributes": dict(persona.attributes),
            "text": persona.text,
            "weight": persona.weight,
            **marks,
        }
        for persona in build_personas(survey)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _license(survey: Survey) -> dict[str, str]:
    return {"license": survey.codebook.license} if survey.codebook.license else {}


def _attributes(survey: Survey, row: int) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for one in survey.codebook.demographics:
        cell = survey.traits[one.column][row]
        if cell and cell not in survey.codebook.not_asked:
            number = whole_number(cell) if one.is_integer else None
            found[one.attribute] = cell if number is None else number
    return found
