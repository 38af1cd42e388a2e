"""The respondents whose answers the page shows: all of a small run, a fixed random sample of a large one.

A persona is in the sample if the digest of its id is among the smallest; so the sample is the same whatever the order
of the rows, is found in one pass, and never holds more rows than it shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polypersona.records import digest

SHOWN = ("item", "text", "disposition", "wave", "draw")
MAX_TEXT = 2_000


@dataclass(slots=True)
class Sample:
    """The largest prefix of the personas, in the order of their digests, that keeps within the limits.

    The first persona is always in it; where it alone passes the limit, its first rows are.
    """

    max_personas: int = 300
    max_rows: int = 3_000
    max_characters: int = 1_500_000
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    is_everything: bool = True
    num_rows: int = 0
    _keys: dict[str, str] = field(default_factory=dict)
    _limit: str = ""
    _num_characters: int = 0

    def add(self, table: pa.Table) -> None:
        """Look at some rows, as `tally.stream_rows` gives them, and keep those of sampled personas."""
        wanted = [persona for persona in table["persona_id"].unique().to_pylist() if self._takes(persona)]
        if len(wanted) == 0:
            return
        kept = table.filter(pc.is_in(table["persona_id"], pa.array(wanted, pa.string())))
        for row in kept.select(["persona_id", *SHOWN]).to_pylist():
            self._keep(row)

    def personas(self) -> list[str]:
        """Return the sampled ids in the order of their digests: a random order that does not change."""
        return sorted(self.rows, key=lambda persona: self._keys[persona])

    def _takes(self, persona: str) -> bool:
        key = self._keys.get(persona) or digest("report sample", persona)
        return not self._limit or key < self._limit

    def _keep(self, row: dict[str, Any]) -> None:
        persona = row.pop("persona_id")
        if not self._takes(persona):
            return
        self._keys.setdefault(persona, digest("report sample", persona))
        if len(row["text"]) > MAX_TEXT:
            row["text"] = row["text"][:MAX_TEXT].rstrip() + " […]"
        self.rows.setdefault(persona, []).append(row)
        self.num_rows += 1
        self._num_characters += len(row["text"])
        while self._is_over():
            self._drop()

    def _is_over(self) -> bool:
        return (
            len(self.rows) > self.max_personas
            or self.num_rows > self.max_rows
            or self._num_characters > self.max_characters
        )

    def _drop(self) -> None:
        """Drop the persona with the largest digest; of a single one, its last row."""
        self.is_everything = False
        last = max(self.rows, key=lambda persona: self._keys[persona])
        if len(self.rows) == 1:
            dropped = [self.rows[last].pop()]
        else:
            dropped = self.rows.pop(last)
            self._limit = self._keys.pop(last)
        self.num_rows -= len(dropped)
        self._num_characters -= sum(len(row["text"]) for row in dropped)
