"""The comparison with people: what `compare` wrote → the rows, charts' numbers and sentences that the page shows.

Takes `scores/human.json` and its tables, gives plain JSON values. Knows no HTML and no file. A cell with fewer than
five people or personas is not in it, whatever the tables hold.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from polypersona.report import human_words
from polypersona.report.numbers import is_defined, render_words
from polypersona.report.structure import coefficient_facts, pair_facts
from polypersona.survey.cells import ALL, MIN_CELL
from polypersona.survey.tables import collapsed_rows

Row: TypeAlias = Mapping[str, Any]

# The tables of the comparison that the page reads.
TABLES = ("scores", "shares", "stereotyping", "regression", "pairs", "individuals", "rectified")
MEASURES = (
    "w1_alignment", "total_variation", "js_distance", "ks_similarity", "rank_correlation", "variance_ratio",
    "entropy_difference", "effective_human_n",
)  # fmt: skip
# What one question in one group is described by in the browser of questions.
_CELL_MEASURES = ("w1_alignment", "total_variation", "variance_ratio")
MAX_CHARTED = 24
MAX_OPTION_ROWS = 40_000
_ALIKE = 24
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class HumanEvidence:
    """What `compare` left in the run: the content of human.json, and rows by table."""

    content: Mapping[str, Any]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def build_human(evidence: HumanEvidence, stems: Mapping[str, str], run: Row, num_rows: int) -> dict[str, Any]:
    """Return the human comparison.

    Args:
        evidence: what the comparison left.
        stems: the wording of the run's items, by id.
        run: run.json; a comparison of other responses than its own is named so.
        num_rows: how many responses the run has now; a comparison of fewer or more is named so, too.
    """
    content = evidence.content
    names = demographic_names(content)
    summary = [row for row in _named(content.get("summary", []), names) if _is_large(row)]
    overall = [row for row in content.get("overall", []) if _is_large(row)]
    everybody = {row["metric"]: row for row in summary if row["by"] == ALL}
    metric = "w1_alignment" if "w1_alignment" in everybody else "total_variation"
    items, groups = item_rows(overall, stems), group_rows(summary, metric)
    labels = {row["item"]: row["label"] for row in items}
    stereotyping = [row for row in _named(evidence.tables.get("stereotyping", ()), names) if _is_large(row)]
    facts = {
        **{key: content.get(key) for key in ("human", "caption", "by", "hidden_cells", "pattern", "regression",
                                             "prediction")},
        "notes": [*content.get("notes", ()), *_lacking(evidence)],
        "metric": metric,
        "measures": [everybody[name] for name in MEASURES if name in everybody],
        "median_effective_n": _median(row["score"] for row in overall if row["metric"] == "effective_human_n"),
        "median_variance_ratio": _median(row["score"] for row in overall if row["metric"] == "variance_ratio"),
        "items": items,
        "groups": groups,
        "collapsed": [row["item"] for row in collapsed_rows([row for row in overall if _has_interval(row)])],
        "stereotyping": stereotyping_summary(stereotyping),
        "coefficients": coefficient_facts(_named(evidence.tables.get("regression", ()), names), labels),
        "pairs": pair_facts(evidence.tables.get("pairs", ()), labels, content.get("pattern") or {}),
        "individuals": _labelled((row for row in content.get("individuals", []) if _has_person_level(row)), labels),
        "only_human": len(content.get("items", {}).get("only_human", [])),
        "only_run": len(content.get("items", {}).get("only_run", [])),
        "is_stale": _is_stale(content, run, num_rows),
        "mitigation": mitigation_facts(content.get("mitigation"), names),
        "rectified": _labelled(
            (row for row in evidence.tables.get("rectified", ()) if row["people_held_out"] >= MIN_CELL), labels
        ),
    }  # fmt: skip
    return {**facts, **human_words.sentences(facts)}


def demographic_names(content: Row) -> dict[str, str]:
    """Return what to call each demographic: the codebook's label, or the column's name as words where it is long."""
    found = {
        name: label if label and len(label) <= _LONGEST_NAME else render_words(name)
        for name, label in content.get("labels", {}).items()
    }
    return found if len(set(found.values())) == len(found) else {}


def mitigation_facts(found: Row | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the scores before and after mitigations, and the least and greatest temperature of each response type."""
    if not found:
        return None
    temperatures = {kind: [min(values), max(values)] for kind, values in (found.get("temperatures") or {}).items()}
    raked_by = [names.get(name, name) for name in found.get("raked_by") or ()]
    return {**found, "raked_by": raked_by, "temperatures": temperatures}


