"""The tables of `polypersona compare --mitigate`: scores before and after, and rectified means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

SHOWN_ITEMS = 12


def mitigation_tables(result: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Return the tables to print; none where no mitigation was asked for."""
    if result["mitigation"] is None:
        return []
    found = [_variant_table(result["mitigation"])]
    if tables["rectified"]:
        found.append(_rectified_table(result["mitigation"], tables["rectified"]))
    return found


def _variant_table(facts: Mapping[str, Any]) -> Table:
    taus = "; ".join(f"{kind} {_listed(values)}" for kind, values in facts["temperatures"].items())
    title = "Mitigations: means over items, everybody"
    if facts["raked_by"]:
        title += f". Raked by {', '.join(facts['raked_by'])}: design effect {_number(facts['design_effect'])}"
    if taus:
        title += f". Temperatures, each fitted on the type's other items: {taus}"
    table = _table(title, ("measure", "variant", "score", "95 % interval", "change", "items", "effective n"), 2)
    for row in facts["rows"]:
        table.add_row(
            Text(row["label"]), Text(row["variant"]), _number(row["score"]), _range(row, ""), f"{row['change']:+.3f}",
            str(row["items"]), _number(row["n_effective"]),
        )  # fmt: skip
    return table


def _rectified_table(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    mean = facts["rectified"]
    title = (
        f"Rectified by {facts['people_asked']} people (prediction-powered), in shares of the scale; mean error: run "
        f"{_number(mean['synthetic_error'])}, sample {_number(mean['sample_error'])}, rectified "
        f"{_number(mean['rectified_error'])}; agree with the other people: {mean['rectified_covered']:.0%} of items; "
        f"s.e. {_number(mean['width_ratio'])} of the sample's"
    )
    columns = ("item", "other people", "run", "sample", "95 % interval", "rectified", "95 % interval", "s.e. ratio")
    table = _table(title, columns, 1)
    worst = sorted(rows, key=lambda row: (-abs(row["synthetic"] - row["benchmark"]), row["item"]))
    for row in worst[:SHOWN_ITEMS]:
        table.add_row(
            Text(row["item"]), _number(row["benchmark"]), _number(row["synthetic"]), _number(row["sample"]),
            _range(row, "sample_"), _number(row["rectified"]), _range(row, "rectified_"), _number(row["width_ratio"]),
        )  # fmt: skip
    return table


def _table(title: str, columns: tuple[str, ...], left: int) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def _listed(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _range(row: Mapping[str, Any], prefix: str) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f"[{_number(low)}, {_number(high)}]" if math.isfinite(low) and math.isfinite(high) else "n/a"
