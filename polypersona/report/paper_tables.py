"""A run's scores in the shape of the paper's Tables II and III, and its best metric beside its floor by domain.

Takes rows of scores, gives plain JSON values. Knows no file and no HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.recipe import Recipe
from polypersona.report import words
from polypersona.report.numbers import plain_key
from polypersona.report.paper import TABLE_II, TABLE_II_COLUMNS, TABLE_III, domain_rank

Row: TypeAlias = Mapping[str, Any]
_AGREEMENT = ("stanceagreement", "exactagreement", "bleu", "rouge1")


def table_ii(recipe: Recipe, overall: Sequence[Row]) -> dict[str, Any]:
    """Return the paper's Table II for this run: its scores, its floors, and two rows as printed in the paper.

    A value is None where the metric is undefined, and the string "not computed" where there is no such row.
    """
    found = [find_row(overall, column.metrics) for column in TABLE_II_COLUMNS]
    return {
        "columns": [{"head": column.head, "title": column.title} for column in TABLE_II_COLUMNS],
        "name": recipe.model.base
        if recipe.generate.engine in ("packed", "vllm")
        else words.served_model(recipe) or recipe.generate.engine,
        "scores": [_cell(row) for row in found],
        "floors": [row["floor"] if row and row.get("floor_name") else "not computed" for row in found],
        "floor_name": next((row["floor_name"] for row in found if row and row.get("floor_name")), ""),
        "paper": {name: list(values) for name, values in TABLE_II.items()},
    }


def table_iii(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the paper's Table III for this run, a row per domain that the run or the paper has."""
    own: dict[str, list[Row]] = {}
    for row in rows:
        own.setdefault(str(row["group"]), []).append(row)
    columns = {column.head: column.metrics for column in TABLE_II_COLUMNS}
    table = []
    for domain in sorted({*own, *TABLE_III} if own else (), key=domain_rank):
        scores = own.get(domain, [])
        printed = TABLE_III.get(domain)
        table.append(
            {
                "domain": domain,
                **{head: _cell(find_row(scores, columns[head])) for head in ("BLEU", "R1", "Qual.")},
                "paper": printed._asdict() if printed else None,
            }
        )
    return table


def floor_by_domain(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return score and floor by domain of the metric that says most: agreement where there is one, else overlap."""
    for name in _AGREEMENT:
        chosen = [row for row in rows if plain_key(str(row["metric"])) == name]
        if chosen:
            chosen.sort(key=lambda row: domain_rank(str(row["group"])))
            return {"metric": chosen[0]["metric"], "label": chosen[0]["label"], "rows": chosen}
    return None


def find_row(rows: Sequence[Row], metrics: Sequence[str]) -> Row | None:
    """Return the row of the first of the metric names that is there."""
    by_key = {plain_key(str(row["metric"])): row for row in rows}
    return next((by_key[name] for name in metrics if name in by_key), None)


def _cell(row: Row | None) -> Any:
    if row is None:
        return "not computed"
    return {key: row.get(key) for key in ("n", "score", "low", "high", "floor", "floor_name")}
