"""Retest agreement: does a persona that is asked again give the same closed answer?

Two answers of a persona to one closed item are a pair: of two *draws* in the same wave (an independent repeat of the
cell), or of two *waves* in the same draw (a repeat of the instrument). With option indices x and y of K options:

- exact: share of pairs with x = y. In [0, 1], higher is better.
- within one point: share with |x − y| ≤ 1, ordered scales of three options or more. In [0, 1], higher is better.
- kappa: κ = 1 − Σ (x − y)² / (K − 1)² / Σ 2 Var(x) / (K − 1)², ordered scales, the variance being that of the item's
  answers over all personas: quadratic weighted kappa with equal marginals (Scott's π, Scott 1955, with the weights of
  Cohen 1968), summed item by item so that differences between items do not count as agreement; it is the intraclass
  correlation of two repeats. In (−∞, 1], higher is better.

The floor of the first two is what a pair of two different personas' answers to the same item would score, its
expectation over all shufflings: Σ p_k p_l over agreeing options, p the marginal of the item's paired answers. That of κ
is 0. High retest agreement is no merit where answers do not depend on the card: read it beside its floor.

The statistic is, by persona and item: pairs, exact ones, near ones, Σ (x − y)², and how often each option is in a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from polypersona.metrics.base import FloatArray, IntArray, ratio
from polypersona.metrics.interviews import NO_OPTION, Interviews
from polypersona.metrics.persona_score import PersonaMetric, Scored
from polypersona.records import Item

Repeat = Literal["draws", "waves"]
_FIXED = 4  # pairs, exact, near, squared distance
_SCALE = 1 << 20
_HEADS = {"draws": "between draws", "waves": "between waves"}


@dataclass(frozen=True)
class Retest:
    """Agreement between repeats of one kind."""

    items: Sequence[Item]
    repeat: Repeat

    @cached_property
    def metrics(self) -> Sequence[PersonaMetric]:
        """What is scored."""
        where, head = f"repeat:{self.repeat}|items:closed", _HEADS[self.repeat]
        return (
            PersonaMetric(
                f"retest_{self.repeat}_exact", f"Retest {head}, exact", True, f"retest:exact|{where}|range:0-1"
            ),
            PersonaMetric(
                f"retest_{self.repeat}_near",
                f"Retest {head}, within one point",
                True,
                f"retest:within_one|{where}|options:3+|scale:ordered|range:0-1",
            ),
            PersonaMetric(
                f"retest_{self.repeat}_kappa",
                f"Retest {head}, quadratic kappa",
                True,
                f"retest:kappa,quadratic,scott|{where}|scale:ordered|within:item|range:-inf-1",
            ),
        )

    @cached_property
    def closed(self) -> Sequence[int]:
        """Places of the closed items."""
        return [place for place, item in enumerate(self.items) if item.is_closed]

    @cached_property
    def num_options(self) -> int:
        """The most options an item has."""
        return max((len(self.items[place].codes) for place in self.closed), default=0)

    @property
    def width(self) -> int:
        """Columns of a persona's row."""
        return len(self.closed) * (_FIXED + self.num_options)

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona, shape (personas, width)."""
        rows = np.zeros((interviews.num_personas, len(self.closed), _FIXED + self.num_options), np.int64)
        options = interviews.options[:, self.closed]
        for persona, first, second in self._pairs(interviews):
            x, y = options[first], options[second]
            place = np.flatnonzero((x != NO_OPTION) & (y != NO_OPTION))
            apart = np.abs(x - y)[place]
            row = rows[persona]
            row[place, :_FIXED] += np.stack([np.ones_like(apart), apart == 0, apart <= 1, apart * apart], axis=1)
            for chosen in (x[place], y[place]):
                row[place, _FIXED + chosen] += 1
        return rows.reshape(len(rows), self.width)

    def members(self, item_id: str | None, domain: str | None) -> IntArray:
        """Return the closed items of a group."""
        chosen = [
            index
            for index, place in enumerate(self.closed)
            if item_id in (None, self.items[place].item_id) and domain in (None, self.items[place].domain)
        ]
        return np.array(chosen, np.int64)

    def score(self, totals: IntArray, members: IntArray) -> Mapping[str, Scored]:
        """Return each metric's score and floor from summed rows, shape (replicates, width), for some items."""
        parts = totals.reshape(len(totals), len(self.closed), _FIXED + self.num_options)[:, members]
        sizes = np.array([len(self.items[self.closed[index]].codes) for index in members], np.float64)
        is_ordered = np.array([self.items[self.closed[index]].scale == "ordered" for index in members], bool)
        count, shares = parts[:, :, 0].astype(np.float64), _shares(parts[:, :, _FIXED:])
        places = np.arange(self.num_options)
        gaps = np.abs(places[:, None] - places[None, :])
        floors = [np.einsum("rik,kl,ril->ri", shares, (gaps <= far).astype(np.float64), shares) for far in (0, 1)]
        near = is_ordered & (sizes >= 3)
        name = f"retest_{self.repeat}"
        mean = shares @ places
        spread = shares @ (places * places) - mean * mean
        # A replicate whose marginal is one option has no variance but for rounding.
        spread[spread < 1 / _SCALE] = 0
        scale = np.where(is_ordered & (sizes > 1), 1 / np.maximum(sizes - 1, 1) ** 2, 0.0)
        expected = (2 * count * spread * scale).sum(axis=1)
        kappa = 1 - ratio((parts[:, :, 3] * scale).sum(axis=1), expected)
        num_ordered = int(count[0, scale > 0].sum())
        return {
            f"{name}_exact": Scored(
                _share(parts[:, :, 1], count), _share(floors[0] * count, count), int(count[0].sum())
            ),
            f"{name}_near": Scored(
                _share(parts[:, near, 2], count[:, near]),
                _share((floors[1] * count)[:, near], count[:, near]),
                int(count[0, near].sum()),
            ),
            f"{name}_kappa": Scored(kappa, np.where(np.isnan(kappa), np.nan, 0.0), num_ordered),
        }

    def _pairs(self, interviews: Interviews) -> Iterator[tuple[int, int, int]]:
        """Yield the pairs of interviews that repeat each other, with their persona."""
        kept, varied = (
            (interviews.wave, interviews.draw) if self.repeat == "draws" else (interviews.draw, interviews.wave)
        )
        for persona, own in enumerate(interviews.by_persona):
            for first, second in combinations(own.tolist(), 2):
                if kept[first] == kept[second] and varied[first] != varied[second]:
                    yield persona, first, second


def _share(part: FloatArray | IntArray, count: FloatArray) -> FloatArray:
    return ratio(np.asarray(part.sum(axis=1), dtype=np.float64), count.sum(axis=1))


def _shares(counts: IntArray) -> FloatArray:
    total = counts.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0))
