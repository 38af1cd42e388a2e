"""An Excel workbook (.xlsx) → rows: the first visible sheet that holds anything, its first filled row is the header.

A formula counts as the value that the spreadsheet program saved beside it. A date becomes its ISO text, a duration
hours, minutes and seconds; empty cells hold nothing, error values such as #N/A are `BadCell`. Needs the extra `excel`.
"""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.errors import PersonaError
from polypersona.extras import load_extra
from polypersona.panel.table import BadCell, Reject, Row, Table, refuse_repeated

_OLE = b"\xd0\xcf\x11\xe0"  # begins an encrypted workbook, and one of Excel before 2007

_FORMULA = re.compile(rb"<(?:\w+:)?f[\s/>]")


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell as the file has it; `kind` is openpyxl's data type."""

    value: Any
    kind: str


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The rows of a sheet by their number, as far as they have cells; `others` are the workbook's other sheets."""

    name: str
    rows: dict[int, list[_Cell]]
    others: tuple[str, ...]


def read_workbook(location: str, data: bytes) -> Table:
    """Return the rows of a workbook's first filled sheet.

    Raises:
        PersonaError: this is no workbook, no sheet has a header, a header lacks a name or has one twice, or a formula
            has no saved value.
        MissingExtraError: openpyxl is not installed.
    """
    openpyxl = load_extra("excel", f"{location}: an Excel workbook is read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and other things that are not read
            sheet = _filled_sheet(openpyxl, data)
            unsaved = _first_unsaved(openpyxl, data, sheet) if sheet and _has_formulas(data) else None
    except Exception as error:
        raise _no_workbook(location, data, error) from error
    if sheet is None:
        raise PersonaError(
            f"{location}: no visible sheet has a header row, all are empty.",
            "Write the names of the columns into the first row of a sheet.",
        )
    where = f"{location}, sheet {sheet.name!r}"
    if unsaved is not None:
        raise PersonaError(
            f"{where}, cell {_name(*unsaved)}: the formula was never calculated, so the file holds no value of it.",
            "Open the workbook in a spreadsheet program and save it there.",
        )
    found = list(_rows(location, where, sheet))
    return Table(
        tuple(one for one in found if isinstance(one, Row)),
        tuple(one for one in found if isinstance(one, Reject)),
        notes=(f"Sheet read: {sheet.name}; not read: {', '.join(sheet.others)}",) if sheet.others else (),
    )


def _no_workbook(location: str, data: bytes, error: Exception) -> PersonaError:
    if data.startswith(_OLE):
        return PersonaError(
            f"{location}: this is an encrypted workbook, or one of Excel before 2007.",
            "Save it as .xlsx without a password.",
        )
    said = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
    return PersonaError(f"{location}: this is not an Excel workbook: {said}.", "Save it again as .xlsx.")


def _filled_sheet(openpyxl: Any, data: bytes) -> _Sheet | None:
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    for sheet in book.worksheets:
        if sheet.sheet_state != "visible":
            continue
        sheet.reset_dimensions()  # what the file says of its size may be wrong
        rows: dict[int, list[_Cell]] = {}
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            row = [_Cell(_plain(cell.value, cell.data_type), cell.data_type) for cell in cells]
            if row:
                rows[number] = row
        if any(cell.value is not None for row in rows.values() for cell in row):
            return _Sheet(sheet.title, rows, tuple(one.title for one in book.worksheets if one is not sheet))
    return None


def _has_formulas(data: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/") and name.endswith(".xml")]
        return any(_FORMULA.search(archive.read(name)) for name in sheets)


def _first_unsaved(openpyxl: Any, data: bytes, read: _Sheet) -> tuple[int, int] | None:
    """Return row and column of the first formula whose value the file does not hold."""
    sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, keep_links=False)[read.name]
    sheet.reset_dimensions()
    for row, cells in enumerate(sheet.iter_rows(), start=1):
        for column, cell in enumerate(cells, start=1):
            if cell.data_type == "f" and _is_unsaved(read.rows[row][column - 1]):
                return row, column
    return None


def _is_unsaved(cell: _Cell) -> bool:
    """Return whether a formula's cell has no value; one that gave an empty text is of the kind `str`."""
    return cell.value is None and cell.kind == "n"


def _plain(value: Any, kind: str) -> Any:
    if kind == "e":
        return BadCell(f"the error value {value}")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, datetime.datetime):
        return (value.date() if value.time() == datetime.time() else value).isoformat()
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        sign = "-" if seconds < 0 else ""
        return f"{sign}{abs(seconds) // 3600}:{abs(seconds) // 60 % 60:02}:{abs(seconds) % 60:02}"
    return value


def _rows(location: str, where: str, sheet: _Sheet) -> Iterator[Row | Reject]:
    header: list[str] | None = None
    for number, cells in sheet.rows.items():
        values = [cell.value for cell in cells]
        while values and values[-1] is None:
            values.pop()
        if not values:
            continue
        if header is None:
            header = _header(where, number, values)
            _refuse_unnamed(where, number, header, sheet)
        elif len(values) > len(header):
            yield Reject(location, number, "", f"the row has {len(values)} cells, the header {len(header)}")
        else:
            values += [None] * (len(header) - len(values))
            yield Row(number, {name: value for name, value in zip(header, values, strict=True) if name})


def _header(where: str, number: int, values: Sequence[Any]) -> list[str]:
    for column, value in enumerate(values, start=1):
        if isinstance(value, BadCell):
            raise PersonaError(
                f"{where}, cell {_name(number, column)}: a column's name is expected, not {value!r}.", "Mend the cell."
            )
    names = ["" if value is None else str(value) for value in values]
    refuse_repeated(f"{where}, row {number}", names)
    return names


def _refuse_unnamed(where: str, number: int, header: Sequence[str], sheet: _Sheet) -> None:
    """Refuse a column without a name that has values, within the header's width."""
    for column, name in enumerate(header):
        if not name and any(column < len(row) and row[column].value is not None for row in sheet.rows.values()):
            raise PersonaError(
                f"{where}, cell {_name(number, column + 1)}: the column has values but no name.",
                "Name the column, or delete it.",
            )


def _name(row: int, column: int) -> str:
    """Return a cell's name: row 2 of column 28 is AB2."""
    letters = ""
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return f"{letters}{row}"
