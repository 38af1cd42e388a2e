"""A shard's rows → the statistics of its metrics. Pure: takes a table, gives a `Partial` that adds up.

Every pair is measured once: rows that ask the same of a metric (equal item, answer and reference) share their
statistics, so a run of closed items costs as much as its distinct answers. Knows metrics and references, no file and
no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from polypersona.errors import StorageError
from polypersona.metrics.base import IntArray, Metric, Pair, is_agreement
from polypersona.metrics.distinct import Distinct, NgramSet, fold_of
from polypersona.metrics.sums import Block, GroupKey, Kind, Layout, Sums, group_labels
from polypersona.metrics.table import Row
from polypersona.records import Item
from polypersona.references import Reference, References

COLUMNS = ("persona_id", "item_id", "variant", "domain", "response_type", "text", "code", "disposition", "adapter")
MAX_REMEMBERED_PAIRS = 20_000
NO_ADAPTER = "none"

How = Literal["measure", "chance"]


@dataclass(frozen=True)
class Settings:
    """What a run is scored with. Picklable; the same in every process.

    `subgroups` are each persona's, `model` is who answers where no adapter does.
    """

    metrics: tuple[Metric, ...]
    set_metrics: tuple[Distinct, ...]
    items: Mapping[str, Item]
    references: References | None
    seed: int
    num_replicates: int
    subgroups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    model: str = "model"

    @cached_property
    def layout(self) -> Layout:
        """The columns of a row."""
        return Layout(
            self.metrics, self.references is not None, self.references is not None and self.references.has_retest
        )

    def label_of(self, adapter: str) -> str:
        """Return how a table names who answered."""
        return self.model if adapter in ("", NO_ADAPTER) else f"{self.model} + {adapter}"


@dataclass
class Partial:
    """Statistics of some shards: sums, sets of n-grams, and rows by disposition. `variants` counts rows left out.

    `persona_rows` are the finished rows of what looks at whole personas, by kind of group.
    """

    sums: Sums
    ngrams: dict[tuple[str, bool, GroupKey], NgramSet] = field(default_factory=dict)
    dispositions: Counter[str] = field(default_factory=Counter)
    variants: int = 0
    persona_rows: dict[Kind, list[Row]] = field(default_factory=dict)

    @classmethod
    def empty(cls, settings: Settings) -> Partial:
        """Return statistics of nothing."""
        return cls(Sums(settings.seed, settings.num_replicates))

    def merge(self, other: Partial) -> None:
        """Add another process's statistics."""
        self.sums.merge(other.sums)
        self.dispositions.update(other.dispositions)
        self.variants += other.variants
        for key, ngrams in other.ngrams.items():
            self._unite(key, ngrams)

    def _unite(self, key: tuple[str, bool, GroupKey], ngrams: NgramSet) -> None:
        self.ngrams[key] = self.ngrams[key].union(ngrams) if key in self.ngrams else ngrams


