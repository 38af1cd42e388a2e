"""Statistics of whole personas → sums and rows of a score table, by item, by domain and overall.

Like `sums` and `table` for pairs: one row of integers a persona, bootstrap replicates by Poisson weights derived from
persona ids, the same columns as the other scores. A group of items is a group of columns, so there is one sum. Knows no
file and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from polypersona.metrics import card_similarity
from polypersona.metrics.base import FloatArray, IntArray
from polypersona.metrics.card_similarity import CardSimilarity, CosineOfMeans
from polypersona.metrics.consistency import ConstructPairs
from polypersona.metrics.faithfulness import Faithfulness
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.persona_score import PersonaMetric, PersonaStatistic, Scored
from polypersona.metrics.retest import Retest
from polypersona.metrics.sums import GroupKey, Kind, Sums
from polypersona.metrics.table import Row, interval, plain
from polypersona.metrics.text_pairs import PairValues
from polypersona.records import Item, Persona

# Replicates of so many columns would take long, and their percentiles gain little.
MAX_REPLICATES = 400
ALL: GroupKey = ("overall", "all")


@dataclass(frozen=True)
class PersonaMetrics:
    """The statistics of a run's personas and which of their metrics are wanted."""

    statistics: Sequence[PersonaStatistic]
    wanted: frozenset[str]
    seed: int
    num_replicates: int

    @classmethod
    def of(
        cls,
        items: Sequence[Item],
        personas: Sequence[Persona],
        next_persona: Mapping[str, str],
        names: Sequence[str],
        seed: int,
        num_replicates: int,
        comparison: CosineOfMeans | None = None,
    ) -> PersonaMetrics:
        """Return the metrics of these names that the instrument allows (all where none is named).

        Args:
            items: of the instrument.
            personas: the panel.
            next_persona: another persona for each, for the shuffled floor of facts and cards.
            names: those that are wanted.
            seed: of the bootstrap.
            num_replicates: at most; `MAX_REPLICATES` are enough.
            comparison: of answers with cards, where that is measured.
        """
        known = {persona.persona_id: persona for persona in personas}
        every: list[PersonaStatistic] = [
            ConstructPairs(items),
            Retest(items, "draws"),
            Retest(items, "waves"),
            Faithfulness(items, known, next_persona),
        ]
        if comparison is not None:
            every.append(CardSimilarity(items, known, next_persona, comparison))
        wanted = frozenset(metric.name for one in every for metric in one.metrics if not names or metric.name in names)
        chosen = [one for one in every if one.width and any(metric.name in wanted for metric in one.metrics)]
        return cls(tuple(chosen), wanted, seed, min(num_replicates, MAX_REPLICATES))

    @property
    def signatures(self) -> list[str]:
        """The settings that change any of the numbers."""
        return [metric.signature for one in self.statistics for metric in one.metrics if metric.name in self.wanted]

    @property
    def similarity(self) -> CardSimilarity | None:
        """The statistic that an encoder's values are for, None where it is not measured."""
        return card_similarity.similarity_of(self.statistics)

    def with_values(self, known: PairValues) -> PersonaMetrics:
        """Return the metrics with values of an encoder that are there already."""
        return replace(self, statistics=card_similarity.with_values(self.statistics, known))

    def empty(self) -> Sums:
        """Return sums of nothing."""
        return Sums(self.seed, self.num_replicates)

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona of some interviews, which must be all of theirs."""
        return np.concatenate([one.measure(interviews) for one in self.statistics], axis=1)

    def add(self, sums: Sums, parts: Sequence[tuple[Sequence[str], IntArray]]) -> None:
        """Add personas and their rows; many at once, because replicates cost the same for one and for a thousand."""
        names = [name for own, _ in parts for name in own]
        if names:
            rows = np.concatenate([rows for _, rows in parts])
            sums.add(rows, names, {"overall": ["all"] * len(rows)})

    def build_rows(self, sums: Sums, kind: Kind, items: Sequence[Item]) -> list[Row]:
        """Return one row per group and metric that is defined there; none of a response type."""
        if ALL not in sums.groups:
            return []
        totals, has_interval = sums.groups[ALL], sums.has_interval(ALL)
        rows = [
            _row(metric, found, group, has_interval=has_interval)
            for group, metric, found in self.scores(totals, kind, items)
        ]
        return [row for row in rows if row["n"]]

    @property
    def width(self) -> int:
        """Columns of a persona's row."""
        return sum(one.width for one in self.statistics)

    def scores(
        self, totals: IntArray, kind: Kind, items: Sequence[Item]
    ) -> Iterator[tuple[str, PersonaMetric, Scored]]:
        """Yield group, metric and score of summed rows, shape (replicates, width); none of a response type."""
        for group, item_id, domain in _groups(kind, items):
            start = 0
            for one in self.statistics:
                part = totals[:, start : start + one.width]
                start += one.width
                members = one.members(item_id, domain)
                if len(members):
                    scores = one.score(part, members)
                    yield from (
                        (group, metric, scores[metric.name]) for metric in one.metrics if metric.name in self.wanted
                    )


def _groups(kind: Kind, items: Sequence[Item]) -> list[tuple[str, str | None, str | None]]:
    """Return a kind's groups as (label, item id, domain), of which at most one is given."""
    if kind == "overall":
        return [("all", None, None)]
    if kind == "item":
        return [(item.item_id, item.item_id, None) for item in items]
    if kind == "domain":
        return [(name, None, name) for name in sorted({item.domain for item in items})]
    return []


def _row(metric: PersonaMetric, found: Scored, group: str, *, has_interval: bool) -> Row:
    undefined = (math.nan, math.nan)
    low, high = interval(found.score) if has_interval else undefined
    matched = found.score if found.matched is None else found.matched
    gains: FloatArray = np.full(1, np.nan) if found.floor is None else matched - found.floor
    gain_low, gain_high = interval(gains) if has_interval and found.floor is not None else undefined
    return {
        "metric": metric.name,
        "label": metric.label,
        "group": group,
        "n": 0 if math.isnan(found.score[0]) else found.n,
        "score": plain(found.score[0]),
        "low": plain(low),
        "high": plain(high),
        "floor": None if found.floor is None else plain(found.floor[0]),
        "floor_name": "" if found.floor is None else metric.floor_name,
        "ceiling": None,
        "ceiling_name": "",
        "uniform": None,
        "gain": plain(gains[0]),
        "gain_low": plain(gain_low),
        "gain_high": plain(gain_high),
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature,
    }
