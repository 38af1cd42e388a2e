"""What a persona file is once it is read: rows with named values, and the rows kept aside. Knows no file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypersona.errors import PersonaError


@dataclass(frozen=True, slots=True)
class Reject:
    """A row kept aside: the file, its row, the field (may be empty) and why.

    `row` is the line where the record begins in JSON Lines, CSV and TSV, the sheet's row in a workbook, else the
    record's number from 1.
    """

    file: str
    row: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A record: `fields` can become attributes, `outer` only id, text and weight. `is_own`: this project's shape."""

    number: int
    fields: Mapping[str, Any]
    outer: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = False

    def get(self, column: str) -> Any:
        """Return a column's value, None where the record lacks it."""
        return self.fields[column] if column in self.fields else self.outer.get(column)


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows in order, and its rejects.

    `is_untyped`: every value is text (CSV, TSV). `notes` say what else of the file was not taken.
    """

    rows: tuple[Row, ...]
    rejects: tuple[Reject, ...]
    is_untyped: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadCell:
    """A cell that holds no value, such as a spreadsheet's #N/A; `what` names it in messages."""

    what: str

    def __repr__(self) -> str:
        return self.what


def refuse_repeated(where: str, names: Sequence[str]) -> None:
    """Refuse a header that has a name twice; `where` is the file and its line.

    Raises:
        PersonaError: with the name.
    """
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise PersonaError(f"{where}: the column {twice!r} occurs twice.", "Rename one of them.")
