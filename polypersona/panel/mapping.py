"""Rows → drafts of personas: which columns become id, text, weight and attributes, and what their values mean.

A recipe that names `mapping` or `text` takes what it names and nothing else. One that names neither takes every column
that holds numbers, texts, booleans or lists of texts as an attribute of the same name, a text column `text` or
`persona` as the free text, and the first of `ID_COLUMNS` that occurs as the id. A weight is read only where the recipe
names its column, because many files have a body weight. Cells that are empty or null leave the attribute out.

`values` recodes: a value that the table lacks is kept as it is and counted; an empty new value leaves the attribute
out.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypersona.errors import PersonaError, nearest
from polypersona.panel.numbers import Strays, find_strays, type_numbers
from polypersona.panel.table import BadCell, Reject, Row, Table
from polypersona.recipe_sections import AttributeMapping, PanelRecipe
from polypersona.records import AttributeValue

ID_COLUMNS = ("persona_id", "agent_id", "respondent_id", "id")
TEXT_COLUMNS = ("text", "persona")
IGNORED_COLUMNS = frozenset({"synthetic", "is_human"})  # marks of a file, no property of a person
# Attributes that are lists by definition: "chess, hiking" in one cell is two interests.
LIST_ATTRIBUTES = frozenset({"values", "interests"})

_BETWEEN = re.compile(r"\s*[,;|]\s*")


class UnusableError(Exception):
    """A cell holds what no attribute can be; the message says what."""


@dataclass(frozen=True, slots=True)
class Source:
    """One attribute: its column and the recoding of its values."""

    attribute: str
    column: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what. `is_explicit`: the recipe names them, so a cell that does not fit rejects its row."""

    identity: str | None
    texts: tuple[str, ...]
    weight: str | None
    attributes: tuple[Source, ...]
    unused: tuple[str, ...]
    is_explicit: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says of a persona, before ids are made. Several texts are several personas."""

    row: int
    identity: str
    attributes: dict[str, AttributeValue]
    texts: tuple[str, ...]
    weight: float


@dataclass(slots=True)
class Tally:
    """What was not taken over: values outside a recoding by attribute, and cells that fit no attribute by column.

    `strays`, by attribute: the few values that keep it from being numeric.
    """

    unmapped: dict[str, Counter[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    strays: dict[str, Strays] = field(default_factory=dict)


def resolve_columns(panel: PanelRecipe, table: Table, location: str) -> Columns:
    """Return which columns are read.

    Raises:
        PersonaError: the recipe names a column that no row has.
    """
    inner = list(dict.fromkeys(name for row in table.rows for name in row.fields))
    known = list(dict.fromkeys([*inner, *(name for row in table.rows for name in row.outer)]))
    named = [panel.text] if isinstance(panel.text, str) else list(panel.text or ())
    sources = [_source(attribute, given) for attribute, given in panel.mapping.items()]
    for option, column in (
        ("panel.id", panel.id),
        *(("panel.text", column) for column in named),
        ("panel.weight", panel.weight),
        *((f"panel.mapping.{source.attribute}", source.column) for source in sources),
    ):
        if column is not None and column not in known:
            raise PersonaError(
                f"{location}: {option} names the column {column!r}, which no row has.{nearest(column, known)}",
                f"Columns: {_listed(known)}.",
            )
    is_explicit = bool(named or sources)
    is_own = any(row.is_own for row in table.rows)
    identity = panel.id or next((name for name in ID_COLUMNS if name in known), None)
    texts = tuple(named) or tuple(_text_column(table) if is_own or not is_explicit else ())
    weight = panel.weight or ("weight" if is_own and any("weight" in row.outer for row in table.rows) else None)
    taken = {identity, weight, *texts, *IGNORED_COLUMNS}
    if not is_explicit:
        sources = [Source(name, name) for name in inner if name not in taken]
    used = taken | {source.column for source in sources}
    unused = tuple(name for name in inner if name not in used)
    return Columns(identity, texts, weight, tuple(sources), unused, is_explicit)


def draft_personas(columns: Columns, table: Table, location: str) -> tuple[list[Draft], list[Reject], Tally]:
    """Return a draft for every row that can be read, the rows that cannot, and what was not taken over."""
    tally = Tally()
    drafts: list[Draft] = []
    rejects: list[Reject] = []
    for row in table.rows:
        try:
            drafts.append(_draft(row, columns, tally))
        except _RowError as error:
            rejects.append(Reject(location, row.number, error.field, error.reason))
    for source in columns.attributes:
        _treat_numbers(source.attribute, drafts, tally, is_untyped=table.is_untyped or bool(source.values))
    return drafts, rejects, tally


def _treat_numbers(attribute: str, drafts: Iterable[Draft], tally: Tally, *, is_untyped: bool) -> None:
    """Type an attribute's texts as numbers where all are; count those that prevent it."""
    holders = [draft for draft in drafts if attribute in draft.attributes]
    values: Sequence[AttributeValue] = [draft.attributes[attribute] for draft in holders]
    if is_untyped:
        values = type_numbers(values)
        for draft, value in zip(holders, values, strict=True):
            draft.attributes[attribute] = value
    strays = find_strays([draft.row for draft in holders], values, is_untyped=is_untyped)
    if strays is not None:
        tally.strays[attribute] = strays


