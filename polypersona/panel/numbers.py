"""Attributes that are numbers, or nearly: texts become numbers where all are; a few that are none are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polypersona.records import AttributeValue

# Where at least so large a share of an attribute's values are numbers, the others are taken for mistakes.
MIN_NUMERIC = 0.9

_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_CODE = re.compile(r"0\d+")


@dataclass(frozen=True, slots=True)
class Strays:
    """An attribute of numbers that has `num_strays` values of another kind; the first is in `row`."""

    num_values: int
    num_strays: int
    row: int
    value: str


def type_numbers(values: Sequence[AttributeValue]) -> Sequence[AttributeValue]:
    """Return the values with texts as numbers where all of them are; "007" is a text, for it would lose its zeros."""
    texts = [value for value in values if isinstance(value, str)]
    if not texts or not all(_DECIMAL.fullmatch(text) for text in texts):
        return values
    kind = int if all(_INTEGER.fullmatch(text) for text in texts) else float
    return [kind(value) if isinstance(value, str) else value for value in values]


def find_strays(rows: Sequence[int], values: Sequence[AttributeValue], *, is_untyped: bool) -> Strays | None:
    """Return what keeps an attribute from being numeric, None where all values or too few are numbers.

    A column with a "007" is one of codes, which are texts.

    Args:
        rows: the row of each value.
        values: an attribute's values after `type_numbers`.
        is_untyped: texts may be numbers.
    """
    strays = [
        (row, value) for row, value in zip(rows, values, strict=True) if not _is_number(value, is_untyped=is_untyped)
    ]
    if not strays or len(values) - len(strays) < MIN_NUMERIC * len(values):
        return None
    if is_untyped and any(isinstance(value, str) and _CODE.fullmatch(value) for _, value in strays):
        return None
    row, value = strays[0]
    return Strays(len(values), len(strays), row, str(value))


def _is_number(value: AttributeValue, *, is_untyped: bool) -> bool:
    if isinstance(value, str):
        return is_untyped and bool(_DECIMAL.fullmatch(value))
    return isinstance(value, int | float) and not isinstance(value, bool)
