"""How items hang together, people beside the run: Cramér's V of every pair of items on both sides.

Takes a `Comparison`, gives rows. Knows no file and no response.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from polypersona.survey.association import compare_patterns
from polypersona.survey.cells import MIN_CELL, Comparison, Row
from polypersona.survey.humans import associations_of
from polypersona.survey.inference import FloatArray

# The halves of the humans whose patterns are compared, for the ceiling.
PATTERN_HALVES = 4
# Pairs that the table holds: the most different ones, and of the others as many, evenly.
MAX_PAIRS, MOST_DIFFERENT = 10_000, 100


def pattern_rows(comparison: Comparison) -> tuple[Row, list[Row]]:
    """Return Cramér's V compared over pairs of items with its split-half ceiling, and V of each pair on both sides.

    Pairs that fewer than five people or personas answered both of are left out everywhere. `one_sided` counts those
    with V on one side only, because an item does not vary on the other. Pairs come by |difference|, the largest first;
    of more than `MAX_PAIRS` the rows are the most different and evenly chosen others.
    """
    tally, humans, num = comparison.tally, comparison.humans, comparison.tally.frame.num_joint_items
    sides = [comparison.moments(item)[1] for item in range(num)]
    people, interviews = humans.joint_counts(num), tally.joint_answers
    personas = np.array([side.num_clusters for side in sides], np.int64)
    is_shown = (people >= MIN_CELL) & (interviews >= MIN_CELL) & (np.minimum.outer(personas, personas) >= MIN_CELL)

    def shown(values: FloatArray) -> FloatArray:
        return np.where(is_shown, values, math.nan)

    sizes = np.array([side.effective_n for side in sides])
    offsets = tally.frame.offsets[: num + 1]
    human = shown(humans.associations(num))
    synthetic = shown(associations_of(tally.joint, offsets, np.minimum.outer(sizes, sizes)))
    ceiling = [
        compare_patterns(shown(humans.associations(num, first)), shown(humans.associations(num, ~first)))
        for first in humans.halves[:PATTERN_HALVES]
    ]
    known = [one.correlation.value for one in ceiling if not math.isnan(one.correlation.value)]
    pattern = compare_patterns(human, synthetic)
    pairs = np.triu_indices(num, 1)
    row = {
        "n": pattern.num_pairs,
        "one_sided": int((np.isnan(human[pairs]) != np.isnan(synthetic[pairs])).sum()),
        "correlation": pattern.correlation.value,
        "low": pattern.correlation.low,
        "high": pattern.correlation.high,
        "split_half": sum(known) / len(known) if known else math.nan,
        "mean_human": pattern.mean_human,
        "mean_synthetic": pattern.mean_synthetic,
        "mean_absolute_difference": pattern.mean_absolute,
        "signature": "cramers_v:bias_corrected(Bergsma2013)|pearson_over_pairs|interval:jackknife_items",
    }
    names = [one.question.item_id for one in comparison.items]
    rows: list[Row] = [
        {"item": names[a], "other": names[b], "n": int(interviews[a, b]), "human_n": int(people[a, b]),
         "human": float(human[a, b]), "synthetic": float(synthetic[a, b])}
        for a, b in _chosen(human, synthetic)
    ]  # fmt: skip
    return row, rows


def spread_places(count: int, limit: int, first: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` of `count` places in order: the first ones, and of the others evenly spaced ones.

    `limit` is at least two more than `first`.
    """
    if count <= limit:
        return np.arange(count)
    return np.concatenate([np.arange(first), np.linspace(first, count - 1, limit - first).round().astype(np.int64)])


def _chosen(human: FloatArray, synthetic: FloatArray) -> list[tuple[int, int]]:
    first, second = np.triu_indices(len(human), 1)
    is_known = ~(np.isnan(human) & np.isnan(synthetic))[first, second]
    first, second = first[is_known], second[is_known]
    gaps = np.nan_to_num(np.abs(human - synthetic)[first, second], nan=-1.0)
    order = np.argsort(-gaps, kind="stable")[spread_places(len(gaps), MAX_PAIRS, MOST_DIFFERENT)]
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))
