"""Length and sentence-count similarity: is the answer shaped like the reference? In [0, 1], higher is better.

    similarity = min(a, b) / max(a, b) = 1 − |a − b| / max(a, b)

with a and b the words (whitespace) or the sentences (pysbd, which knows abbreviations) of response and reference. The
PolyPersona paper prints "Len." and "Sent." without a definition; these are this project's definitions, so its
figures and the paper's are not comparable. Neither sees a word of what is said: a shuffled floor close to the
score is to be expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import pysbd

from polypersona.metrics.base import FloatArray, IntArray, Pair, mean_rows, mean_score


@dataclass(frozen=True, slots=True)
class LengthSimilarity:
    """Mean similarity of the number of words. Row: defined, similarity in fixed point."""

    name: str = "length_similarity"
    label: str = "Length similarity"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return "length_similarity:min/max|unit:words|tok:whitespace|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_similarity(*map(count_words, pair.texts)) if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class SentenceSimilarity:
    """Mean similarity of the number of sentences. Row: defined, similarity in fixed point."""

    name: str = "sentence_similarity"
    label: str = "Sentence-count similarity"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return f"sentence_similarity:min/max|unit:sentences|pysbd:{version('pysbd')}|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_similarity(*map(count_sentences, pair.texts)) if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def count_words(text: str) -> int:
    """Return the number of whitespace-separated words."""
    return len(text.split())


@lru_cache(maxsize=4096)
def count_sentences(text: str) -> int:
    """Return the number of sentences, at least one of a text that is not blank."""
    sentences = sum(1 for sentence in _segmenter().segment(text) if sentence.strip())
    return max(sentences, int(bool(text.strip())))


def _similarity(left: int, right: int) -> float:
    return min(left, right) / max(left, right)


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    return pysbd.Segmenter(language="en", clean=False)
