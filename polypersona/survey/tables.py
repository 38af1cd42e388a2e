"""A comparison → all its tables, and the few sentences and means that stand above them. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polypersona.records import DISPOSITIONS
from polypersona.survey.cells import ALL, MIN_CELL, Comparison, Row
from polypersona.survey.comparison import score_rows, share_rows, summary_rows
from polypersona.survey.microdata import Outcome
from polypersona.survey.patterns import pattern_rows
from polypersona.survey.structure import individual_rows, prediction_row, regression_rows, stereotyping_rows

TABLES = ("scores", "shares", "summary", "stereotyping", "regression", "pairs", "prediction", "individuals", "outcomes")
# Less than half of the humans' variance, and certainly less than all of it.
COLLAPSE = 0.5


def build_tables(comparison: Comparison) -> dict[str, list[Row]]:
    """Return all rows by table."""
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for item in range(len(comparison.items)):
        for cell in comparison.cells(item):
            tables["scores"] += score_rows(cell)
            tables["shares"] += share_rows(cell)
        tables["stereotyping"] += stereotyping_rows(comparison, item)
        tables["regression"] += regression_rows(comparison, item)
        tables["prediction"].append(prediction_row(comparison, item))
        tables["individuals"] += individual_rows(comparison, item, comparison.groups)
        tables["outcomes"].append(_outcome_row(comparison, item))
    tables["summary"] = summary_rows(tables["scores"])
    pattern, tables["pairs"] = pattern_rows(comparison)
    tables["pattern"] = [pattern]
    return tables


def collapsed_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the items whose variance collapses: under half of the humans', with an interval below all of it."""
    return [
        row
        for row in rows
        if row["by"] == ALL
        and row["metric"] == "variance_ratio"
        and row["n"]
        and row["score"] < COLLAPSE
        and row["high"] < 1
    ]


def caption(bases: Sequence[str], *, is_greedy: bool = False) -> str:
    """Return what a reader must know to read the tables.

    Args:
        bases: what each item's shares rest on.
        is_greedy: the answers were given at temperature 0.
    """
    probable = sum(base == "option_probs" for base in bases)
    shares = (
        "Synthetic shares are those of the codes: the answers were given at temperature 0, and option probabilities do "
        "not describe them."
        if is_greedy
        else "Synthetic shares are expected ones, from option probabilities, for "
        f"{probable} of {len(bases)} items, and drawn codes for the others."
    )
    return (
        f"Synthetic responses beside human ones. {shares} All shares are weighted. Intervals are 95 %, linearised, "
        "clustered by persona and by respondent, as though the two samples were independent, which is careful where "
        "personas are twins of the respondents. Floors: uniform options; for a subgroup also "
        "everybody's distribution, the humans' (marginal) and the run's (shuffled personas). The ceiling is one random "
        "half of the humans against the other. Read effect sizes beside effective n: with millions of rows every "
        f"difference is significant. Cells of fewer than {MIN_CELL} people are not shown."
    )


def prediction_means(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the means over items of what predicts the respondents."""
    names = ("synthetic", "back_off", "marginal", "uniform", "gain")
    found = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
    return {
        "items": len(rows),
        **{
            name: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan for name, values in found.items()
        },
    }


def _outcome_row(comparison: Comparison, item: int) -> Row:
    question = comparison.items[item].question
    answers = comparison.humans.survey.answers[question.item_id]
    counts = comparison.tally.dispositions[item]
    return {
        "item": question.item_id,
        **{f"human_{outcome.name.lower()}": answers.count(outcome) for outcome in Outcome},
        **{f"synthetic_{name}": int(count) for name, count in zip(DISPOSITIONS, counts, strict=True)},
        "basis": comparison.tally.basis(item),
    }
