"""Personas → JSON Lines in this project's own shape, which `sources.read_personas` reads back to equal personas."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from polypersona.panel.sources import Reading
from polypersona.records import Persona


def render_sampled(personas: Iterable[Persona]) -> bytes:
    """Return sampled personas; every row says that it is synthetic."""
    return _render(personas, {"synthetic": True})


def render_reading(reading: Reading) -> bytes:
    """Return imported personas; every row names its source file, and the licence and the synthetic mark it has."""
    marks: dict[str, Any] = {"source": reading.location.rsplit("/", 1)[-1]}
    if reading.license:
        marks["license"] = reading.license
    if reading.is_human:
        marks["is_human"] = True
    if reading.is_synthetic:
        marks["synthetic"] = True
    return _render(reading.personas, marks)


def _render(personas: Iterable[Persona], marks: dict[str, Any]) -> bytes:
    lines = (
        json.dumps(
            {
                "persona_id": persona.persona_id,
                "attributes": dict(persona.attributes),
                "text": persona.text,
                "weight": persona.weight,
                **marks,
            },
            ensure_ascii=False,
        )
        for persona in personas
    )
    return "".join(line + "\n" for line in lines).encode()
