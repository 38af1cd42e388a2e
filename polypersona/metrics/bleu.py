"""BLEU: n-gram precision with a brevity penalty, in three variants, each in [0, 1], higher is better.

    BLEU = min(1, exp(1 − r/c)) · exp(¼ Σₙ log pₙ),  n = 1…4

with c and r the lengths of response and reference and pₙ the clipped n-gram precision (Papineni et al. 2002).
`bleu` is sacrebleu's corpus BLEU from summed counts and `bleu_sentence` the mean of its sentence BLEU, both divided by
100; `bleu_nltk` is the mean of NLTK's sentence BLEU over lower-cased whitespace tokens with smoothing method 1 (a zero
count is 0.1; Chen and Cherry 2014). The variants are not comparable with each other. Only a shuffled floor says how
much of any of them is owed to the persona.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.metrics.words import bleu_tokens, count_shared, lower_words

MAX_ORDER = 4
SMOOTHING_EPSILON = 0.1


@dataclass(frozen=True, slots=True)
class CorpusBleu:
    """sacrebleu's corpus BLEU. Row: defined, 4 matched counts, 4 total counts, response length, reference length."""

    name: str = "bleu"
    label: str = "BLEU"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 3 + 2 * MAX_ORDER

    @property
    def signature(self) -> str:
        return f"bleu:corpus|range:0-1|case:mixed|tok:13a|smooth:exp|sacrebleu:{version('sacrebleu')}"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        rows = np.zeros((len(pairs), self.width), dtype=np.int64)
        for index, pair in enumerate(pairs):
            if pair.texts:
                rows[index] = _sentence(*pair.texts)[1]
        return rows

    def score(self, totals: IntArray) -> FloatArray:
        return np.array([_corpus_score(total.tolist()) for total in totals], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SentenceBleu:
    """Mean of sacrebleu's sentence BLEU, with the effective order."""

    name: str = "bleu_sentence"
    label: str = "BLEU (sentence)"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return f"bleu:sentence_mean|range:0-1|case:mixed|eff:yes|tok:13a|smooth:exp|sacrebleu:{version('sacrebleu')}"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_sentence(*pair.texts)[0] if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class NltkBleu:
    """Mean of NLTK's sentence BLEU over lower-cased whitespace tokens, smoothing method 1."""

    name: str = "bleu_nltk"
    label: str = "BLEU (NLTK)"
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def signature(self) -> str:
        return "bleu:nltk_sentence_mean|range:0-1|case:lower|tok:whitespace|smooth:method1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([nltk_sentence_bleu(*pair.texts) if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def nltk_sentence_bleu(text: str, reference: str) -> float:
    """Return NLTK's `sentence_bleu(…, SmoothingFunction().method1)` of lower-cased whitespace tokens, in [0, 1]."""
    tokens, expected = lower_words(text), lower_words(reference)
    shared = count_shared(tokens, expected, MAX_ORDER)
    if shared[0] == 0:
        return 0.0
    logs = [
        math.log((matched or SMOOTHING_EPSILON) / possible) / MAX_ORDER
        for matched, possible in zip(shared, _possible(tokens, least=1), strict=True)
    ]
    brevity = 1.0 if len(tokens) > len(expected) else math.exp(1 - len(expected) / len(tokens))
    return brevity * math.exp(math.fsum(logs))


def _possible(tokens: Sequence[str], least: int = 0) -> list[int]:
    """Return the number of n-grams of every order."""
    return [max(least, len(tokens) - order + 1) for order in range(1, MAX_ORDER + 1)]


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def _sentence(text: str, reference: str) -> tuple[float, tuple[int, ...]]:
    """Return sentence BLEU in [0, 1] and the corpus row: both come from the same counts."""
    tokens, expected = bleu_tokens(text), bleu_tokens(reference)
    shared, possible = count_shared(tokens, expected, MAX_ORDER), _possible(tokens)
    row = (1, *shared, *possible, len(tokens), len(expected))
    return _sentence_score(shared, possible, len(tokens), len(expected)) / 100, row


def _sentence_score(shared: list[int], possible: list[int], length: int, expected: int) -> float:
    found = BLEU.compute_bleu(shared, possible, length, expected, smooth_method="exp", effective_order=True)
    return float(found.score)


def _corpus_score(total: Sequence[int]) -> float:
    if total[0] == 0:
        return math.nan
    matched, possible = list(total[1 : 1 + MAX_ORDER]), list(total[1 + MAX_ORDER : 1 + 2 * MAX_ORDER])
    found = BLEU.compute_bleu(matched, possible, sys_len=total[-2], ref_len=total[-1], smooth_method="exp")
    return float(found.score) / 100
