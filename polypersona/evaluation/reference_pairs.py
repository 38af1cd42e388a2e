"""The pairs of BERTScore: responses with their own reference, and with the shuffled floor's.

They stand by items, closed ones first, because their labels recur from item to item; within an item in the order of the
rotation that gives the floor: response, own reference and the next persona's reference are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from polypersona.evaluation.pairs import Placed
from polypersona.references import rotation_place
from polypersona.scoring import COLUMNS, Scorer, Settings


@dataclass(frozen=True)
class ReferencePairs:
    """The pairs that `Scorer` compares with these settings."""

    settings: Settings

    @property
    def columns(self) -> Sequence[str]:
        return COLUMNS

    @property
    def num_ranks(self) -> int:
        return len(self._ranks)

    def place(self, tables: Iterable[pa.Table]) -> Iterator[Placed]:
        scorer, places = Scorer.build(self.settings), dict[str, str]()
        for table in tables:
            for item_id, persona_id, text, reference in scorer.compared_texts(table):
                if persona_id not in places:
                    places[persona_id] = rotation_place(persona_id, self.settings.seed)
                yield Placed(self._ranks[item_id], places[persona_id], (text, reference))

    @cached_property
    def _ranks(self) -> Mapping[str, int]:
        items = self.settings.items.values()
        ordered = sorted(items, key=lambda item: (not item.is_closed, item.response_type, item.item_id))
        return {item.item_id: rank for rank, item in enumerate(ordered)}
