"""A file of coded answers → named columns of texts: CSV, TSV, Parquet, JSON Lines, Excel (.xlsx) and SPSS (.sav).

Cells are texts as they stand in the file, without space around them; a whole number has no decimals, an empty or
missing cell is the empty text. SPSS values stay codes, user-missing ones too. Knows no codebook.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from polypersona.errors import PersonaError, SurveyError
from polypersona.extras import load_extra
from polypersona.location import mask_secrets
from polypersona.panel.rows import parse_table, read_bytes
from polypersona.parquet import open_parquet

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".xlsx", ".sav", ".zsav")


@dataclass(frozen=True, slots=True)
class Columns:
    """The wanted columns that the file has, equally long, and the names of all its columns."""

    columns: dict[str, pa.Array]
    names: tuple[str, ...]
    num_rows: int


def read_columns(location: str, wanted: Sequence[str], header_rows: int = 1) -> Columns:
    """Read the wanted columns; one that the file lacks is left out, for the caller to name.

    Args:
        location: a path or URL.
        wanted: names of columns.
        header_rows: lines above the data, of which the first holds the names.

    Raises:
        SurveyError: there is no such file, its format is not known, or it is damaged.
        MissingExtraError: the library that reads the format is not installed.
    """
    name = mask_secrets(location)
    suffix = PurePosixPath(location.split("?")[0]).suffix.lower()
    if suffix not in SUFFIXES:
        raise SurveyError(f"{name}: human data end in {', '.join(SUFFIXES)}, not {suffix!r}.", "Convert or rename it.")
    try:
        data = read_bytes(location)
        if suffix in (".csv", ".tsv"):
            found = _csv(name, data, "," if suffix == ".csv" else "\t", wanted)
        elif suffix == ".parquet":
            found = _parquet(name, data, wanted)
        elif suffix in (".sav", ".zsav"):
            found = _sav(name, data, wanted)
        else:
            found = _rows(name, data, wanted)
    except PersonaError as error:
        raise SurveyError(f"The human data cannot be read: {error.message}", error.hint) from error
    skipped = header_rows - 1
    if found.num_rows <= skipped:
        raise SurveyError(f"{name} holds no respondent.", "Name a file with at least one row of answers.")
    columns = {key: column.slice(skipped) for key, column in found.columns.items()}
    return Columns(columns, found.names, found.num_rows - skipped)


def _csv(name: str, data: bytes, delimiter: str, wanted: Sequence[str]) -> Columns:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SurveyError(f"{name}, line {line}: this is not UTF-8.", "Save the file as UTF-8.") from error
    header = [cell.strip() for cell in next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])]
    twice = next((cell for cell in header if cell and header.count(cell) > 1), None)
    if twice is not None:
        raise SurveyError(f"{name}: the column {twice!r} occurs twice.", "Rename one of them.")
    names = [cell or f"#{place}" for place, cell in enumerate(header, start=1)]
    kept = [key for key in dict.fromkeys(wanted) if key in header]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows_after_names=1),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=kept or names[:1],
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise SurveyError(f"{name} is not valid CSV: {error}.", "Mend the row, or save the file again.") from error
    columns = {key: _trimmed(table.column(key)) for key in kept}
    return Columns(columns, tuple(cell for cell in header if cell), table.num_rows)


def _parquet(name: str, data: bytes, wanted: Sequence[str]) -> Columns:
    try:
        file = open_parquet(pa.BufferReader(data))
        kept = [key for key in dict.fromkeys(wanted) if key in file.schema_arrow.names]
        table = file.read(columns=kept)
    except (pa.ArrowException, OSError) as error:
        raise SurveyError(f"{name} is not a Parquet file: {error}.", "Write it again as Parquet.") from error
    columns = {}
    for key in kept:
        column = table.column(key)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        columns[key] = (
            _trimmed(column.cast(pa.string()))
            if pa.types.is_string(kind) or pa.types.is_large_string(kind)
            else _texts(column.to_pylist())
        )
    return Columns(columns, tuple(file.schema_arrow.names), file.metadata.num_rows)


def _sav(name: str, data: bytes, wanted: Sequence[str]) -> Columns:
    pyreadstat = load_extra("spss", f"{name}: an SPSS file is read")
    try:
        variables, _ = pyreadstat.read_sav(io.BytesIO(data), output_format="dict", user_missing=True)
    except Exception as error:
        said = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise SurveyError(f"{name} is not an SPSS file, or a damaged one: {said}.", "Save it again as .sav.") from error
    columns = {key: _texts(list(variables[key])) for key in dict.fromkeys(wanted) if key in variables}
    return Columns(columns, tuple(variables), max((len(values) for values in variables.values()), default=0))


def _rows(name: str, data: bytes, wanted: Sequence[str]) -> Columns:
    table = parse_table(name, data)
    if table.rejects:
        first = table.rejects[0]
        raise SurveyError(
            f"{name}: {len(table.rejects)} rows cannot be read, the first is row {first.row}: {first.reason}.",
            "Mend them: every row of human data counts.",
        )
    names = list(dict.fromkeys(key for row in table.rows for key in row.fields))
    columns = {key: _texts([row.get(key) for row in table.rows]) for key in dict.fromkeys(wanted) if key in names}
    return Columns(columns, tuple(names), len(table.rows))


def _trimmed(column: pa.ChunkedArray) -> pa.Array:
    filled = pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.string())), "")
    return filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled


def _texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
