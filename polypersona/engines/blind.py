"""An engine that is not shown who it answers for: the control of every score that a persona could raise.

It asks another engine with one empty card in every persona's place, so prompts are the same but for the card, and
neither attributes nor id can reach an answer. What differs between respondents is then each cell's own draw. Rows keep
the persona they belong to; scored against its reference, a score that does not fall says nothing about the persona.
"""

from __future__ import annotations

from collections.abc import Sequence

from polypersona.engines.base import Answer, Engine, Group, Reproduces
from polypersona.records import Persona

NOBODY = Persona("")


class BlindEngine:
    """Answers with another engine, which is shown an empty card for everybody.

    Args:
        engine: who answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.reproduces: Reproduces = engine.reproduces

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in the order of the groups and of their cells."""
        return self._engine.answer([Group(NOBODY, group.cells) for group in groups])

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.close()