@dataclass
class Scorer:
    """Measures shards, one after another, into one `Partial`."""

    settings: Settings
    partial: Partial
    _known: dict[tuple[Hashable, ...], IntArray] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, settings: Settings) -> Scorer:
        """Return a scorer that has measured nothing yet."""
        return cls(settings, Partial.empty(settings))

    def add(self, table: pa.Table) -> None:
        """Measure the rows of one shard, of which `COLUMNS` are read.

        Rows of changed items and those that were not asked are counted, not scored.
        """
        rows = table.select(list(COLUMNS)).to_pylist()
        self.partial.dispositions.update(row["disposition"] for row in rows)
        scored = scored_rows(rows)
        self.partial.variants += sum(1 for row in rows if row["variant"])
        if not scored:
            return
        personas = [row["persona_id"] for row in scored]
        models = [self.settings.label_of(row["adapter"]) for row in scored]
        domains, types, items = ([row[name] for row in scored] for name in ("domain", "response_type", "item_id"))
        labels = group_labels(domains, types, items, models)
        pairs = [self._pair(row) for row in scored]
        measured = self._rows(pairs, personas)
        self.partial.sums.add(measured, personas, labels)
        self.partial.sums.add_subgroups(measured, personas, self.settings.subgroups)
        folds = [fold_of(persona) for persona in personas]
        for kind, group in labels.items():
            for label in sorted(set(group)):
                chosen = [index for index, name in enumerate(group) if name == label]
                self._collect([pairs[index] for index in chosen], [folds[index] for index in chosen], (kind, label))

    def measure_rows(self, rows: Sequence[Mapping[str, Any]]) -> IntArray:
        """Return the statistics of scored rows, shape (num_rows, layout.width), without adding them up."""
        return self._rows([self._pair(row) for row in rows], [row["persona_id"] for row in rows])

    def compared_texts(self, table: pa.Table) -> Iterator[tuple[str, str, str, str]]:
        """Yield (item id, persona id, response, reference) of every pair of texts that `add` compares.

        Against the cell's own reference, and against the shuffled floor's.
        """
        references = self.settings.references
        if references is None:
            return
        for row in scored_rows(table.select(list(COLUMNS)).to_pylist()):
            pair = self._pair(row)
            floor = _against(pair, references.shuffled(row["persona_id"], row["item_id"]))
            for texts in (pair.texts, floor.texts):
                if texts is not None:
                    yield row["item_id"], row["persona_id"], *texts

    def _pair(self, row: Mapping[str, Any]) -> Pair:
        item = self.settings.items.get(row["item_id"])
        if item is None:
            raise StorageError(
                f"The responses hold the item {row['item_id']!r}, which the recipe's instrument lacks.",
                "Evaluate with the recipe that the responses were made with.",
            )
        references = self.settings.references
        reference = references.own(row["persona_id"], row["item_id"]) if references else None
        text, code = reference or (None, None)
        return Pair(item, row["text"], row["code"], row["disposition"], text, code)

    def _rows(self, pairs: Sequence[Pair], personas: Sequence[str]) -> IntArray:
        """Return all blocks of all metrics, shape (num_pairs, layout.width)."""
        layout, references = self.settings.layout, self.settings.references
        rows = np.zeros((len(pairs), layout.width), dtype=np.int64)
        measured = tuple(metric for metric in self.settings.metrics if layout.blocks_of(metric))
        self._fill(rows, "score", measured, pairs)
        if references is None:
            return rows
        cells = [(persona, pair.item.item_id) for persona, pair in zip(personas, pairs, strict=True)]
        compared = tuple(metric for metric in measured if metric.needs_reference)
        others = [references.shuffled(*cell) for cell in cells]
        self._fill(rows, "floor", compared, [_against(*both) for both in zip(pairs, others, strict=True)])
        _match(rows, layout, compared)
        agreements = tuple(metric for metric in compared if is_agreement(metric))
        self._fill(rows, "uniform", agreements, pairs)
        if layout.has_retest:
            opinions = [references.retest(*cell) for cell in cells]
            self._fill(rows, "retest", agreements, [_answered(*both) for both in zip(pairs, opinions, strict=True)])
        return rows

    def _fill(self, rows: IntArray, block: Block, metrics: Sequence[Metric], pairs: Sequence[Pair]) -> None:
        """Measure one block of the metrics; equal pairs are measured once, also across shards."""
        if not metrics:
            return
        how: How = "chance" if block == "uniform" else "measure"
        # Each block's metrics are those of the one before, or fewer: their number tells them apart.
        keys = [(how, len(metrics), *_key(pair)) for pair in pairs]
        if len(self._known) > MAX_REMEMBERED_PAIRS:
            self._known.clear()
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        if new:
            parts = [getattr(metric, how)(list(new.values())) for metric in metrics]
            self._known.update(zip(new, np.concatenate(parts, axis=1), strict=True))
        measured = np.stack([self._known[key] for key in keys])
        start = 0
        for metric in metrics:
            rows[:, self.settings.layout.columns[block, metric.name]] = measured[:, start : start + metric.width]
            start += metric.width

    def _collect(self, pairs: Sequence[Pair], folds: Sequence[int], group: GroupKey) -> None:
        chosen = [(pair, fold) for pair, fold in zip(pairs, folds, strict=True) if pair.has_text]
        if not chosen:
            return
        for metric in self.settings.set_metrics:
            own = metric.collect([pair.text for pair, _ in chosen], [fold for _, fold in chosen])
            self.partial._unite((metric.name, False, group), own)
            compared = [(pair.reference, fold) for pair, fold in chosen if pair.reference is not None]
            if compared:
                expected = metric.collect([text for text, _ in compared], [fold for _, fold in compared])
                self.partial._unite((metric.name, True, group), expected)


def scored_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are scored: of the items as they are, and asked."""
    return [row for row in rows if not row["variant"] and row["disposition"] != "not_asked"]


def _key(pair: Pair) -> tuple[Hashable, ...]:
    return (pair.item.item_id, pair.text, pair.code, pair.disposition, pair.reference, pair.reference_code)


def _against(pair: Pair, reference: Reference | None) -> Pair:
    """Return the pair with another reference."""
    text, code = reference or (None, None)
    return replace(pair, reference=text, reference_code=code)


def _answered(pair: Pair, answer: Reference | None) -> Pair:
    """Return the pair with another answer in the response's place; blank where there is none."""
    text, code = answer or ("", None)
    return replace(pair, text=text, code=code, disposition="complete")


def _match(rows: IntArray, layout: Layout, metrics: Sequence[Metric]) -> None:
    """Fill `matched` with the score's rows where score and floor are both defined, and clear the floor elsewhere."""
    for metric in metrics:
        score, floor = layout.columns["score", metric.name], layout.columns["floor", metric.name]
        both = (rows[:, score.start] > 0) & (rows[:, floor.start] > 0)
        rows[:, layout.columns["matched", metric.name]] = rows[:, score] * both[:, None]
        rows[:, floor] *= both[:, None]
