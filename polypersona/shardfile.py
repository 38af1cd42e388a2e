"""A shard's Parquet files: tables → bytes, and bytes → a checked table.

The bytes are a function of the rows alone: fixed compression, no time, no host. The footer carries what an audit
needs (`synthetic`, the fingerprint, a hash of the content, the counts). Knows no run directory and no engine.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polypersona.errors import StorageError
from polypersona.parquet import open_parquet
from polypersona.storage import RESPONSE_SCHEMA, SCHEMA_VERSION

QUARANTINE_SCHEMA = RESPONSE_SCHEMA.append(pa.field("reason", pa.string(), nullable=False))


@dataclass(frozen=True, slots=True)
class Footer:
    """What a shard's file says of itself. `planned` is `committed` + `quarantined`, in both files of the shard.

    `round` counts how often the shard's quarantined rows were tried again; it names the quarantine file that counts.
    """

    fingerprint: str
    shard: int
    planned: int
    committed: int
    quarantined: int
    content_hash: str = ""
    round: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether the counts add up."""
        return self.planned == self.committed + self.quarantined


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
    if footer.round:
        facts["round"] = str(footer.round)
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
        table = open_parquet(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # the last of names that are no UTF-8
        raise StorageError(f"{where} is damaged: {error}.", "Delete it and run generate again.") from error
    return table, read_footer(table.schema, where)


def read_footer(schema: pa.Schema, where: str) -> Footer:
    """Return what a shard's file says of itself.

    Raises:
        StorageError: it says nothing, or is of another schema version.
    """
    stored = {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()
    }
    version = stored.get("schema_version", "none")
    if version != str(SCHEMA_VERSION):
        raise StorageError(
            f"{where} has schema version {version}; this version of polypersona reads {SCHEMA_VERSION}.",
            "Read the run with the version that wrote it.",
        )
    try:
        numbers = {name: int(stored[name]) for name in ("shard", "planned", "committed", "quarantined")}
        numbers["round"] = int(stored.get("round", 0))
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


def _plain(column: pa.ChunkedArray) -> pa.Array:
    kind, chunks = column.type, column.chunks
    if pa.types.is_dictionary(kind):
        kind, chunks = kind.value_type, [chunk.dictionary_decode() for chunk in chunks]
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], kind)


def _hash_array(state: hashlib.blake2b, array: pa.Array) -> None:
    """Hash what marks nulls, or the lengths with -1 for them; then the values, without those of texts that are null."""
    if pa.types.is_list(array.type):
        state.update(_bytes(pc.fill_null(pc.list_value_length(array), -1)))
        _hash_array(state, pc.list_flatten(array))
    elif pa.types.is_string(array.type):
        if array.null_count:
            state.update(_bytes(pc.fill_null(pc.binary_length(array), -1)))
            array = array.drop_null()
            state.update(_texts(array)[1])
        else:
            for part in _texts(array):
                state.update(part)
    elif array.null_count:
        state.update(_bytes(pc.is_valid(array).cast(pa.int8())))
        state.update(_bytes(pc.fill_null(array, 0)))
    else:
        state.update(b"\1" * len(array))
        state.update(_bytes(array))


def _texts(array: pa.Array) -> tuple[bytes, memoryview | bytes]:
    """Return the lengths of a string array without nulls, and its UTF-8 bytes, one text behind the other."""
    _, offsets, data = array.buffers()
    if not len(array):
        return b"", b""
    ends = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    return np.diff(ends).tobytes(), b"" if data is None else memoryview(data)[int(ends[0]) : int(ends[-1])]


def _bytes(array: pa.Array) -> bytes:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).tobytes()