def item_rows(overall: Sequence[Row], stems: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row per question, those least alike first: its measures by name, and on how many answers they rest."""
    found: dict[str, dict[str, Any]] = {}
    for row in overall:
        head = {name: row.get(name) for name in ("item", "n_effective", "human_n", "human_n_effective", "basis")}
        entry = found.setdefault(
            row["item"], {**head, "n": 0, "stem": stems.get(row["item"], row["item"]), "measures": {}}
        )
        entry["n"], entry["n_effective"] = max(entry["n"], row["n"]), max(entry["n_effective"], row["n_effective"])
        if row["metric"] in MEASURES and row["n"]:
            entry["measures"][row["metric"]] = {
                name: row.get(name) for name in ("score", "low", "high", "uniform", "split_half")
            }
    labels = short_labels({name: entry["stem"] for name, entry in found.items()})
    rows = [{**entry, "label": labels[name]} for name, entry in found.items()]
    return sorted(rows, key=lambda entry: (-_distance(entry), entry["item"]))


def short_labels(stems: Mapping[str, str]) -> dict[str, str]:
    """Return a label per question: its id and its wording, without what it begins with as others of its battery do."""
    labels = {}
    for name, stem in stems.items():
        shared = [other for other in stems.values() if other != stem and other[:_ALIKE] == stem[:_ALIKE]]
        tail = stem
        if shared and len(stem) > _ALIKE:
            same = min(_shared_length(stem, other) for other in shared)
            tail = "…" + stem[stem[:same].rfind(" ") + 1 :]
        labels[name] = name if stem == name else f"{name}: {tail}"
    return labels


def _shared_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def group_rows(summary: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return the demographics in their order, each with a row per group: the mean over questions, floors, ceiling.

    `is_closer` says whether the run's answers of the group are closer to its people than the answers of all of the
    run's personas are, which is what the shuffled floor is.
    """
    by: dict[str, list[dict[str, Any]]] = {}
    for row in summary:
        if row["by"] == ALL or row["metric"] != metric:
            continue
        gain = _gain(row)
        by.setdefault(row["by"], []).append({**row, "gain": gain, "is_closer": None if gain is None else gain > 0})
    return [{"by": name, "rows": rows} for name, rows in by.items()]


def stereotyping_summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, by demographic, mean η² of people and run, and how many questions are above or below for certain."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        if row["n"] and is_defined(row["index"]):
            by.setdefault(row["by"], []).append(row)
    return [
        {
            "by": name,
            "questions": len(found),
            "human": statistics.fmean(row["human"] for row in found),
            "synthetic": statistics.fmean(row["synthetic"] for row in found),
            "index": statistics.fmean(row["index"] for row in found),
            "noise": _mean(row["noise"] for row in found),
            "exaggerated": sum(is_defined(row["low"]) and row["low"] > 0 for row in found),
            "flattened": sum(is_defined(row["high"]) and row["high"] < 0 for row in found),
        }
        for name, found in by.items()
    ]


def browser_rows(evidence: HumanEvidence, stems: Mapping[str, str]) -> dict[str, Any]:
    """Return every question × group in the compact form the page's script reads.

    `cells` are [item, group, people, answers, measures, options]; an option is [human share, low, high, synthetic
    share, low, high] in percent, None where too few people chose it to be shown.
    """
    names = demographic_names(evidence.content)
    shares = [row for row in evidence.tables.get("shares", ()) if _is_large(row)]
    is_cut = len(shares) > MAX_OPTION_ROWS
    if is_cut:
        shares = [row for row in shares if row["by"] == ALL][:MAX_OPTION_ROWS]
    measures = {
        (row["item"], row["by"], row["group"], row["metric"]): row
        for row in evidence.tables.get("scores", ())
        if row["metric"] in _CELL_MEASURES and row["n"] and _is_large(row)
    }
    items: dict[str, int] = {}
    groups: dict[tuple[str, str], int] = {}
    labels: dict[str, dict[Any, str]] = {}
    cells: dict[tuple[str, str, str], list[Any]] = {}
    for row in shares:
        key = (row["item"], row["by"], row["group"])
        if key not in cells:
            place = [items.setdefault(row["item"], len(items)), groups.setdefault(key[1:], len(groups))]
            found = [_triple(measures.get((*key, name))) for name in _CELL_MEASURES]
            cells[key] = [*place, row["human_n"], row["n"], found, []]
        labels.setdefault(row["item"], {}).setdefault(row["code"], row["label"])
        cells[key][5].append(
            [*_triple(row, "human", "human_low", "human_high"),
             *_triple(row, "synthetic", "synthetic_low", "synthetic_high")]
        )  # fmt: skip
    return {
        "items": [[name, stems.get(name, name), list(labels[name].values())] for name in items],
        "groups": [[names.get(by, by), group] for by, group in groups],
        "cells": list(cells.values()),
        "is_cut": is_cut,
    }


def _lacking(evidence: HumanEvidence) -> list[str]:
    """Return what an earlier version's comparison does not let the page draw."""
    rows = [*evidence.tables.get("regression", ()), *evidence.tables.get("pairs", ())]
    if all("human_n" in row and ("term" not in row or "group_human_n" in row) for row in rows):
        return []
    return ["regressions and associations are not drawn, for the comparison is an earlier version's: run compare again"]


def _labelled(rows: Iterable[Row], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**row, "label": labels.get(row["item"], row["item"])} for row in rows]


