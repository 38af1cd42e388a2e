"""Sums → the rows of a score table: score, n, interval, floor, ceiling, gain, signature. Knows no file and no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from polypersona.metrics.base import FloatArray, Metric
from polypersona.metrics.distinct import NgramSet, SetMetric
from polypersona.metrics.sums import Block, GroupKey, Kind, Layout, Sums

Row: TypeAlias = dict[str, Any]
# (metric name, of the references?, group) → the n-grams of that group.
NgramSets: TypeAlias = Mapping[tuple[str, bool, GroupKey], NgramSet]

CONDITIONING_METRICS = ("stance_agreement", "exact_agreement", "bleu")


def build_rows(layout: Layout, sums: Sums, kind: Kind) -> list[Row]:
    """Return one row per group and metric that adds up; undefined numbers are None with n = 0."""
    return [
        _sum_row(layout, sums, metric, (kind, label))
        for label in sums.labels(kind)
        for metric in layout.metrics
        if layout.blocks_of(metric)
    ]


def build_set_rows(metrics: Sequence[SetMetric], ngrams: NgramSets, kind: Kind, *, has_reference: bool) -> list[Row]:
    """Return one row per group and set metric; the ceiling is the references' own score."""
    groups = sorted({key[2] for key in ngrams if key[2][0] == kind})
    return [_set_row(metric, ngrams, group, has_reference) for group in groups for metric in metrics]


def conditioning(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the persona adds: score minus shuffled floor, overall, of the first metric where both are defined.

    `ignores_cards` is true unless the gain's interval lies above zero; None where there is no interval. `gains` has the
    same of every metric with such a floor, and `kept`, the share of the score that another persona's reference keeps.
    """
    by_name = {row["metric"]: row for row in rows}
    gains = [_gain(row) for row in rows if row["gain"] is not None and row["floor_name"] == "shuffled"]
    for name in CONDITIONING_METRICS:
        row = by_name.get(name)
        if row is not None and row["gain"] is not None:
            low = row["gain_low"]
            return {
                "metric": name,
                "gain": row["gain"],
                "low": low,
                "high": row["gain_high"],
                "ignores_cards": None if low is None else low <= 0,
                "gains": gains,
            }
    return {"metric": None, "gain": None, "low": None, "high": None, "ignores_cards": None, "gains": gains}


def _gain(row: Row) -> dict[str, Any]:
    matched = row["floor"] + row["gain"]
    return {
        "metric": row["metric"],
        "gain": row["gain"],
        "low": row["gain_low"],
        "high": row["gain_high"],
        "kept": row["floor"] / matched if matched > 0 else None,
        "higher_is_better": row["higher_is_better"],
    }


def _sum_row(layout: Layout, sums: Sums, metric: Metric, key: GroupKey) -> Row:
    totals = sums.groups[key]
    scores: dict[Block, FloatArray] = {
        block: metric.score(totals[:, layout.columns[block, metric.name]]) for block in layout.blocks_of(metric)
    }
    has_interval = sums.has_interval(key)
    low, high = interval(scores["score"]) if has_interval else (math.nan, math.nan)
    gains = scores["matched"] - scores["floor"] if "floor" in scores else np.full(1, np.nan)
    gain_low, gain_high = interval(gains) if has_interval else (math.nan, math.nan)
    return {
        "metric": metric.name,
        "label": metric.label,
        "group": key[1],
        "n": int(totals[0, layout.columns["score", metric.name].start]),
        "score": plain(scores["score"][0]),
        "low": plain(low),
        "high": plain(high),
        "floor": plain(scores["floor"][0]) if "floor" in scores else None,
        "floor_name": "shuffled" if "floor" in scores else "",
        "ceiling": plain(scores["retest"][0]) if "retest" in scores else None,
        "ceiling_name": "retest" if "retest" in scores else "",
        "uniform": plain(scores["uniform"][0]) if "uniform" in scores else None,
        "gain": plain(gains[0]),
        "gain_low": plain(gain_low),
        "gain_high": plain(gain_high),
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature,
    }


def _set_row(metric: SetMetric, ngrams: NgramSets, key: GroupKey, has_reference: bool) -> Row:
    own = ngrams.get((metric.name, False, key))
    reference = ngrams.get((metric.name, True, key))
    found = metric.score(own) if own is not None else (math.nan,) * 3
    return {
        "metric": metric.name,
        "label": metric.label,
        "group": key[1],
        "n": own.num_texts if own is not None and not math.isnan(found[0]) else 0,
        "score": plain(found[0]),
        "low": plain(found[1]),
        "high": plain(found[2]),
        "floor": None,
        "floor_name": "",
        "ceiling": plain(metric.score(reference).score) if reference is not None else None,
        "ceiling_name": "references" if has_reference else "",
        "uniform": None,
        "gain": None,
        "gain_low": None,
        "gain_high": None,
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature,
    }


def interval(scores: FloatArray) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the replicates; NaN where the score or a tenth of them are undefined."""
    replicates = scores[1:]
    known = replicates[~np.isnan(replicates)]
    if math.isnan(scores[0]) or len(known) < 0.9 * len(replicates) or not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
