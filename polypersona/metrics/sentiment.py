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
from typing import Any, NamedTuple

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.metrics.words import ByWord

WORDS_BEFORE, WORDS_BEHIND = 3, 2


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
    """Return VADER's compound score, in [−1, 1].

    VADER reads every word within all others; what it finds depends only on the three words before and the two
    behind, so its own rules are asked about those, once for every run of words, and only around words of its lexicon.
    """
    analyzer = _analyzer()
    if not (text.isascii() or _emojis().isdisjoint(text)):
        return float(analyzer.polarity_scores(text)["compound"])
    words = list(map(_stripped.__getitem__, text.split()))
    charged = [place for place, word in enumerate(words) if _is_charged[word]]
    if not charged:
        return 0.0
    shouted = sum(map(str.isupper, words))
    is_mixed_case = 0 < shouted < len(words)
    valences = [0.0] * len(words)
    for place in charged:
        start = max(0, place - WORDS_BEFORE)
        window = tuple(words[start : place + WORDS_BEHIND + 1])
        valences[place] = _valence(window, place - start, is_mixed_case)
    valences = analyzer._but_check(words, valences)
    return float(analyzer.score_valence(valences, text.strip())["compound"])


def _similarity(text: str, reference: str) -> float:
    return 1 - abs(sentiment(text) - sentiment(reference)) / 2


class _Window(NamedTuple):
    """What VADER's rules look at of a text."""

    words_and_emoticons: list[str]
    is_cap_diff: bool


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def _valence(words: tuple[str, ...], place: int, is_mixed_case: bool) -> float:
    """Return the valence that VADER gives a word of its lexicon among its neighbours."""
    if words[place].lower() == "kind" and words[place + 1 : place + 2] and words[place + 1].lower() == "of":
        return 0.0
    found = _analyzer().sentiment_valence(0, _Window(list(words), is_mixed_case), words[place], place, [])
    return float(found[0])


def _strip(word: str) -> str:
    from vaderSentiment.vaderSentiment import SentiText

    return str(SentiText._strip_punc_if_word(word))


def _has_valence(word: str) -> bool:
    from vaderSentiment.vaderSentiment import BOOSTER_DICT

    return word.lower() in _analyzer().lexicon and word.lower() not in BOOSTER_DICT


_stripped: ByWord[str] = ByWord(_strip)
_is_charged: ByWord[bool] = ByWord(_has_valence)


@lru_cache(maxsize=1)
def _emojis() -> frozenset[str]:
    return frozenset(_analyzer().emojis)


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
