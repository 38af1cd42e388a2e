"""What predicts the answers and how questions hang together, people beside the run: the numbers of two scatter charts.

Takes the tables `regression` and `pairs` of the comparison, gives plain JSON values. Knows no HTML and no file. A
coefficient of a group, and a pair of questions, with fewer than five people or personas is not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.report.numbers import is_defined
from polypersona.survey.cells import MIN_CELL
from polypersona.survey.inference import Z_95
from polypersona.survey.patterns import spread_places

Row: TypeAlias = Mapping[str, Any]

# Points that a chart draws, and of those the most different, which a table lists.
MAX_POINTS, LISTED = 1_000, 12
VERDICTS = ("alike", "different", "flipped")


def coefficient_facts(rows: Sequence[Row], labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the coefficients of both sides; None where there is none.

    Args:
        rows: of the table `regression`. Those without z, whose sides both lack an error, are left out.
        labels: of the questions, by id.

    Returns:
        `points`, the most different first, at most `MAX_POINTS`; `listed`, how many of them the page lists; `total`
        and `counts` by verdict, which are of all rows; `by`, a row per demographic.
    """
    known = [_coefficient(row, labels) for row in rows if _is_large(row, "group_") and is_defined(row["z"])]
    if not known:
        return None
    known.sort(key=lambda row: (-abs(row["z"]), row["item"], row["by"], row["group"]))
    by: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(known, key=lambda row: str(row["by"])):
        by.setdefault(row["by"], []).append(row)
    return {
        **_drawn(known),
        "counts": _counts(known),
        "by": [
            {
                "by": name,
                "coefficients": len(found),
                **_counts(found),
                "human": statistics.fmean(abs(row["human"]) for row in found),
                "synthetic": statistics.fmean(abs(row["synthetic"]) for row in found),
            }
            for name, found in by.items()
        ],
    }


def pair_facts(rows: Sequence[Row], labels: Mapping[str, str], pattern: Row) -> dict[str, Any] | None:
    """Return Cramér's V of pairs of questions on both sides; None where no pair has both.

    Args:
        rows: of the table `pairs`.
        labels: of the questions, by id.
        pattern: what the comparison says of all pairs, also of those that the table leaves out.
    """
    known = [_pair(row, labels) for row in rows if _is_large(row) and _is_known(row, ("human", "synthetic"))]
    if not known:
        return None
    known.sort(key=lambda row: (-abs(row["difference"]), row["item"], row["other"]))
    return {
        **_drawn(known),
        "total": max(len(known), pattern.get("n") or 0),
        "one_sided": pattern.get("one_sided") or 0,
    }


def _drawn(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    places = spread_places(len(rows), MAX_POINTS, LISTED).tolist()
    return {"points": [rows[place] for place in places], "listed": min(LISTED, len(rows)), "total": len(rows)}


def _coefficient(row: Row, labels: Mapping[str, str]) -> dict[str, Any]:
    names = ("item", "by", "group", "reference", "outcome", "group_n", "group_human_n", "z")
    found = {name: row[name] for name in names}
    for side in ("human", "synthetic"):
        value, reach = row[side], Z_95 * row[f"{side}_error"]
        found |= {side: value, f"{side}_low": value - reach, f"{side}_high": value + reach}
    verdict = "flipped" if row["is_flipped"] else "different" if row["is_different"] else "alike"
    return {**found, "label": labels.get(row["item"], row["item"]), "verdict": verdict}


def _pair(row: Row, labels: Mapping[str, str]) -> dict[str, Any]:
    found = {name: row[name] for name in ("item", "other", "n", "human_n", "human", "synthetic")}
    names = {"label": labels.get(row["item"], row["item"]), "other_label": labels.get(row["other"], row["other"])}
    return {**found, **names, "difference": row["synthetic"] - row["human"]}


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    verdicts = [row["verdict"] for row in rows]
    return {name: verdicts.count(name) for name in VERDICTS}


def _is_large(row: Row, prefix: str = "") -> bool:
    """Whether enough people and personas stand behind a row; of a row that does not say, none do."""
    return bool(min(row.get(f"{prefix}human_n", 0), row.get(f"{prefix}n", 0)) >= MIN_CELL)


def _is_known(row: Row, names: Iterable[str]) -> bool:
    return all(is_defined(row[name]) for name in names)
