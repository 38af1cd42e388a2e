"""The parts of a codebook's JSON that are no items: texts, demographics, and the cells that mean "not asked"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polypersona.errors import nearest
from polypersona.survey.codebook import Demographic, card_name
from polypersona.survey.problems import Faults

_DEMOGRAPHIC_KEYS = ("label", "type", "values", "bands", "attribute")


def check_keys(item: str, row: Mapping[str, Any], known: Sequence[str], faults: Faults) -> None:
    """Note every field that is not known."""
    for key in row:
        if key not in known:
            faults.add(item, f"there is no field {key!r} here.{nearest(key, known)} Known are {', '.join(known)}")


def read_text(row: Mapping[str, Any], key: str, item: str, faults: Faults) -> str:
    """Return a text, empty where it is missing or none."""
    value = row.get(key, "")
    if isinstance(value, str):
        return value.strip()
    faults.add(item, f"`{key}` is a text, not {value!r:.60}")
    return ""


def read_demographics(content: Any, faults: Faults) -> tuple[Demographic, ...]:
    """Return the columns that describe the respondents."""
    if not isinstance(content, dict):
        faults.add("", "`demographics` is an object of columns")
        return ()
    found = []
    for column, row in content.items():
        if not isinstance(row, dict):
            faults.add(column, f"a demographic is an object, not {row!r:.60}")
            continue
        check_keys(column, row, _DEMOGRAPHIC_KEYS, faults)
        values, bands, label = row.get("values", []), row.get("bands", []), read_text(row, "label", column, faults)
        is_integer = row.get("type") == "integer"
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            faults.add(column, "`values` is a list of texts")
            values = []
        if not is_integer and not values:
            faults.add(column, "a demographic has `values`, or the type `integer`")
        if not isinstance(bands, list) or bands != sorted(set(bands)) or not _are_whole(bands):
            faults.add(column, "`bands` is a rising list of whole numbers, where each band begins")
            bands = []
        attribute = read_text(row, "attribute", column, faults) or card_name(column, label)
        found.append(Demographic(column, label, is_integer, tuple(values), tuple(bands), attribute))
    return tuple(found)


def _are_whole(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def read_not_asked(content: Any, faults: Faults) -> frozenset[str]:
    """Return the cells that mean "not asked": a list of them, or words such as "empty cell or NA"."""
    if content is None:
        return frozenset()
    parts = re.split(r"\s+or\s+|\s*,\s*", content) if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        faults.add("", "`not_asked` is a list of texts, or words such as 'empty cell or NA'")
        return frozenset()
    return frozenset("" if re.fullmatch(r"(?i)(an )?empty( cells?)?", part.strip()) else part.strip() for part in parts)
