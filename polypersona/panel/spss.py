"""An SPSS file (.sav, .zsav) → rows: a value that has a label becomes the label.

System-missing and declared user-missing values and empty texts hold nothing. SPSS has one kind of number: a variable
of whole numbers gives integers. Dates become ISO text. The labels of variables are not read. Needs the extra `spss`.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping
from typing import Any

from polypersona.errors import PersonaError
from polypersona.extras import load_extra
from polypersona.panel.table import Row, Table

_EXACT = 2**53  # whole numbers below it are exact in a double


def read_sav(location: str, data: bytes) -> Table:
    """Return the cases of an SPSS file; a row's number is the case's, from 1.

    Raises:
        PersonaError: this is no SPSS file, or a damaged one.
        MissingExtraError: pyreadstat is not installed.
    """
    pyreadstat = load_extra("spss", f"{location}: an SPSS file is read")
    try:
        variables, meta = pyreadstat.read_sav(io.BytesIO(data), output_format="dict", user_missing=False)
    except Exception as error:
        said = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise PersonaError(
            f"{location}: this is not an SPSS file, or a damaged one: {said}.", "Save it again as .sav."
        ) from error
    labels: Mapping[str, Mapping[Any, str]] = meta.variable_value_labels
    columns = {name: _values(list(values), labels.get(name, {})) for name, values in variables.items()}
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return Table(tuple(Row(number, fields) for number, fields in enumerate(rows, start=1)), ())


def _values(values: list[Any], labels: Mapping[Any, str]) -> list[Any]:
    numbers = [value for value in values if isinstance(value, float) and value == value]
    is_whole = all(value.is_integer() and abs(value) < _EXACT for value in numbers)
    return [_value(value, labels, is_whole=is_whole) for value in values]


def _value(value: Any, labels: Mapping[Any, str], *, is_whole: bool) -> Any:
    if value is None or value != value:
        return None
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date()
    if label := labels.get(value, "").strip():
        return label
    return int(value) if is_whole and isinstance(value, float) else value
