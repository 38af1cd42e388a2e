"""Signed effects and judgements beside the scores: the bias battery, the persona metrics, the ratings by people.

Takes the rows that the stages wrote; gives plain JSON values and sentences. Knows no HTML and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.report.numbers import (
    is_defined,
    render_count,
    render_interval,
    render_number,
    render_share,
)

Row: TypeAlias = Mapping[str, Any]

# Krippendorff (2004): below this no conclusion should rest on the ratings.
LEAST_ALPHA = 0.667
_SCALES = {"realism": "Realism", "consistency": "Consistency with the card"}
_KINDS = {"model": "the model", "shuffled": "the model, cards swapped", "human": "people"}


def build_bias(content: Row | None) -> dict[str, Any] | None:
    """Return the bias battery: its effects, each with the questions it was measured on, habits and drift.

    Args:
        content: of scores/bias.json; None where none was run, and then so is what is returned.
    """
    if not content or not (content.get("effects") or content.get("habits")):
        return None
    by_item: dict[str, list[dict[str, Any]]] = {}
    for row in content.get("by_item", ()):
        if row["n"]:
            by_item.setdefault(row["effect"], []).append({**row, "verdict": verdict(row)})
    effects = [
        {**row, "verdict": verdict(row), "rows": by_item.get(row["effect"], [])}
        for row in content.get("effects", ())
        if row["n"]
    ]
    findings = _bias_sentences(effects)
    broken = [row["label"] for row in effects if row["is_control"] and row["verdict"] == "clear"]
    return {
        "caption": content.get("caption", ""),
        "effects": effects,
        "habits": [row for row in content.get("habits", ()) if row["n"]],
        "drift": [{**row, "verdict": verdict(row)} for row in content.get("drift", ())],
        "against": content.get("against", ""),
        "not_measured": [row["label"] for row in content.get("effects", ()) if not row["n"]],
        "findings": findings,
        "can": findings[:1] if effects else [],
        "cannot": [
            "Small effects of a question's form: misspelling it, which should change nothing, changes its answers."
        ]
        if broken
        else [],
    }


def verdict(row: Row) -> str:
    """Return "clear" where the interval excludes zero, "none" where it does not, "unknown" where there is none."""
    low, high = row.get("low"), row.get("high")
    if not (is_defined(low) and is_defined(high)) or low is None or high is None:
        return "unknown"
    return "clear" if low > 0 or high < 0 else "none"


def _bias_sentences(effects: Sequence[Row]) -> list[str]:
    """One sentence on effects that should not be there, one on the controls."""
    signed = [row for row in effects if not row["is_level"]]
    controls = [row for row in signed if row["is_control"]]
    biased = [row for row in signed if row["verdict"] == "clear" and not row["is_control"]]
    broken = [row for row in controls if row["verdict"] == "clear"]
    sentences = []
    if biased:
        listed = "; ".join(
            f"{row['label'].lower()} {render_number(row['score'])} {render_interval(row['low'], row['high'])}"
            for row in sorted(biased, key=lambda row: -abs(row["score"]))
        )
        sentences.append(f"The form of a question changes its answers: {listed}.")
    elif len(signed) > len(controls):
        sentences.append("No change of a question's form that was tried changes its answers for certain.")
    if broken:
        listed = ", ".join(
            f"{row['label'].removeprefix('Control: ')} {render_number(row['score'])}" for row in broken
        )  # fmt: skip
        sentences.append(
            f"Controls that should change nothing do: {listed}. Effects no larger than these say nothing about the "
            "question's form."
        )
    elif controls:
        sentences.append("The controls, misspelt questions, change nothing for certain, as it should be.")
    return sentences


def build_ratings(rows: Sequence[Row], raters: Mapping[str, int]) -> dict[str, Any] | None:
    """Return what raters found; None where nothing was rated.

    Args:
        rows: of `annotation_scores`.
        raters: how many entries each rater has rated.
    """
    if not rows:
        return None
    scales = [
        {"name": name, "label": label, "rows": [_rated(row) for row in rows if row["name"] == name and row["n"]],
         "gain": _one(rows, f"conditioning_gain_{name}"), "alpha": _one(rows, f"alpha_{name}")}
        for name, label in _SCALES.items()
    ]  # fmt: skip
    told = [_rated(row) for row in rows if row["name"] in ("detection_rate", "false_alarm_rate") and row["n"]]
    found = {
        "num_raters": len(raters),
        "raters": dict(raters),
        "scales": scales,
        "told": told,
        "discrimination": _one(rows, "discrimination"),
        "alpha_guess": _one(rows, "alpha_guess"),
    }
    alphas = [_one(rows, f"alpha_{name}") for name in _SCALES]
    is_loose = any(row is not None and is_defined(row["value"]) and row["value"] < LEAST_ALPHA for row in alphas)
    findings = _rating_sentences(found, is_loose=is_loose)
    can = [text for text in findings[1:] if text.startswith(("Raters took", "Consistency"))]
    return {
        **found,
        "findings": findings,
        "can": [] if is_loose else can,
        "cannot": [f"How real or fitting people find the answers: the raters agree too little (α < {LEAST_ALPHA})."]
        if is_loose
        else [],
    }


def _rated(row: Row) -> dict[str, Any]:
    return {**row, "label": f"Answers of {_KINDS.get(row['kind'], row['kind'])}"}


def _one(rows: Iterable[Row], name: str) -> Row | None:
    return next((row for row in rows if row["name"] == name and row["n"]), None)


def _rating_sentences(found: Row, *, is_loose: bool) -> list[str]:
    who = "One rater" if found["num_raters"] == 1 else f"{found['num_raters']} raters"
    sentences = [
        f"{who} gave {render_count(sum(found['raters'].values()))} ratings, not knowing who had written an answer. "
        "Intervals say how far the figures would move with other respondents, and take the raters as given."
    ]
    gain = found["scales"][1]["gain"]
    if gain is not None and is_defined(gain["low"]):
        verdict = (
            "raters see that the answers belong to their cards" if gain["low"] > 0
            else "raters do not see for certain that the answers belong to their cards"
        )  # fmt: skip
        sentences.append(
            f"Consistency with the card is {render_number(gain['value'])} {render_interval(gain['low'], gain['high'])} "
            f"points higher with the respondent's own card than with another's: {verdict}."
        )
    told = next((row for row in found["told"] if row["name"] == "detection_rate" and row["kind"] == "model"), None)
    if told is not None:
        sentences.append(
            f"Raters took {render_share(told['value'])} of the model's answers for synthetic; 50 % would be guessing."
        )
    if is_loose:
        sentences.append(
            f"Raters agree too little (Krippendorff's α below {LEAST_ALPHA}) for their means to carry a conclusion."
        )
    return sentences
