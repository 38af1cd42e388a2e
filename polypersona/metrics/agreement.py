"""Validity of closed answers, and agreement of coded answers with the reference.

Let x and y be the option indices of response and reference among K options, and u = x/(K−1), v = y/(K−1) their
positions in [0, 1]. Over pairs where both are coded:

- exact agreement: share with x = y. In [0, 1].
- within one point: share with |x − y| ≤ 1, ordered scales of three options or more (with two it says nothing).
- quadratic kappa: κ = 1 − E(u − v)² / (E u² + E v² − 2 E u E v), ordered scales. For one item this is Cohen's weighted
  kappa with quadratic weights (Cohen 1968); over items of different K it is the same on positions, and the
  concordance coefficient of Lin (1989). In [−1, 1]. Pooled over items, differences between items count as agreement,
  so read it against its shuffled floor. NaN where nothing varies.
- stance agreement: share with the same sign (−1, 0, 1) towards the item's construct, reverse keys turned, over pairs
  whose reference has one. A usable answer whose stance cannot be read does not agree.

Answers without a code (refusals, invalid ones) are left out of agreement and counted by validity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polypersona.metrics.base import SCALE, FloatArray, IntArray, Pair, fixed, mean_rows, mean_score, ratio
from polypersona.simulator.stance import stance_sign

# Response index, reference index → whether they agree.
Compare = Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class Validity:
    """Share of asked closed cells whose answer was coded as an option. Row: defined, 0 or 1 in fixed point."""

    name: str = "validity"
    label: str = "Valid closed answers"
    higher_is_better: bool = True
    needs_reference: bool = False
    width: int = 2

    @property
    def signature(self) -> str:
        return "validity:coded/asked|items:closed|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_is_valid(pair) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class ExactAgreement:
    """Share of coded pairs with the same option. Row: defined, agreement in fixed point."""

    name: str = "exact_agreement"
    label: str = "Exact agreement"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return "agreement:exact|over:coded_pairs|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_compare(pair, _same, min_options=2, is_ordered=False) for pair in pairs])

    def chance(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_expected(pair, _same, min_options=2, is_ordered=False) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class NearAgreement:
    """Share of coded pairs at most one scale point apart. Row: defined, agreement in fixed point."""

    name: str = "near_agreement"
    label: str = "Within one point"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return "agreement:within_one|over:coded_pairs|options:3+|scale:ordered|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_compare(pair, _near, min_options=3, is_ordered=True) for pair in pairs])

    def chance(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_expected(pair, _near, min_options=3, is_ordered=True) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class QuadraticKappa:
    """Quadratic weighted kappa on positions. Row: defined, then Σu, Σv, Σu², Σv², Σuv in fixed point."""

    name: str = "quadratic_kappa"
    label: str = "Quadratic kappa"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 6

    @property
    def signature(self) -> str:
        return "kappa:quadratic|over:coded_pairs|positions:0-1|scale:ordered|pooled:items|range:-1-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        rows = np.zeros((len(pairs), self.width), dtype=np.int64)
        for index, pair in enumerate(pairs):
            places = _indices(pair, min_options=2, is_ordered=True)
            if places:
                last = len(pair.item.codes) - 1
                rows[index] = _moments([places[0] / last], places[1] / last)
        return rows

    def chance(self, pairs: Sequence[Pair]) -> IntArray:
        rows = np.zeros((len(pairs), self.width), dtype=np.int64)
        for index, pair in enumerate(pairs):
            places = _indices(pair, min_options=2, is_ordered=True)
            if places:
                last = len(pair.item.codes) - 1
                rows[index] = _moments([option / last for option in range(last + 1)], places[1] / last)
        return rows

    def score(self, totals: IntArray) -> FloatArray:
        count = totals[:, 0]
        u, v, uu, vv, uv = (ratio(totals[:, column].astype(np.float64) / SCALE, count) for column in range(1, 6))
        expected = uu + vv - 2 * u * v
        # Fixed point leaves 2**-31 of each moment in doubt: below that nothing varies and kappa is undefined.
        expected[np.abs(expected) < 2**-28] = 0
        return np.asarray(1 - ratio(uu + vv - 2 * uv, expected), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class StanceAgreement:
    """Share of pairs with the same stance sign. Row: defined, agreement in fixed point."""

    name: str = "stance_agreement"
    label: str = "Stance agreement"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return "agreement:stance_sign|signs:-1,0,1|reverse:turned|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_same_stance(pair) for pair in pairs])

    def chance(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_expected_stance(pair) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def _is_valid(pair: Pair) -> float | None:
    if not pair.item.is_closed or pair.disposition == "not_asked":
        return None
    return float(pair.code in pair.item.codes)


def _same(left: int, right: int) -> bool:
    return left == right


def _near(left: int, right: int) -> bool:
    return abs(left - right) <= 1


def _indices(pair: Pair, *, min_options: int, is_ordered: bool) -> tuple[int, int] | None:
    """Return the option indices of response and reference, or None where the pair does not count."""
    item = pair.item
    if len(item.codes) < min_options or (is_ordered and item.scale != "ordered"):
        return None
    if pair.code not in item.codes or pair.reference_code not in item.codes:
        return None
    return item.codes.index(pair.code), item.codes.index(pair.reference_code)


def _compare(pair: Pair, agrees: Compare, *, min_options: int, is_ordered: bool) -> float | None:
    places = _indices(pair, min_options=min_options, is_ordered=is_ordered)
    return None if places is None else float(agrees(*places))


def _expected(pair: Pair, agrees: Compare, *, min_options: int, is_ordered: bool) -> float | None:
    places = _indices(pair, min_options=min_options, is_ordered=is_ordered)
    if places is None:
        return None
    count = len(pair.item.codes)
    return sum(agrees(option, places[1]) for option in range(count)) / count


def _moments(positions: Sequence[float], v: float) -> tuple[int, ...]:
    """Return the row of a response that is at each position with equal probability."""
    u = sum(positions) / len(positions)
    uu = sum(position * position for position in positions) / len(positions)
    return (1, fixed(u), fixed(v), fixed(uu), fixed(v * v), fixed(u * v))


def _reference_sign(pair: Pair) -> int | None:
    if pair.reference is None and pair.reference_code is None:
        return None
    return stance_sign(pair.item, pair.reference_code, pair.reference or "")


def _same_stance(pair: Pair) -> float | None:
    expected = _reference_sign(pair)
    if expected is None or not pair.has_text:
        return None
    return float(stance_sign(pair.item, pair.code, pair.text) == expected)


def _expected_stance(pair: Pair) -> float | None:
    expected = _reference_sign(pair)
    if expected is None or not pair.has_text or not pair.item.is_closed:
        return None
    agreeing = sum(stance_sign(pair.item, code, "") == expected for code in pair.item.codes)
    return agreeing / len(pair.item.codes)
