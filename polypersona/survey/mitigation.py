"""What mitigations change: the same scores before and after each, against the same people.

A variant is the run as generated, or with one thing switched on: post-stratification weights (`weighting`), a
temperature per response type (`temperature`), both; or another run that was generated with its own mitigation, such as
`generate.calibration: content_free`. The rectified means stand in a table of their own, because they use people's
answers to the items themselves (`rectification`). Knows no file and no response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polypersona.survey.cells import Cell, Comparison, Group, Row
from polypersona.survey.comparison import score_rows, summary_rows
from polypersona.survey.humans import Humans
from polypersona.survey.inference import FloatArray, Interval, Moments
from polypersona.survey.rectification import People, Rectified, choose_sample, rectify
from polypersona.survey.weighting import Raked, rake, reweighted

GENERATED = "as generated"
MEASURES = ("w1_alignment", "total_variation", "js_distance", "mean_difference", "variance_ratio", "effective_human_n")


@dataclass(frozen=True)
class Variant:
    """A name and, by item, the moments of the run under it. `is_other` says that another run made the answers."""

    name: str
    moments: Mapping[int, Moments]
    is_other: bool = False


def rake_panel(comparison: Comparison) -> Raked:
    """Return the factors that give the run's panel the respondents' composition.

    The panel is weighed by the item with the most answers, and the respondents by their survey weights.
    """
    profiles, humans = comparison.humans.profiles, comparison.humans
    best = max(range(len(comparison.items)), key=lambda item: comparison.moments(item)[1].num_answers)
    panel = comparison.moments(best)[1].totals.sum(axis=1)
    people = np.bincount(profiles.of_respondent, weights=humans.survey.weights, minlength=profiles.count).astype(float)
    return rake(panel, people, profiles.members)


def weighted_variant(name: str, variant: Variant, factors: FloatArray) -> Variant:
    """Return a variant with the profiles' weights multiplied."""
    return Variant(name, {item: reweighted(one, factors) for item, one in variant.moments.items()}, variant.is_other)


def own_moments(comparison: Comparison) -> dict[int, Moments]:
    """Return the run's moments by item."""
    return {item: comparison.moments(item)[1] for item in range(len(comparison.items))}


def variant_rows(comparison: Comparison, variants: Sequence[Variant]) -> list[Row]:
    """Return the mean over items of each measure for each variant, and its change from the first.

    Items are those that all variants have. The mean shift is that of its size, whichever way it goes.
    """
    shared = [
        item
        for item in range(len(comparison.items))
        if all(item in one.moments and one.moments[item].num_clusters for one in variants)
    ]
    found = [_summaries(comparison, variant, shared) for variant in variants]
    rows = []
    for measure in MEASURES:
        before = found[0].get(measure) if found else None
        for variant, summaries in zip(variants, found, strict=True):
            row = summaries.get(measure)
            if row is None or before is None:
                continue
            rows.append(
                {
                    "measure": measure,
                    "label": row["label"],
                    "variant": variant.name,
                    "items": row["items"],
                    "n": row["n"],
                    "n_effective": row["n_effective"],
                    "score": row["score"],
                    "low": row["low"],
                    "high": row["high"],
                    "change": row["score"] - before["score"],
                    "higher_is_better": row["higher_is_better"],
                    "signature": row["signature"],
                }
            )
    return rows


def rectified_rows(comparison: Comparison, moments: Mapping[int, Moments], size: int) -> list[Row]:
    """Return, by ordered item, the run's mean, that of a sample of people, both together, and the other people's."""
    humans, rows = comparison.humans, []
    chosen = choose_sample(tuple(humans.survey.respondent_ids), size)
    for item, aligned in enumerate(comparison.items):
        values = np.array(aligned.question.values, float)
        if not aligned.question.is_ordered or values.max() == values.min() or item not in moments:
            continue
        sample, benchmark = _people(humans, item, values, chosen), _people(humans, item, values, ~chosen)
        if len(sample) < 2 or len(benchmark) < 2:
            continue
        found = rectify(moments[item], values, sample, benchmark)
        rows.append(
            {
                "item": aligned.question.item_id,
                "people_asked": len(sample),
                "people_held_out": len(benchmark),
                **_columns("benchmark", found.benchmark),
                **_columns("synthetic", found.synthetic),
                **_columns("sample", found.sample),
                **_columns("rectified", found.rectified),
                "width_ratio": found.width_ratio,
                **{f"{name}_covers": covers(interval, found.benchmark) for name, interval in _estimates(found).items()},
                "signature": f"ppi(Angelopoulos2023)|f:profile_mean|sample:{size}|positions:0-1|interval:linearised",
            }
        )
    return rows


def rectified_summary(rows: Sequence[Row]) -> dict[str, float | int]:
    """Return mean absolute errors, the share of items whose interval covers the benchmark, and the mean width ratio."""
    found: dict[str, float | int] = {"items": len(rows)}
    for name in ("synthetic", "sample", "rectified"):
        gaps = [abs(row[name] - row["benchmark"]) for row in rows]
        found[f"{name}_error"] = float(np.mean(gaps)) if gaps else math.nan
        found[f"{name}_covered"] = float(np.mean([row[f"{name}_covers"] for row in rows])) if rows else math.nan
    ratios = [row["width_ratio"] for row in rows if math.isfinite(row["width_ratio"])]
    found["width_ratio"] = float(np.mean(ratios)) if ratios else math.nan
    return found


def covers(estimate: Interval, benchmark: Interval) -> bool:
    """Return whether an estimate and the benchmark agree within 1.96 joint standard errors."""
    error = math.hypot(estimate.error, benchmark.error)
    return abs(estimate.value - benchmark.value) <= 1.959963984540054 * error


def _estimates(found: Rectified) -> dict[str, Interval]:
    return {"synthetic": found.synthetic, "sample": found.sample, "rectified": found.rectified}


def _columns(name: str, found: Interval) -> Row:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_error": found.error}


def _summaries(comparison: Comparison, variant: Variant, shared: Sequence[int]) -> dict[str, Row]:
    everybody: Group = comparison.groups[0]
    rows: list[Row] = []
    for item in shared:
        human = comparison.moments(item)[0].collapse(everybody.members)
        own = variant.moments[item]
        synthetic = own if variant.is_other else own.collapse(everybody.members)
        halves = comparison.humans.half_totals(item).sum(axis=2)
        cell = Cell(comparison.items[item], everybody, human, synthetic, (human, synthetic), halves, variant.name)
        if cell.is_shown:
            rows += [_sized(row) for row in score_rows(cell)]
    return {row["metric"]: row for row in summary_rows(rows)}


def _sized(row: Row) -> Row:
    """Return the row of a shift as its size: those of several items shall not cancel."""
    if row["metric"] != "mean_difference" or math.isnan(row["score"]):
        return row
    low, high = row["low"], row["high"]
    least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return row | {
        "score": abs(row["score"]),
        "low": least,
        "high": max(abs(low), abs(high)),
        "label": "Size of the shift of the mean",
        "higher_is_better": False,
    }


def _people(humans: Humans, item: int, values: FloatArray, chosen: npt.NDArray[np.bool_]) -> People:
    answers = humans.survey.answers[humans.items[item].question.item_id]
    kept = answers.is_answered & chosen
    places = (values - values.min()) / (values.max() - values.min())
    return People(humans.profiles.of_respondent[kept], places[answers.options[kept]], humans.survey.weights[kept])
