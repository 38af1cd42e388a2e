"""Sentiment similarity: do response and reference sound equally positive? In [0, 1], higher is better.

    similarity = 1 − |s(response) − s(reference)| / 2

with s the compound score of VADER in [−1, 1] (Hutto and Gilbert 2014), English. The PolyPersona paper prints "SentSim"
without a definition; this is this project's definition. Two neutral texts about different things score 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score


@dataclass(frozen=True, slots=True)
class SentimentSimilarity:
    """Mean similarity of VADER's compound scores. Row: defined, similarity in fixed point."""

    name: str = "sentiment_similarity"
    label: str = "Sentiment similarity"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return f"sentiment_similarity:1-|d|/2|vader:{version('vaderSentiment')}|lang:en|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_similarity(*pair.texts) if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def sentiment(text: str) -> float:
    """Return VADER's compound score, in [−1, 1]."""
    return float(_analyzer().polarity_scores(text)["compound"])


def _similarity(text: str, reference: str) -> float:
    return 1 - abs(sentiment(text) - sentiment(reference)) / 2


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
