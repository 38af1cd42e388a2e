"""The contract of a metric: pairs in, rows of exactly summable statistics out, a score from their sum.

A metric knows one response and its reference. It knows no persona, domain, shard, interval or Ray: grouping, summing,
floors and intervals are `sums` and `table`. Rows are int64: counts, or values in fixed point (`SCALE`), so that any
order and any sharding of the addition gives the same bytes. Column 0 of every row is 1 where the metric is defined for
the pair; an undefined pair is a row of zeros, and the score of a sum whose column 0 is zero is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from polypersona.records import Disposition, Item

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
# A response's text and a reference's.
TextPair: TypeAlias = tuple[str, str]

# Texts whose tokens, sentiment and so on a process remembers: a shard's, as response and as reference.
MAX_REMEMBERED_TEXTS = 2**16
# One in fixed point. A value in [-1, 1] is kept to 2**-31; sums of up to 2**32 rows fit an int64.
SCALE = 2**30


@dataclass(frozen=True, slots=True)
class Pair:
    """A response and what it is compared with. `reference` is None where there is nothing to compare with."""

    item: Item
    text: str
    code: int | None = None
    disposition: Disposition = "complete"
    reference: str | None = None
    reference_code: int | None = None

    @property
    def has_text(self) -> bool:
        """Whether the response is a text to judge: complete or cut by the length limit, and not blank."""
        return self.disposition in ("complete", "truncated") and bool(self.text.strip())

    @property
    def texts(self) -> tuple[str, str] | None:
        """Response and reference text, or None where either is missing."""
        if self.reference is None or not self.reference.strip() or not self.has_text:
            return None
        return self.text, self.reference


class Metric(Protocol):
    """One measure. Its values stand in [0, 1] unless its signature says otherwise."""

    @property
    def name(self) -> str:
        """Identifier: the key in recipes, files and reports."""

    @property
    def label(self) -> str:
        """Short name for a table's head."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares; only then has it a shuffled floor."""

    @property
    def signature(self) -> str:
        """The settings and versions that change the number, as `key:value|…`."""

    @property
    def width(self) -> int:
        """Columns of a row."""

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        """Return one row per pair, shape (num_pairs, width)."""

    def score(self, totals: IntArray) -> FloatArray:
        """Return one score per summed row, shape (num_totals, width) → (num_totals,); NaN where column 0 is 0."""


class Agreement(Metric, Protocol):
    """A metric of coded answers: it also knows what a uniformly random option would score."""

    def chance(self, pairs: Sequence[Pair]) -> IntArray:
        """Return the expected rows of a response drawn uniformly from the item's options."""


def is_agreement(metric: Metric) -> TypeGuard[Agreement]:
    """Return whether the metric is one of coded answers."""
    return callable(getattr(metric, "chance", None))


def fixed(value: float) -> int:
    """Return a value in fixed point: the nearest integer to value × SCALE."""
    return round(value * SCALE)


def mean_rows(values: Sequence[float | None]) -> IntArray:
    """Return rows (1, fixed value) of a metric that is a mean; None is undefined. Shape (num_values, 2)."""
    flat = [number for value in values for number in ((0, 0) if value is None else (1, fixed(value)))]
    return np.array(flat, dtype=np.int64).reshape(-1, 2)


def mean_score(totals: IntArray) -> FloatArray:
    """Return the means of summed `mean_rows`."""
    return ratio(totals[:, 1].astype(np.float64) / SCALE, totals[:, 0])


def ratio(numerator: FloatArray, denominator: npt.NDArray[np.int64] | FloatArray) -> FloatArray:
    """Return numerator / denominator, NaN where the denominator is zero."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result
