"""Files of records → rows with their place: JSON list, JSON Lines (any extension), `{"data": [...]}` or Parquet.

Parquet is decoded by Hugging Face datasets, the form in which its hub hands out data sets. Knows nothing of what a
record means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from polypersona.errors import DatasetError
from polypersona.parquet import read_parquet

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
SHAPES = 'a JSON list, JSON Lines, {"data": [...]} or Parquet'


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was kept aside. `row` counts from 1: lines of JSON Lines, else elements of the list."""

    file: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row}"
        return f"{place}, field {self.field!r}: {self.reason}" if self.field else f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A row of a file before anything is made of it."""

    file: str
    row: int
    content: Any


def find_split_files(folder: Path) -> dict[str, Path]:
    """Return split → its file in a folder.

    Raises:
        DatasetError: a split has no file, or two.
    """
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.stem in names]
        if len(files) != 1:
            got = f"it holds {' and '.join(path.name for path in files)}" if files else "it holds none"
            raise DatasetError(
                f"{folder}: a folder of records needs one file for the {split} split, but {got}.",
                "Name the files train, validation (or val) and test, each .json, .jsonl or .parquet; or name one file.",
            )
        found[split] = files[0]
    return found


def read_records(path: Path) -> Iterator[RawRecord | Rejection]:
    """Yield the records of a file; a line that is not JSON comes as its rejection.

    Raises:
        DatasetError: the file cannot be read, is empty, or is a broken JSON list.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"There is no {path}.", "Set dataset.source to a file or folder of records.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", "Name a readable file.") from error
    if not text.strip():
        raise DatasetError(f"{path} is empty.", f"Give it records: {SHAPES}.")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DatasetError(
                f"{path}{line}: this JSON list is broken: {_fault_of(error)}.", "Mend the file at that line."
            ) from error
        yield from _read_lines(path.name, text)
        return
    yield from _read_whole(path, whole)


def _read_parquet(path: Path) -> Iterator[RawRecord]:
    from datasets import Dataset

    try:
        rows = Dataset(read_parquet(path))
    except FileNotFoundError as error:
        raise DatasetError(f"There is no {path}.", f"Set dataset.source to records: {SHAPES}.") from error
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DatasetError(
            f"{path} cannot be read as Parquet: {said}.", f"Set dataset.source to records: {SHAPES}."
        ) from error
    for column, feature in rows.features.items():
        if other := _media_type(feature):
            raise DatasetError(
                f"{path}: the column {column!r} is of the type {other}, and records hold texts, numbers and lists.",
                "Leave that column out.",
            )
    for row, content in enumerate(rows, start=1):
        yield RawRecord(path.name, row, _without_nulls(content))


def _media_type(feature: Any) -> str:
    """Return the name of a feature's part that is a picture, a sound or the like; empty where there is none.

    To read such a part is to open the file or address that the data set names.
    """
    if isinstance(feature, dict):
        return next(filter(None, map(_media_type, feature.values())), "")
    if isinstance(feature, list | tuple):
        return next(filter(None, map(_media_type, feature)), "")
    name = type(feature).__name__
    if name in ("List", "LargeList", "Sequence"):
        return _media_type(feature.feature)
    return "" if name in ("Value", "ClassLabel", "Json") else name


def _without_nulls(value: Any) -> Any:
    """Return the value without the nulls that a column format puts where a record has no such field."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _read_whole(path: Path, whole: Any) -> Iterator[RawRecord]:
    records = whole.get("data", [whole]) if isinstance(whole, dict) else whole
    if not isinstance(records, list):
        raise DatasetError(f"{path} holds no list of records.", f"Give it records: {SHAPES}.")
    for row, content in enumerate(records, start=1):
        yield RawRecord(path.name, row, content)


def _read_lines(file: str, text: str) -> Iterator[RawRecord | Rejection]:
    # Not splitlines(): JSON strings may hold U+2028, which ends no line of a file.
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield RawRecord(file, row, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Rejection(file, row, "", f"not valid JSON: {_fault_of(error)}")


def _fault_of(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds a number of too many digits"
