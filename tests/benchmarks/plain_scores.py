"""The text metrics as a plain script computes them: one process, one loop, the libraries' own functions.

Nothing here is the package's: it is what the package is compared with, in speed and in every number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pysbd
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
# Sacrebleu's counts and lengths, then the mean metrics.
NUM_COUNTS, NUM_MEANS = 10, 8


@dataclass
class PlainScores:
    """Scores pairs one after another; keeps sacrebleu's counts, the other values of every pair, and n-gram sets."""

    counts: list[list[int]] = field(default_factory=list)
    means: list[list[float]] = field(default_factory=list)
    ngrams: tuple[set[tuple[str, ...]], set[tuple[str, ...]]] = field(default_factory=lambda: (set(), set()))
    num_ngrams: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        self.bleu = BLEU(effective_order=True)
        self.smooth = SmoothingFunction().method1
        self.rouge = RougeScorer(list(ROUGE_KINDS))
        self.segmenter = pysbd.Segmenter(language="en", clean=False)
        self.sentiment = SentimentIntensityAnalyzer()

    def add(self, texts: Sequence[str], references: Sequence[str]) -> None:
        """Score pairs of texts that are not blank."""
        for text, reference in zip(texts, references, strict=True):
            bleu = self.bleu.sentence_score(text, [reference])
            nltk = sentence_bleu([reference.lower().split()], text.lower().split(), smoothing_function=self.smooth)
            rouge = self.rouge.score(reference, text)
            feelings = [self.sentiment.polarity_scores(side)["compound"] for side in (text, reference)]
            self.counts.append([*bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len])
            self.means.append(
                [
                    bleu.score / 100,
                    float(nltk),
                    *(rouge[kind].fmeasure for kind in ROUGE_KINDS),
                    _similarity(len(text.split()), len(reference.split())),
                    _similarity(self._count_sentences(text), self._count_sentences(reference)),
                    1 - abs(feelings[0] - feelings[1]) / 2,
                ]
            )
            self._add_ngrams(text)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sacrebleu's counts, shape (num_pairs, NUM_COUNTS), and the other values, shape (num_pairs, NUM_MEANS)."""
        return np.array(self.counts, dtype=np.int64), np.array(self.means, dtype=np.float64)

    def _count_sentences(self, text: str) -> int:
        return max(1, sum(1 for sentence in self.segmenter.segment(text) if sentence.strip()))

    def _add_ngrams(self, text: str) -> None:
        words = _WORD.findall(text.lower())
        for order, known in enumerate(self.ngrams, start=1):
            found = list(zip(*(words[start:] for start in range(order)), strict=False))
            known.update(found)
            self.num_ngrams[order - 1] += len(found)


def _similarity(left: int, right: int) -> float:
    return min(left, right) / max(left, right)
