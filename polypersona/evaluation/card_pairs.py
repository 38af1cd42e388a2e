"""The pairs of card similarity: answers in words with the respondent's own card, and with the next persona's.

They stand in the order of the rotation that gives the floor, whatever the item: a persona's answers, its card and the
next persona's card are neighbours, so a card is encoded once, not once an item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from polypersona.evaluation.pairs import MAX_BUCKETS, Placed
from polypersona.evaluation.personas import COLUMNS, interviews_of
from polypersona.metrics.card_similarity import CardSimilarity
from polypersona.references import rotation_place

# A bucket of fewer personas would be an object with next to nothing in it.
PERSONAS_PER_BUCKET = 16
_PLACE_DIGITS = 8


@dataclass(frozen=True)
class CardPairs:
    """The pairs that a statistic compares; `seed` is that of its rotation."""

    similarity: CardSimilarity
    seed: int

    @property
    def columns(self) -> Sequence[str]:
        return COLUMNS

    @property
    def num_ranks(self) -> int:
        return max(1, min(MAX_BUCKETS, len(self.similarity.personas) // PERSONAS_PER_BUCKET))

    def place(self, tables: Iterable[pa.Table]) -> Iterator[Placed]:
        items = self.similarity.items
        names = pa.array([items[place].item_id for place in self.similarity.open_items], pa.string())
        for table in tables:
            interviews = interviews_of(table.filter(pc.is_in(table["item_id"].cast(pa.string()), names)), items)
            places = [rotation_place(persona_id, self.seed) for persona_id in interviews.persona_ids]
            ranks = [int(place[:_PLACE_DIGITS], 16) * self.num_ranks >> 4 * _PLACE_DIGITS for place in places]
            for one in self.similarity.compare(interviews):
                for texts in (one.own, one.other):
                    if texts is not None:
                        yield Placed(ranks[one.persona], places[one.persona], texts)
