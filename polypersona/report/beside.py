"""Several runs side by side: the paper's tables and figures for each, what differs in their recipes, paired tests.

Takes the numbers that `content` built for each run; gives plain JSON values. Knows no HTML and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.recipe import Recipe, flatten
from polypersona.report.findings import verdict
from polypersona.report.paper import domain_rank

Row: TypeAlias = Mapping[str, Any]

_DOMAIN_HEADS = ("BLEU", "R1", "Qual.")
_NO_DIFFERENCE = frozenset({"name", "out"})


def run_names(names: Sequence[str]) -> list[str]:
    """Return a different name for every run: the second of a name gets a number."""
    found: list[str] = []
    for name in names:
        number = sum(one == name or one.startswith(f"{name} (") for one in found)
        found.append(f"{name} ({number + 1})" if number else name)
    return found


def build_beside(contents: Sequence[Row], recipes: Sequence[Recipe], paired: Sequence[Row]) -> dict[str, Any]:
    """Return the tables and figures of several runs, the report's own run first.

    Args:
        contents: what `build_content` gave for each.
        recipes: of each.
        paired: what `paired_differences` gave.
    """
    names = run_names([str(content["name"]) for content in contents])
    return {
        "names": names,
        "runs": [_run(name, content) for name, content in zip(names, contents, strict=True)],
        "differences": recipe_differences(recipes),
        "table_ii": _scores(names, contents),
        "table_iii": _domains(contents),
        "bleu": [row for name, content in zip(names, contents, strict=True) if (row := _bleu(name, content))],
        "domains": _shares(contents, "domains", "domain"),
        "types": _shares(contents, "types", "type"),
        "lengths": [[name, content["lengths"]["rows"]] for name, content in zip(names, contents, strict=True)],
        "lengths_of": sorted({content["lengths"]["of"] for content in contents if content["lengths"]["rows"]}),
        "references": sorted({str(content["reference"]) for content in contents}),
        "paired": list(paired),
    }


def recipe_differences(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Return the recipes' keys whose values are not the same in all, with each run's value."""
    flat = [flatten(recipe) for recipe in recipes]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in _NO_DIFFERENCE]
    return [
        {"key": key, "values": [one.get(key) for one in flat]}
        for key in keys
        if any(one.get(key) != flat[0].get(key) for one in flat)
    ]


def paired_differences(against: Sequence[Row], run: Row, others: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the paired tests of this run against those beside it, with whether each difference is clear of zero.

    Args:
        against: the content of scores/against-*.json.
        run: this run's run.json.
        others: run.json of the runs beside it. A test that rests on other responses than theirs is left out.
    """
    wanted = {str(other.get("fingerprint")): other for other in others}
    return [
        {
            "name": one["against"]["name"],
            "caption": one.get("caption", ""),
            "num_cells": one["num_cells"],
            "num_personas": one["num_personas"],
            "rows": [{**row, "verdict": verdict(row)} for row in one["overall"] if row["n"]],
        }
        for one in against
        if one["run"]["fingerprint"] == run.get("fingerprint")
        and str(one["against"]["fingerprint"]) in wanted
        and one["against"]["name"] == wanted[str(one["against"]["fingerprint"])]["recipe"]["name"]
    ]


def _run(name: str, content: Row) -> dict[str, Any]:
    summary, gain = content["summary"], content["conditioning"] or {}
    facts = ("model", "adapter", "engine", "num_personas", "num_items", "num_rows", "share_complete", "num_quarantined")
    return {
        "name": name,
        **{key: summary[key] for key in facts},
        "gain": gain.get("gain"),
        "gain_low": gain.get("low"),
        "gain_high": gain.get("high"),
        "gain_metric": gain.get("metric"),
        "ignores_cards": gain.get("ignores_cards"),
        "warnings": content["warnings"],
    }


def _scores(names: Sequence[str], contents: Sequence[Row]) -> list[dict[str, Any]]:
    """Return Table II by run; nothing where no run has any of its scores."""
    tables = [content["table_ii"] for content in contents]
    if not any(isinstance(cell, Mapping) for table in tables for cell in table["scores"]):
        return []
    return [
        {"name": name, **{key: table[key] for key in ("scores", "floors", "floor_name")}}
        for name, table in zip(names, tables, strict=True)
    ]


def _domains(contents: Sequence[Row]) -> list[dict[str, Any]]:
    tables = [{row["domain"]: row for row in content["table_iii"]} for content in contents]
    domains = sorted({domain for table in tables for domain in table}, key=domain_rank)
    rows = [
        {"domain": domain, "runs": [{head: table.get(domain, {}).get(head, "not computed") for head in _DOMAIN_HEADS}
                                    for table in tables]}
        for domain in domains
    ]  # fmt: skip
    return [row for row in rows if any(isinstance(cell, Mapping) for run in row["runs"] for cell in run.values())]


def _bleu(name: str, content: Row) -> dict[str, Any] | None:
    cell = content["table_ii"]["scores"][0]
    return {"name": name, **cell} if isinstance(cell, Mapping) else None


def _shares(contents: Sequence[Row], table: str, key: str) -> list[dict[str, Any]]:
    by_run = [{row[key]: row for row in content[table]} for content in contents]
    names = dict.fromkeys(name for rows in by_run for name in rows)
    return [
        {key: name, "runs": [{"answers": rows[name]["answers"], "share": rows[name]["share_answers"]}
                             if name in rows else {"answers": 0, "share": None} for rows in by_run]}
        for name in names
    ]  # fmt: skip
