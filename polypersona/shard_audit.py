"""The audit of one shard: its files are what was committed, and its rows are the assignments that it has in the plan.

Takes the ledger, names and hashes, gives counts and what is wrong. Works on columns; a table is in memory only while
its shard is looked at. Knows no event log and no other shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polypersona.errors import PolypersonaError, StorageError
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, Shard, item_key, quarantine_name, shard_name
from polypersona.records import encode_parts
from polypersona.shardfile import QUARANTINE_SCHEMA, Footer, content_hash, file_hash, read_shard
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory

MAX_SHOWN = 5
Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class ShardAudit:
    """What an audit of one shard found.

    Attributes:
        number: the shard.
        problems: what is wrong; empty where nothing is.
        committed, quarantined: rows there are.
        not_asked: the part of `committed` whose question routing left out.
        quarantine: the name of the quarantine file that counts, whether it is there or not.
        is_recorded: whether an event tells the hash of the response file.
        ids: the ids of the rows, eight bytes each, computed from their five parts.
    """

    number: int
    problems: list[str] = field(default_factory=list)
    committed: int = 0
    quarantined: int = 0
    not_asked: int = 0
    quarantine: str = ""
    is_recorded: bool = False
    ids: bytes = b""


@dataclass(frozen=True, slots=True)
class Auditor:
    """Audits the shards of one run; threads may share it.

    Args:
        run: the run directory.
        ledger: the run's plan.
        fingerprint: the run's.
        hashes: the hashes of files that were committed, by folder, shard and round.
        quarantine: the names of the files in `quarantine/`.
        shard_cells: the planned assignments of each shard, where not every persona is asked every item; empty where the
            ledger alone tells them, None where nothing does.
    """

    run: RunDirectory
    ledger: Ledger
    fingerprint: str
    hashes: Mapping[tuple[str, int, int], Collection[str]]
    quarantine: Collection[str]
    shard_cells: Sequence[int] | None = ()

    def audit(self, number: int) -> ShardAudit:
        """Return what is to be said of a shard whose response file is there."""
        found = ShardAudit(number)
        try:
            self._audit(number, found)
        except PolypersonaError as error:
            found.problems.append(error.message)
        return found

    def _audit(self, number: int, found: ShardAudit) -> None:
        name = shard_name(number, self.fingerprint)
        table, footer = self._read(f"{RESPONSES}/{name}", RESPONSE_SCHEMA, number, found)
        tables = [table]
        held = found.quarantine = f"{QUARANTINE}/{quarantine_name(number, self.fingerprint, footer.round)}"
        if held in self.quarantine:
            failed, other = self._read(held, QUARANTINE_SCHEMA, number, found)
            if _counts(other) != _counts(footer):
                found.problems.append(f"{held} was not written with {RESPONSES}/{name}: its counts differ.")
            tables.append(failed)
        found.committed, found.quarantined = table.num_rows, sum(part.num_rows for part in tables[1:])
        if (footer.committed, footer.quarantined) != (found.committed, found.quarantined) or not footer.is_balanced:
            found.problems.append(
                f"{name} has {found.committed:,} responses and {found.quarantined:,} quarantined rows; it was "
                f"committed with {footer.committed:,} and {footer.quarantined:,} of {footer.planned:,}."
            )
        planned = self._planned(number, footer)
        if footer.planned != planned:
            found.problems.append(f"Shard {number} holds {footer.planned:,} assignments; {planned:,} are planned.")
        parts = [
            part
            for part, schema in zip(tables, (RESPONSE_SCHEMA, QUARANTINE_SCHEMA), strict=False)
            if part.schema.equals(schema, check_metadata=False)
        ]
        if len(parts) < len(tables):
            return
        found.not_asked = _count(table.column("disposition"), "not_asked")
        self._check_rows(name, number, pa.concat_tables([part.select(RESPONSE_SCHEMA.names) for part in parts]), found)

    def _planned(self, number: int, footer: Footer) -> int:
        if self.shard_cells is None:
            return footer.planned
        return self.shard_cells[number] if self.shard_cells else self.ledger.num_shard_cells(number)

    def _read(self, where: str, schema: pa.Schema, number: int, found: ShardAudit) -> tuple[pa.Table, Footer]:
        """Return a file's table and footer; note where it is not what it says, or not what was committed."""
        data = self.run.read(where)
        table, footer = read_shard(data, where)
        folder = where.partition("/")[0]
        hashes = self.hashes.get((folder, number, footer.round), ())
        is_known = file_hash(data) in hashes
        if folder == RESPONSES:
            found.is_recorded = bool(hashes)
        if hashes and not is_known:
            found.problems.append(f"{where} is not the file that was committed: its hash differs.")
        if not is_known:
            _refuse_invalid(table, where)
        if not table.schema.equals(schema, check_metadata=False):
            found.problems.append(f"{where} has another schema.")
        elif content_hash(table) != footer.content_hash:
            found.problems.append(f"{where} holds other rows than it was written with: its content hash differs.")
        if (footer.shard, footer.fingerprint) != (number, self.fingerprint):
            found.problems.append(f"{where} says it is shard {footer.shard} of {footer.fingerprint}.")
        return table, footer

    def _check_rows(self, name: str, number: int, table: pa.Table, found: ShardAudit) -> None:
        """Each row's id is that of its own five parts, and the rows are those that are planned."""
        rows = _Rows.of(table)
        digests = rows.digests()
        found.ids = b"".join(digests)
        if wrong := _num_different(table.column("assignment_id"), found.ids, digests):
            found.problems.append(
                f"{name} has {wrong:,} rows whose id is not that of their persona, item, wave and draw."
            )
        if _count(table.column("shard"), number) < table.num_rows:
            found.problems.append(f"{name} has rows of another shard.")
        found.problems += self._check_plan(name, number, rows)

    def _check_plan(self, name: str, number: int, rows: _Rows) -> Iterator[str]:
        """Yield what is wrong unless the rows are of as many personas as planned, each with the cells of its layer."""
        shard = self.ledger.shard(number)
        box = self.ledger.layers[shard.layer].box
        parts = [(self.ledger.slots(shard.layer, begin), end - begin) for begin, end in _pieces(self.ledger, shard)]
        planned = {(box.items[slot.item], slot.wave, slot.draw) for slots, _ in parts for slot in slots}
        there = {(item_key(item, variant), wave, draw) for item, variant, wave, draw in rows.kinds}
        if strange := {key for key, _, _ in there} - {key for key, _, _ in planned}:
            yield f"{name} has rows of items that are not planned: {shown(strange)}."
        if any(key not in strange for key, _, _ in there - planned):
            yield f"{name} has rows of waves or draws that are not planned."
        sizes = rows.persona_sizes()
        if sizes.total() != shard.end - shard.begin:
            yield f"{name} has rows of {sizes.total():,} personas; {shard.end - shard.begin:,} are planned."
        elif self.shard_cells == ():
            due: Counter[int] = Counter()
            for slots, count in parts:
                due[len(slots)] += count
            if sizes != due:
                yield f"{name} has personas with more or fewer assignments than are planned for them."


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows as two numbers each: whose they are, and of which kind (item, variant, wave, draw)."""

    personas: Sequence[str]
    kinds: Sequence[tuple[Any, ...]]
    persona: Integers
    kind: Integers

    @classmethod
    def of(cls, table: pa.Table) -> _Rows:
        personas, persona = _coded(table.column("persona_id"))
        values, kind = _coded(table.column("item_id"))
        kinds: list[tuple[Any, ...]] = [(value,) for value in values]
        for part in ("variant", "wave", "draw"):
            values, codes = _coded(table.column(part))
            places = kind * len(values) + codes
            combined, kind = np.unique(places, return_inverse=True) if len(values) > 1 else (range(len(kinds)), places)
            kinds = [(*kinds[place // len(values)], values[place % len(values)]) for place in map(int, combined)]
        return cls(personas, kinds, persona, kind)

    def persona_sizes(self) -> Counter[int]:
        """Return how many personas have how many rows."""
        return Counter(np.unique(self.persona, return_counts=True)[1].tolist())

    def digests(self) -> list[bytes]:
        """Return `Assignment.assignment_id` of each row as bytes, with what rows have in common hashed once."""
        begun = [hashlib.blake2b(encode_parts(persona), digest_size=8).copy for persona in self.personas]
        ends = [encode_parts(*kind) for kind in self.kinds]
        digests = []
        for persona, kind in zip(self.persona.tolist(), self.kind.tolist(), strict=True):
            state = begun[persona]()
            state.update(ends[kind])
            digests.append(state.digest())
        return digests


def shown(names: Iterable[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_SHOWN:,} more" if len(ordered) > MAX_SHOWN else ""
    return ", ".join(ordered[:MAX_SHOWN]) + more


def _pieces(ledger: Ledger, shard: Shard) -> list[tuple[int, int]]:
    """Return the shard's personas in pieces within which all have the same cells."""
    borders = {layer.box.personas for layer in ledger.layers[: shard.layer]}
    ends = [*sorted(border for border in borders if shard.begin < border < shard.end), shard.end]
    return list(zip([shard.begin, *ends], ends, strict=False))


