"""Persona files → rows, by the suffix of their names, from a path or a pyarrow URL.

JSON Lines, a JSON list, `{"data": [...]}`, CSV, TSV and Parquet are read here, workbooks and SPSS files by their own
modules.

A row that cannot be read is kept aside with its place and reason; a file that cannot be read is an error. Knows no
attribute names beyond the three shapes a record can have:

- flat: `{"age": 40, …}`: every column is a field;
- nested: `{"id": …, "persona": {"age": 40, …}}`: the persona's columns are fields, the others only name it;
- this project's own, written by `polypersona personas`: `{"persona_id", "attributes": {…}, "text", "weight", …}`, at
  the top or under `persona`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from polypersona.errors import PersonaError
from polypersona.panel.spss import read_sav
from polypersona.panel.table import Reject, Row, Table, refuse_repeated
from polypersona.panel.workbook import read_workbook
from polypersona.parquet import read_parquet

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xlsx", ".sav", ".zsav")


def read_bytes(location: str) -> bytes:
    """Return the content of a local path or a URL.

    Raises:
        PersonaError: there is no such file, or it cannot be read.
    """
    try:
        if "://" not in location:
            return Path(location).read_bytes()
        fs, path = pafs.FileSystem.from_uri(location)
        with fs.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise PersonaError(
            f"There is no persona file {location!r}.",
            "Name a file, or write `source: sampled` for a panel without one.",
        ) from error
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise PersonaError(
            f"The persona file {location!r} cannot be read: {error}.", "Check the path and its permissions."
        ) from error


def parse_table(location: str, data: bytes) -> Table:
    """Parse a file's content by the suffix of its name.

    Raises:
        PersonaError: an unknown suffix, or content that is not of that format.
        MissingExtraError: the library that reads the format is not installed.
    """
    suffix = PurePosixPath(location.split("?")[0]).suffix.lower()
    if suffix not in SUFFIXES:
        raise PersonaError(
            f"{location}: a persona file ends in {', '.join(SUFFIXES)}, not {suffix!r}.", "Convert or rename it."
        )
    if suffix == ".xlsx":
        return read_workbook(location, data)
    if suffix in (".sav", ".zsav"):
        return read_sav(location, data)
    if suffix == ".parquet":
        found: Iterator[Row | Reject] = _parquet(location, data)
    elif suffix in (".csv", ".tsv"):
        found = _csv(location, data, "," if suffix == ".csv" else "\t")
    elif suffix == ".json" and not _begins_with_a_record(data):
        found = _json(location, data)
    else:
        found = _json_lines(location, data)
    rows: list[Row] = []
    rejects: list[Reject] = []
    for one in found:
        if isinstance(one, Row):
            rows.append(one)
        else:
            rejects.append(one)
    return Table(tuple(rows), tuple(rejects), is_untyped=suffix in (".csv", ".tsv"))


def _begins_with_a_record(data: bytes) -> bool:
    """Return whether a `.json` file is JSON Lines: its first line is a whole object, and more lines follow."""
    first, _, rest = data.lstrip().partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(location: str, data: bytes) -> Iterator[Row | Reject]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            yield Reject(location, number, "", "the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            yield Reject(location, number, "", f"the line is not valid JSON: {reason}")
        else:
            yield _row_or_reject(location, number, record)


def _json(location: str, data: bytes) -> Iterator[Row | Reject]:
    text = _decode(location, data)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise PersonaError(
            f"{location}{line}: this is not valid JSON.", "Mend the file, or name it .jsonl if each line is a record."
        ) from error
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise PersonaError(
            f'{location}: a JSON persona file is a list of records or {{"data": [...]}}.',
            "Put the records into a list, or write one a line into a .jsonl file.",
        )
    for number, record in enumerate(records, start=1):
        yield _row_or_reject(location, number, record)


def _csv(location: str, data: bytes, delimiter: str) -> Iterator[Row | Reject]:
    reader = csv.reader(io.StringIO(_decode(location, data), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise PersonaError(
                    f"{location}, line {begin}: the header cannot be read: {error}.", "Mend it."
                ) from error
            yield Reject(location, begin, "", f"the line is not valid CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(f"{location}, line {begin}", header)
        elif len(cells) != len(header):
            yield Reject(location, begin, "", f"the row has {len(cells)} cells, the header {len(header)}")
        else:
            yield _row(begin, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _check_header(where: str, names: list[str]) -> None:
    refuse_repeated(where, names)
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise PersonaError(
            f"{where}: the header is one column, {names[0][:60]!r}, so the columns are not separated "
            "by the file's separator (comma in .csv, tab in .tsv).",
            "Save it with commas, or with tabs as .tsv.",
        )


def _parquet(location: str, data: bytes) -> Iterator[Row | Reject]:
    try:
        table = read_parquet(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise PersonaError(f"{location}: this is not a Parquet file: {error}.", "Write it again as Parquet.") from error
    number = 0
    for batch in table.to_batches():
        for record in batch.to_pylist():
            number += 1
            yield _row_or_reject(location, number, record)


def _decode(location: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PersonaError(f"{location}, line {line}: this is not UTF-8.", "Save the file as UTF-8.") from error


def _row_or_reject(location: str, number: int, record: Any) -> Row | Reject:
    if isinstance(record, dict):
        return _row(number, record)
    return Reject(location, number, "", f"a record is an object, not {_json_type(record)}")


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _row(number: int, record: Mapping[str, Any]) -> Row:
    if isinstance(record.get("attributes"), dict):
        return Row(number, record["attributes"], _without(record, "attributes"), is_own=True)
    persona = record.get("persona")
    if not isinstance(persona, dict):
        return Row(number, record)
    outer = _without(record, "persona")
    for name in ("meta", "metadata"):
        if isinstance(record.get(name), dict):
            outer = {**outer, **record[name]}
    if isinstance(persona.get("attributes"), dict):
        return Row(number, persona["attributes"], {**outer, **_without(persona, "attributes")}, is_own=True)
    return Row(number, persona, outer)


def _without(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}
