"""Response shards → the distinct pairs of texts that an encoder compares, cut into parts of even size. Pure.

Pairs travel in buckets of whole items. Within an item they stand in the order of the rotation that gives the shuffled
floor: response, own reference and the next persona's reference are neighbours, so a part holds whole chains of them,
and a text is encoded in one part only, but for the one or two where an item is longer than a part. Closed items come
first, because their labels recur from item to item. The parts follow from the set of pairs alone: any number of shards
gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from polypersona.metrics.base import TextPair
from polypersona.metrics.bertscore import EncoderChoice
from polypersona.records import Item, digest
from polypersona.references import rotation_place
from polypersona.scoring import Scorer

MAX_BUCKETS = 64
# Of distinct texts, in a part: some hundred answers, seconds of a core. What a killed process loses.
PART_CHARACTERS = 1 << 16
PAIR_SCHEMA = pa.schema(
    [("item", pa.int32()), ("place", pa.string()), ("text", pa.string()), ("reference", pa.string())]
)


@dataclass(frozen=True)
class Buckets:
    """Which bucket each item's pairs go into: ranges of the items in the order of their parts."""

    ranks: Mapping[str, int]
    seed: int

    @classmethod
    def of(cls, items: Iterable[Item], seed: int) -> Buckets:
        """Return the buckets of an instrument."""
        ordered = sorted(items, key=lambda item: (not item.is_closed, item.response_type, item.item_id))
        return cls({item.item_id: rank for rank, item in enumerate(ordered)}, seed)

    @property
    def count(self) -> int:
        """How many there are."""
        return max(1, min(MAX_BUCKETS, len(self.ranks)))

    def collect(self, scorer: Scorer, tables: Iterable[pa.Table]) -> list[pa.Table]:
        """Return the distinct pairs of some shards, one table a bucket."""
        firsts: dict[tuple[int, str, str], str] = {}
        places: dict[str, str] = {}
        for table in tables:
            for item_id, persona_id, text, reference in scorer.compared_texts(table):
                if persona_id not in places:
                    places[persona_id] = rotation_place(persona_id, self.seed)
                key, place = (self.ranks[item_id], text, reference), places[persona_id]
                if place < firsts.get(key, "~"):
                    firsts[key] = place
        rows: list[list[tuple[int, str, str, str]]] = [[] for _ in range(self.count)]
        for (rank, text, reference), place in firsts.items():
            rows[rank * self.count // max(1, len(self.ranks))].append((rank, place, text, reference))
        return [_table(found) for found in rows]


@dataclass
class Packer:
    """Cuts buckets of pairs, given in their order, into parts."""

    _pairs: dict[TextPair, None] = field(default_factory=dict)
    _texts: set[str] = field(default_factory=set)
    _size: int = 0

    def add(self, tables: Sequence[pa.Table]) -> Iterator[list[TextPair]]:
        """Take all tables of the next bucket; yield the parts that are full. A part's pairs are sorted."""
        table = pa.concat_tables(tables)
        grouped = table.group_by(["item", "text", "reference"], use_threads=False).aggregate([("place", "min")])
        ordered = grouped.sort_by([(name, "ascending") for name in ("item", "place_min", "text", "reference")])
        for batch in ordered.select(["text", "reference"]).to_batches(max_chunksize=1 << 12):
            for pair in zip(batch["text"].to_pylist(), batch["reference"].to_pylist(), strict=True):
                if pair in self._pairs:
                    continue
                if self._size + self._growth(pair) > PART_CHARACTERS and self._pairs:
                    yield self.close()
                self._size += self._growth(pair)
                self._texts.update(pair)
                self._pairs[pair] = None

    def close(self) -> list[TextPair]:
        """Return what is left as the last part, empty where nothing is."""
        part = sorted(self._pairs)
        self._pairs, self._texts, self._size = {}, set(), 0
        return part

    def _growth(self, pair: TextPair) -> int:
        return sum(len(text) for text in set(pair) - self._texts)


def part_digest(pairs: Sequence[TextPair]) -> str:
    """Return what names a part: its pairs, so that a part of the same pairs is never redone."""
    return digest(*(text for pair in pairs for text in pair), size=12)


def encoder_digest(encoder: EncoderChoice) -> str:
    """Return what stands for an encoder, its layer and the libraries' versions in the name of a part."""
    return digest(encoder.signature, encoder.identity, size=4)


def _table(rows: Sequence[tuple[int, str, str, str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PAIR_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PAIR_SCHEMA)