def _counts(footer: Footer) -> tuple[int, int, int, int]:
    return footer.round, footer.planned, footer.committed, footer.quarantined


def _count(column: pa.ChunkedArray, value: object) -> int:
    return int(pc.sum(pc.equal(column, value)).as_py() or 0)


def _coded(column: pa.ChunkedArray) -> tuple[list[Any], Integers]:
    """Return the different values of a column, and each row's place among them."""
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return [], np.array([], dtype=np.int64)
    values = chunks[0].dictionary.to_pylist()
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks])
    return list(places), np.array([places[value] for value in values], dtype=np.int64)[codes]


def _num_different(column: pa.ChunkedArray, ids: bytes, digests: Sequence[bytes]) -> int:
    """Return how many of the ids in a column, which are hexadecimal, are others than those given."""
    own = column.cast(pa.binary())
    if pc.all(pc.equal(pc.binary_length(own), 16)).as_py() and b"".join(own.to_pylist()) == ids.hex().encode():
        return 0
    return sum(1 for own, due in zip(column.to_pylist(), digests, strict=True) if own != due.hex())


def _refuse_invalid(table: pa.Table, where: str) -> None:
    """Refuse values that no writer writes, such as text that is not UTF-8, before they are looked at."""
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise StorageError(f"{where} is damaged: {error}.", "Delete it and run generate again.") from error
