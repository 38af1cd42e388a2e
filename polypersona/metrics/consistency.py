"""Consistency within a persona: do its answers to several items of one construct say the same?

Two items of one construct that a persona answered in one interview are a pair. With reverse keys turned, s and t are
the signs of its two stances (−1, 0, 1) and x and y its positions in [−1, 1] (an option's place on its scale, or the
level that an open answer's opening sentence takes). Over all pairs:

- stance consistency: share of pairs with s = t. In [0, 1], higher is better.
- contradiction rate: share with s = −t among pairs with s, t ≠ 0, so that only answers on either side of the middle
  contradict each other. In [0, 1], lower is better.
- inter-item correlation: Σ n cov(x, y) / Σ n √(var x · var y), sums over the pairs of items; the average inter-item
  correlation of classical test theory, from which Cronbach's α follows for a scale of k items as k r / (1 + (k − 1) r)
  (Cronbach 1951). In [−1, 1], higher is better.

The floor is what the same answers score when the second item of each pair is answered by another persona: its
expectation over all such shufflings, computed exactly from the marginals of each pair of items. It is 0 for the
correlation. A run whose answers all say yes is consistent and gains nothing over its floor.

The statistic is, by persona, the 3 × 3 table of (s, t) of each pair of items, and the moments of (x, y) in fixed point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from polypersona.metrics.base import SCALE, FloatArray, IntArray, ratio
from polypersona.metrics.interviews import NO_SIGN, Interviews
from polypersona.metrics.persona_score import PersonaMetric, Scored
from polypersona.records import Item, digest

# Pairs of items beyond which some are left out: those whose ids' digests come last.
MAX_PAIRS = 600
_TABLE, _MOMENTS = 9, 6
_SAME, _OPPOSITE, _SIDED = (0, 4, 8), (2, 6), (0, 2, 6, 8)
_SIGNATURE = f"pairs:items_of_a_construct,within_interview|reverse:turned|max_pairs:{MAX_PAIRS}"

METRICS = (
    PersonaMetric(
        "stance_consistency", "Consistency of stance", True, f"consistency:same_sign|{_SIGNATURE}|range:0-1"
    ),
    PersonaMetric(
        "contradiction_rate", "Contradiction rate", False,
        f"contradiction:opposite_signs/both_sided|{_SIGNATURE}|range:0-1",
    ),
    PersonaMetric(
        "inter_item_correlation", "Inter-item correlation", True, f"correlation:pearson,pooled|{_SIGNATURE}|range:-1-1"
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ConstructPairs:
    """The pairs of an instrument's items that measure the same construct."""

    items: Sequence[Item]

    @property
    def metrics(self) -> Sequence[PersonaMetric]:
        """What is scored."""
        return METRICS

    @cached_property
    def pairs(self) -> Sequence[tuple[int, int]]:
        """Places of the items of each pair, in the instrument's order."""
        by_construct: dict[str, list[int]] = {}
        for place, item in enumerate(self.items):
            if item.construct and (item.scale == "ordered" or not item.is_closed):
                by_construct.setdefault(item.construct, []).append(place)
        found = [pair for places in by_construct.values() for pair in combinations(places, 2)]
        if len(found) > MAX_PAIRS:
            named = {pair: digest(*(self.items[place].item_id for place in pair)) for pair in found}
            found = sorted(found, key=named.__getitem__)[:MAX_PAIRS]
        return sorted(found)

    @property
    def width(self) -> int:
        """Columns of a persona's row."""
        return len(self.pairs) * (_TABLE + _MOMENTS)

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona, shape (personas, width)."""
        tables = np.zeros((interviews.num_personas, len(self.pairs), _TABLE), np.int64)
        moments = np.zeros((interviews.num_personas, len(self.pairs), _MOMENTS), np.int64)
        if self.pairs:
            first, second = (np.array([pair[side] for pair in self.pairs]) for side in (0, 1))
            s, t = interviews.signs[:, first], interviews.signs[:, second]
            known = (s != NO_SIGN) & (t != NO_SIGN)
            row, pair = np.nonzero(known)
            persona = interviews.persona[row]
            cell = 3 * (s[known].astype(np.int64) + 1) + t[known] + 1
            np.add.at(tables, (persona, pair, cell), 1)
            x, y = interviews.positions[:, first][known], interviews.positions[:, second][known]
            values = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)
            values[:, 1:] *= SCALE
            np.add.at(moments, (persona, pair), np.rint(values).astype(np.int64))
        rows = np.concatenate([tables, moments], axis=2)
        return rows.reshape(len(rows), self.width)

    def members(self, item_id: str | None, domain: str | None) -> IntArray:
        """Return the pairs of a group: all, or those with an item, or in a domain."""
        chosen = [
            place
            for place, pair in enumerate(self.pairs)
            if (item_id is None or item_id in {self.items[index].item_id for index in pair})
            and (domain is None or {self.items[index].domain for index in pair} == {domain})
        ]
        return np.array(chosen, np.int64)

    def score(self, totals: IntArray, members: IntArray) -> Mapping[str, Scored]:
        """Return each metric's score and floor from summed rows, shape (replicates, width), for some pairs."""
        parts = totals.reshape(len(totals), len(self.pairs), _TABLE + _MOMENTS)[:, members]
        table = parts[:, :, :_TABLE]
        by_pair = table.sum(axis=2).astype(np.float64)
        square = table.reshape(*table.shape[:2], 3, 3).astype(np.float64)
        expected = np.einsum("rps,rpt->rpst", square.sum(axis=3), square.sum(axis=2))
        expected = _per(expected.reshape(*table.shape), by_pair)
        found: dict[str, Scored] = {}
        count = table.sum(axis=(1, 2))
        found["stance_consistency"] = Scored(
            ratio(_cells(table, _SAME), count), ratio(_cells(expected, _SAME), count), int(count[0])
        )
        sided = _cells(table, _SIDED)
        found["contradiction_rate"] = Scored(
            ratio(_cells(table, _OPPOSITE), sided),
            ratio(_cells(expected, _OPPOSITE), _cells(expected, _SIDED)),
            int(sided[0]),
        )
        correlation = _correlation(parts[:, :, _TABLE:])
        found["inter_item_correlation"] = Scored(
            correlation, np.where(np.isnan(correlation), np.nan, 0.0), int(count[0])
        )
        return found


def _cells(table: FloatArray | IntArray, cells: Sequence[int]) -> FloatArray:
    return np.asarray(table[:, :, list(cells)].sum(axis=(1, 2)), dtype=np.float64)


def _per(values: FloatArray, counts: FloatArray) -> FloatArray:
    return np.divide(values, counts[..., None], out=np.zeros(values.shape), where=counts[..., None] > 0)


def _correlation(moments: IntArray) -> FloatArray:
    """Return the pooled correlation of (replicates, pairs, 6) moments."""
    count = moments[:, :, 0].astype(np.float64)
    means = _per(moments[:, :, 1:] / SCALE, count)
    x, y, xx, yy, xy = (means[:, :, column] for column in range(5))
    # Fixed point leaves 2**-31 of each moment in doubt: below that nothing varies.
    spread = np.sqrt(np.clip(xx - x * x, 0, None) * np.clip(yy - y * y, 0, None))
    spread[spread < 2**-24] = 0
    shared = np.where(spread > 0, count * (xy - x * y), 0.0)
    return ratio(shared.sum(axis=1), (count * spread).sum(axis=1))
