"""Response shards → the distinct pairs of texts that an encoder compares, cut into parts of even size. Pure.

What the pairs are, and their order, is their source's (`reference_pairs`, `card_pairs`): pairs that share a text stand
near each other there, so a part holds whole chains of them, and a text is encoded in one part only, but for those at a
cut. The pairs travel in buckets, which are ranges of that order. The parts follow from the set of pairs alone: any
number of shards gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import pyarrow as pa

from polypersona.metrics.base import TextPair
from polypersona.metrics.text_pairs import Comparison
from polypersona.records import digest

MAX_BUCKETS = 64
# Of distinct texts, in a part: some hundred answers, seconds of a core. What a killed process loses.
PART_CHARACTERS = 1 << 16
PAIR_SCHEMA = pa.schema(
    [("rank", pa.int32()), ("place", pa.string()), ("text", pa.string()), ("reference", pa.string())]
)


class Placed(NamedTuple):
    """A pair of texts and where it stands: by rank, then by place, then by the texts. A pair may stand in several."""

    rank: int
    place: str
    texts: TextPair


class PairSource(Protocol):
    """Which pairs of texts responses hold, and in which order. Picklable; the same in every process."""

    @property
    def columns(self) -> Sequence[str]:
        """What is read of a file of responses."""

    @property
    def num_ranks(self) -> int:
        """Ranks go from 0 to one less."""

    def place(self, tables: Iterable[pa.Table]) -> Iterator[Placed]:
        """Yield the pairs of some shards in any order, as often as they occur."""


def num_buckets(source: PairSource) -> int:
    """Return into how many buckets a source's pairs go."""
    return max(1, min(MAX_BUCKETS, source.num_ranks))


def collect(source: PairSource, tables: Iterable[pa.Table]) -> list[pa.Table]:
    """Return the distinct pairs of some shards, one table a bucket."""
    firsts: dict[tuple[int, TextPair], str] = {}
    for rank, place, texts in source.place(tables):
        if place < firsts.get((rank, texts), "~"):
            firsts[rank, texts] = place
    count = num_buckets(source)
    rows: list[list[tuple[int, str, str, str]]] = [[] for _ in range(count)]
    for (rank, texts), place in firsts.items():
        rows[rank * count // max(1, source.num_ranks)].append((rank, place, *texts))
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
        grouped = table.group_by(["rank", "text", "reference"], use_threads=False).aggregate([("place", "min")])
        ordered = grouped.sort_by([(name, "ascending") for name in ("rank", "place_min", "text", "reference")])
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


def comparison_digest(comparison: Comparison) -> str:
    """Return what stands for an encoder, what is compared and the libraries' versions in the name of a part."""
    return digest(comparison.signature, comparison.identity, size=4)


def _table(rows: Sequence[tuple[int, str, str, str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PAIR_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PAIR_SCHEMA)
