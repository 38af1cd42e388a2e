"""ROUGE-1, ROUGE-2 and ROUGE-L: F-measure of shared unigrams, bigrams, or of the longest common subsequence.

    F = 2PR / (P + R),  P = overlap / response n-grams,  R = overlap / reference n-grams

(Lin 2004). Values in [0, 1], higher is better; the score is the mean over pairs. Tokens and F-measure are those of the
rouge-score package, without stemming, and the values equal `RougeScorer.score(…).fmeasure` exactly. The length of the
subsequence is found with a few operations on one long integer per reference token (Hyyrö 2004) instead of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Literal

from rouge_score.scoring import fmeasure

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.metrics.words import count_shared, rouge_tokens

Kind = Literal["1", "2", "L"]


@dataclass(frozen=True, slots=True)
class Rouge:
    """Mean ROUGE F-measure of one kind. Row: defined, F in fixed point."""

    kind: Kind
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def name(self) -> str:
        return f"rouge{self.kind}"

    @property
    def label(self) -> str:
        return f"ROUGE-{self.kind}"

    @property
    def signature(self) -> str:
        return f"rouge:{self.kind}|measure:f|stem:no|range:0-1|rouge-score:{version('rouge-score')}"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([rouge(self.kind, *pair.texts) if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def rouge(kind: Kind, text: str, reference: str) -> float:
    """Return the F-measure of one pair, in [0, 1]."""
    tokens, expected = rouge_tokens(text), rouge_tokens(reference)
    if kind == "L":
        if not tokens or not expected:
            return 0.0
        shared = lcs_length(tokens, expected)
        return float(fmeasure(shared / len(tokens), shared / len(expected)))
    order = int(kind)
    shared = _shared(tokens, expected)[order - 1]
    return float(fmeasure(shared / max(len(tokens) - order + 1, 1), shared / max(len(expected) - order + 1, 1)))


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, bit-parallel over the words of `left` that both have."""
    both = set(left).intersection(right)
    places = dict.fromkeys(both, 0)
    bit = 1
    for token in left:
        if token in both:
            places[token] |= bit
            bit <<= 1
    full = state = bit - 1
    for token in right:
        if token in both:
            hits = state & places[token]
            state = (state + hits | state - hits) & full
    return (full ^ state).bit_count()


# ROUGE-2 asks for the pairs that ROUGE-1 has just compared.
@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def _shared(tokens: tuple[str, ...], expected: tuple[str, ...]) -> list[int]:
    return count_shared(tokens, expected, 2)
