"""A shard's Parquet files: responses → bytes, and bytes → a checked table.

The bytes are a function of the rows alone: fixed compression, no time, no host. The footer carries what an audit
needs (`synthetic`, the fingerprint, a hash of the content, the counts). Knows no run directory and no engine.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polypersona.errors import StorageError
from polypersona.records import Response
from polypersona.storage import RESPONSE_SCHEMA, SCHEMA_VERSION

QUARANTINE_SCHEMA = RESPONSE_SCHEMA.append(pa.field("reason", pa.string(), nullable=False))
_COLUMNS = tuple(field.name for field in fields(Response))


@dataclass(frozen=True, slots=True)
class Footer:
    """What a shard's file says of itself. `planned` is `committed` + `quarantined`, in both files of the shard."""

    fingerprint: str
    shard: int
    planned: int
    committed: int
    quarantined: int
    content_hash: str = ""

    @property
    def is_balanced(self) -> bool:
        """Whether the counts add up."""
        return self.planned == self.committed + self.quarantined


def build_table(rows: Sequence[Response]) -> pa.Table:
    """Return the rows as a table of `storage.RESPONSE_SCHEMA`."""
    return _table(rows, RESPONSE_SCHEMA, {})


def build_quarantine_table(rows: Sequence[tuple[Response, str]]) -> pa.Table:
    """Return the rows that failed with their reasons, as a table of `QUARANTINE_SCHEMA`."""
    return _table([row for row, _ in rows], QUARANTINE_SCHEMA, {"reason": [reason for _, reason in rows]})


def render_shard(table: pa.Table, footer: Footer) -> bytes:
    """Return the file's bytes. The footer's content hash is filled in here."""
    facts = {
        "schema_version": str(SCHEMA_VERSION),
        "synthetic": "true",
        "fingerprint": footer.fingerprint,
        "shard": str(footer.shard),
        "planned": str(footer.planned),
        "committed": str(footer.committed),
        "quarantined": str(footer.quarantined),
        "content_hash": content_hash(table),
    }
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(facts),
        sink,
        compression="zstd",
        compression_level=3,
        version="2.6",
        data_page_version="1.0",
        use_dictionary=True,
        write_statistics=True,
        row_group_size=1 << 20,
    )
    return sink.getvalue()


def read_shard(data: bytes, where: str) -> tuple[pa.Table, Footer]:
    """Return a file's table and footer; `where` names it in errors.

    Raises:
        StorageError: the bytes are no Parquet file, or its footer is not one of a shard.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{where} is damaged: {error}.", "Delete it and run generate again.") from error
    return table, read_footer(table.schema, where)


def read_footer(schema: pa.Schema, where: str) -> Footer:
    """Return what a shard's file says of itself.

    Raises:
        StorageError: it says nothing, or is of another schema version.
    """
    stored = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = stored.get("schema_version", "none")
    if version != str(SCHEMA_VERSION):
        raise StorageError(
            f"{where} has schema version {version}; this version of polypersona reads {SCHEMA_VERSION}.",
            "Read the run with the version that wrote it.",
        )
    try:
        numbers = {name: int(stored[name]) for name in ("shard", "planned", "committed", "quarantined")}
        return Footer(fingerprint=stored["fingerprint"], content_hash=stored["content_hash"], **numbers)
    except (KeyError, ValueError) as error:
        raise StorageError(
            f"{where} is no shard of a run: its footer lacks a valid {error}.", "Delete it and run generate again."
        ) from error


def content_hash(table: pa.Table) -> str:
    """Return the hex digest of a table's values and column names, whatever their encoding and chunks."""
    state = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        state.update(f"{name}\0{table.num_rows}\0".encode())
        _hash_array(state, _plain(table.column(name)))
    return state.hexdigest()


def file_hash(data: bytes) -> str:
    """Return the hex digest of a file's bytes, as the commit events record it."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _table(rows: Sequence[Response], schema: pa.Schema, extra: Mapping[str, list[str]]) -> pa.Table:
    values: dict[str, Sequence[object]] = {name: [get(row) for row in rows] for name, get in _GETTERS.items()}
    values.update(extra)
    arrays = [_array(values[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, type=kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, type=kind)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pa.concat_arrays([chunk.cast(kind) for chunk in column.chunks]) if column.chunks else pa.array([], kind)


def _hash_array(state: hashlib.blake2b, array: pa.Array) -> None:
    if pa.types.is_list(array.type):
        state.update(_bytes(pc.fill_null(pc.list_value_length(array), -1)))
        _hash_array(state, pc.list_flatten(array))
    elif pa.types.is_string(array.type):
        state.update(_bytes(pc.fill_null(pc.binary_length(array), -1)))
        state.update(b"".join(array.cast(pa.binary()).drop_null().to_pylist()))
    else:
        state.update(_bytes(pc.is_valid(array).cast(pa.int8())))
        state.update(_bytes(pc.fill_null(array, 0)))


def _bytes(array: pa.Array) -> bytes:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).tobytes()


_GETTERS = {name: attrgetter(name) for name in _COLUMNS}