class _RowError(Exception):
    """The row cannot become a persona because of this field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def _source(attribute: str, given: str | AttributeMapping) -> Source:
    return Source(attribute, given) if isinstance(given, str) else Source(attribute, given.column, given.values)


def _listed(names: Sequence[str], limit: int = 40) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _text_column(table: Table) -> list[str]:
    """Return the column of free text: the first of `TEXT_COLUMNS` that holds texts only."""
    for name in TEXT_COLUMNS:
        found = [value for row in table.rows if (value := row.get(name)) is not None]
        if found and all(isinstance(value, str) for value in found):
            return [name]
    return []


def _draft(row: Row, columns: Columns, tally: Tally) -> Draft:
    attributes: dict[str, AttributeValue] = {}
    for source in columns.attributes:
        try:
            value = convert_value(row.get(source.column))
        except UnusableError as error:
            if columns.is_explicit:
                raise _RowError(source.column, str(error)) from error
            tally.skipped[source.column] += 1
            continue
        value = _recode(value, source, tally) if source.values and value is not None else value
        if source.attribute in LIST_ATTRIBUTES and isinstance(value, str):
            value = tuple(part for part in _BETWEEN.split(value) if part)
        if value not in (None, "", ()):
            attributes[source.attribute] = value
    texts = tuple(text for column in columns.texts if (text := _text(row.get(column), column)))
    if not attributes and not texts:
        raise _RowError("", "the row has neither an attribute nor a text")
    return Draft(row.number, _identity(row, columns.identity), attributes, texts, _weight(row, columns.weight))


def convert_value(value: Any) -> AttributeValue | None:
    """Return a cell as an attribute's value; None where it is empty, null or NaN.

    Raises:
        UnusableError: the cell is an object, bytes, a spreadsheet's error value, an infinite number, or a list of
            other things than texts and numbers.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, int | float):
        if math.isinf(value):
            raise UnusableError("an infinite number is no attribute")
        return None if math.isnan(value) else value
    if isinstance(value, datetime.date | datetime.time):
        value = value.isoformat()
    if isinstance(value, str):
        return _valid(value.strip()) or None
    if isinstance(value, list | tuple):
        if not all(isinstance(part, str | int | float) for part in value):
            raise UnusableError("a list is an attribute only where its parts are texts")
        return tuple(_valid(str(part).strip()) for part in value if str(part).strip()) or None
    if isinstance(value, BadCell):
        raise UnusableError(f"{value.what} is no attribute")
    kind = "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"
    raise UnusableError(f"{kind} is no attribute: number, text, boolean or list of texts")


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableError("the text holds half a character (a lone surrogate)") from error
    return text


def _recode(value: AttributeValue, source: Source, tally: Tally) -> AttributeValue:
    if isinstance(value, tuple):
        recoded = (_recode(part, source, tally) for part in value)
        return tuple(str(part) for part in recoded if part != "")
    for key in _keys(value):
        if key in source.values:
            return source.values[key]
    tally.unmapped.setdefault(source.attribute, Counter())[str(value)] += 1
    return value


def _keys(value: AttributeValue) -> Iterable[str]:
    """Yield how a recoding may name the value: 1.0 is also 1, true is also yes."""
    yield str(value)
    if isinstance(value, bool):
        yield from (str(value).lower(), "yes" if value else "no")
    elif isinstance(value, float) and value.is_integer():
        yield str(int(value))


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _RowError(column, f"a text is expected, not {value!r:.60}")
    try:
        return _valid(value.strip())
    except UnusableError as error:
        raise _RowError(column, str(error)) from error


def _identity(row: Row, column: str | None) -> str:
    if column is None:
        return ""
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text:
        raise _RowError(column, "the id is missing" if value in (None, "") else f"{value!r:.60} is no id")
    try:
        return _valid(text)
    except UnusableError as error:
        raise _RowError(column, str(error)) from error


def _weight(row: Row, column: str | None) -> float:
    if column is None:
        return 1.0
    value = row.get(column)
    try:
        weight = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise _RowError(column, f"a weight is a finite number above 0, not {value!r:.60}")
    return weight
