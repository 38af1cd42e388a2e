"""Parquet files of others → Arrow tables of plain values.

A Parquet file may name an extension type for a column, and a library that has registered such a type decides what its
values become: the one of Ray Data unpickles them, which runs whatever the file's author wrote. So a file with a column
of any but the harmless types below is refused before a value of it is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_HARMLESS = ("arrow.bool8", "arrow.json", "arrow.uuid")


def read_parquet(source: Any, columns: Sequence[str] | None = None, filesystem: Any = None) -> pa.Table:
    """Return a file's table, or some of its columns.

    Args:
        source: what `pyarrow.parquet.read_table` takes.
        columns: the columns to read; all unless given.
        filesystem: where a path leads; this machine's unless given.

    Raises:
        pa.ArrowInvalid: the source is no Parquet file, or a column's values are not plain.
    """
    table = pq.read_table(source, columns=None if columns is None else list(columns), filesystem=filesystem)
    refuse_extension_types(table.schema)
    return table


def open_parquet(source: Any) -> pq.ParquetFile:
    """Return an open file, to be read in parts.

    Raises:
        pa.ArrowInvalid: the source is no Parquet file, or a column's values are not plain.
    """
    file = pq.ParquetFile(source)
    refuse_extension_types(file.schema_arrow)
    return file


def refuse_extension_types(schema: pa.Schema) -> None:
    """Refuse a schema with a column whose values are left to a library to make.

    Raises:
        pa.ArrowInvalid: names the column and its type.
    """
    for field in schema:
        for kind in _types(field.type):
            if isinstance(kind, pa.BaseExtensionType) and kind.extension_name not in _HARMLESS:
                raise pa.ArrowInvalid(
                    f"the column {field.name!r} is of the extension type {kind.extension_name!r}, which is not read"
                )


def _types(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and all that it is made of."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from _types(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _types(kind.value_type)
    else:
        for index in range(kind.num_fields):
            yield from _types(kind.field(index).type)
