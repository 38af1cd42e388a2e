"""Distinct-1 and Distinct-2: how varied is the wording of the whole set? In (0, 1], higher is more varied.

    Distinct-n = distinct n-grams over all answers / n-grams over all answers

(Li et al. 2016, who divide by the number of words; dividing by n-grams keeps the range at one for any n.) Tokens are
lower-cased words. It needs no reference, so the same figure of the references stands beside it. It falls as a set
grows, whatever the wording, and closed answers in fixed labels lower it: compare equal numbers of answers of one kind.

The statistic is a set, not a sum: the 64-bit hashes of the n-grams with, for each, a bit mask of the persona folds it
occurs in. Union and bitwise or are associative, so any sharding gives the same bytes. The folds give a
persona-clustered interval by the delete-a-group jackknife: score ± 1.96 √((G−1)/G Σ(θ₋g − θ̄)²).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from polypersona.metrics.base import IntArray
from polypersona.metrics.words import ByWord, plain_words
from polypersona.records import seed_from

NUM_FOLDS = 32
Z_95 = 1.959963984540054
_MULTIPLIERS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


class Interval(NamedTuple):
    """A score and its 95 % interval; NaN where undefined."""

    score: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NgramSet:
    """The n-grams of some answers: sorted hashes, the folds each occurs in, n-grams per fold, number of answers."""

    hashes: npt.NDArray[np.uint64]
    folds: npt.NDArray[np.uint32]
    totals: IntArray
    num_texts: int

    def union(self, other: NgramSet) -> NgramSet:
        """Return the n-grams of both."""
        hashes, folds = _unique(np.concatenate([self.hashes, other.hashes]), np.concatenate([self.folds, other.folds]))
        return NgramSet(hashes, folds, self.totals + other.totals, self.num_texts + other.num_texts)


class SetMetric(Protocol):
    """A metric whose statistic is a set: it merges by union instead of addition."""

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
    def signature(self) -> str:
        """The settings that change the number."""

    def collect(self, texts: Sequence[str], folds: Sequence[int]) -> NgramSet:
        """Return the set of some answers; `folds` are those of their personas."""

    def score(self, ngrams: NgramSet) -> Interval:
        """Return the score of a set and its interval."""


@dataclass(frozen=True, slots=True)
class Distinct:
    """Distinct-n of one order."""

    order: int
    higher_is_better: bool = True

    @property
    def name(self) -> str:
        return f"distinct{self.order}"

    @property
    def label(self) -> str:
        return f"Distinct-{self.order}"

    @property
    def signature(self) -> str:
        return f"distinct:{self.order}|over:all_texts|case:lower|tok:words|interval:jackknife{NUM_FOLDS}|range:0-1"

    def collect(self, texts: Sequence[str], folds: Sequence[int]) -> NgramSet:
        words = [plain_words(text) for text in texts]
        lengths = np.array([len(line) for line in words], dtype=np.int64)
        hashes = np.fromiter(
            map(_hash_of.__getitem__, chain.from_iterable(words)), dtype=np.uint64, count=int(lengths.sum())
        )
        # How many words follow in the same text: an n-gram begins wherever enough of them do.
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(hashes))
        begins = np.flatnonzero(left >= self.order)
        found = hashes[begins]
        for place in range(1, self.order):
            found = _mix(found, hashes[begins + place])
        fold = np.repeat(np.asarray(folds, dtype=np.uint32), np.maximum(lengths - self.order + 1, 0))
        totals = np.bincount(fold, minlength=NUM_FOLDS).astype(np.int64)
        return NgramSet(*_unique(found, np.uint32(1) << fold), totals, len(texts))

    def score(self, ngrams: NgramSet) -> Interval:
        total = int(ngrams.totals.sum())
        if total == 0:
            return Interval(math.nan, math.nan, math.nan)
        score = len(ngrams.hashes) / total
        left_out = [
            (len(ngrams.hashes) - int(np.count_nonzero(ngrams.folds == np.uint32(1 << fold)))) / (total - count)
            for fold, count in enumerate(ngrams.totals.tolist())
            if 0 < count < total
        ]
        if len(left_out) < 2:
            return Interval(score, math.nan, math.nan)
        mean = math.fsum(left_out) / len(left_out)
        spread = math.fsum((value - mean) ** 2 for value in left_out)
        error = Z_95 * math.sqrt(spread * (len(left_out) - 1) / len(left_out))
        return Interval(score, max(0.0, score - error), min(1.0, score + error))


def fold_of(persona_id: str) -> int:
    """Return the persona's fold, in [0, NUM_FOLDS): a function of its id alone."""
    return seed_from("fold", persona_id) % NUM_FOLDS


def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


_hash_of: ByWord[int] = ByWord(_hash_word)


def _mix(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the hashes of two things in this order (the finalizer of SplitMix64; Steele et al. 2014)."""
    mixed = first * _MULTIPLIERS[0] + second
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIERS[1]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[2]
    return mixed ^ (mixed >> np.uint64(31))


def _unique(
    hashes: npt.NDArray[np.uint64], folds: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Return the distinct hashes in ascending order, each with the union of its folds."""
    if not len(hashes):
        return hashes, folds
    order = np.argsort(hashes, kind="stable")
    hashes, folds = hashes[order], folds[order]
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    return hashes[starts], np.bitwise_or.reduceat(folds, starts)