def _named(rows: Iterable[Row], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**row, "by": names.get(row["by"], row["by"])} for row in rows]


def _is_large(row: Row) -> bool:
    """Whether a row rests on enough people and answers to be shown; an undefined score (n = 0) rests on none."""
    people = row.get("human_n", row.get("human_n_effective", MIN_CELL))
    return bool(people >= MIN_CELL and (row["n"] >= MIN_CELL or row["n"] == 0))


def _has_interval(row: Row) -> bool:
    return is_defined(row["score"]) and is_defined(row["high"])


def _has_person_level(row: Row) -> bool:
    return bool(row["n"] >= MIN_CELL) and (is_defined(row.get("r")) or is_defined(row.get("accuracy")))


def _is_stale(content: Row, run: Row, num_rows: int) -> bool:
    now = {"fingerprint": run.get("fingerprint"), "num_rows": num_rows,
           "num_planned": run.get("ledger", {}).get("num_cells")}  # fmt: skip
    return any(value is not None and content.get(name, value) != value for name, value in now.items())


def _distance(entry: Row) -> float:
    row = entry["measures"].get("total_variation")
    return float(row["score"]) if row and is_defined(row["score"]) else -1.0


def _gain(row: Row) -> float | None:
    if not (is_defined(row["score"]) and is_defined(row.get("shuffled"))):
        return None
    gain = float(row["score"] - row["shuffled"])
    return gain if row["higher_is_better"] else -gain


def _triple(row: Row | None, *names: str) -> list[float | None]:
    if row is None:
        return [None, None, None]
    values = (row.get(name) for name in names or ("score", "low", "high"))
    return [round(value, 4) if is_defined(value) and value is not None else None for value in values]


def _median(values: Any) -> float | None:
    known = [value for value in values if is_defined(value)]
    return statistics.median(known) if known else None


def _mean(values: Any) -> float | None:
    known = [value for value in values if is_defined(value)]
    return statistics.fmean(known) if known else None
