"""The units of a shard: what can be asked alone, without the rest, and what their failure means for their cells.

A unit is a cell; where an interview is one conversation, or where items have gates whose answers decide on others, it
is the interview. Knows cells and attempts; no engine and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polypersona.attempts import Attempts
from polypersona.engines.base import Answer
from polypersona.response_table import AskedCell

Given = tuple[Answer, int]


@dataclass(frozen=True)
class Units:
    """The units of some cells, in the order of their first cells.

    Args:
        cells: a shard's cells, or some of them.
        places: the cells of each unit, as places among `cells`; None where each cell is one.
    """

    cells: Sequence[AskedCell]
    places: Sequence[Sequence[int]] | None = None

    @classmethod
    def of(cls, cells: Sequence[AskedCell], *, by_interview: bool) -> Units:
        """Return the units of cells."""
        if not by_interview:
            return cls(cells)
        groups: dict[tuple[str, int, int], list[int]] = {}
        for place, asked in enumerate(cells):
            groups.setdefault(asked.interview, []).append(place)
        return cls(cells, list(groups.values()))

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(self.cells) if self.places is None else len(self.places)

    def cells_of(self, units: Sequence[int]) -> list[int]:
        """Return the places of the units' cells, in the order of the cells."""
        if self.places is None:
            return list(units)
        return sorted(place for unit in units for place in self.places[unit])

    def complete(self, answered: Mapping[int, Given], attempts: Attempts) -> list[Given]:
        """Return an answer for each cell.

        Args:
            answered: the answers by place; none where the rest is given up.
            attempts: why the other cells have none: a unit is poisoned, or the rest is given up.
        """
        given = dict(answered)
        for found in attempts.poisoned:
            for place in self.cells_of([found.unit]):
                given[place] = _failed(self.cells[place], found.reason, found.tries)
        tries = len(attempts.failures) or len(attempts.load_failures)
        return [
            given[place] if place in given else _failed(asked, attempts.verdict, tries)
            for place, asked in enumerate(self.cells)
        ]


def _failed(asked: AskedCell, reason: str, tries: int) -> Given:
    return Answer(asked.cell.assignment_id, "", "error", error=reason), tries
