"""Length and sentence-count similarity: is the answer shaped like the reference? In [0, 1], higher is better.

    similarity = min(a, b) / max(a, b) = 1 − |a − b| / max(a, b)

with a and b the words (whitespace) or the sentences (pysbd, which knows abbreviations) of response and reference. The
PolyPersona paper prints "Len." and "Sent." without a definition; these are this project's definitions, so its
figures and the paper's are not comparable. Neither sees a word of what is said: a shuffled floor close to the
score is to be expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.metrics.sentences import split_sentences

# A text that needs no segmenter: words, and runs of them in quotation marks or brackets without a sentence mark; each
# sentence is begun by a capital and ended by one mark after a word of two letters or more, or once by a number.
# pysbd finds the same sentences there, a hundred times slower.
_WORD = r"\$?[A-Za-z0-9]+(?:['’/–—-][A-Za-z0-9]+)*%?"
_RUN = rf"{_WORD}(?:[,;:]? {_WORD})*"
_PART = rf"(?:{_WORD}|[–—-]|\"{_RUN},?\"|“{_RUN},?”|\((?:{_RUN}[,;:]? )?[A-Za-z]{{2,}}\))"
_LAST = r"(?:[A-Za-z]{2,}|[A-Za-z]+(?:['’/–—-][A-Za-z]+)+|[0-9]{1,2})"
_SENTENCE = rf"(?=[A-Z]){_WORD}[,;:]?(?: {_PART}[,;:]?)*? {_LAST}[.!?]"
_PLAIN = re.compile(rf"{_SENTENCE}(?: {_SENTENCE})*")
_LAST_WORD = re.compile(r"([A-Za-z0-9]+)[.!?](?= (I(?: |'m|'ll)))?")
_LAST_IN_BRACKETS = re.compile(r"([A-Za-z]+)\)")
_ROMAN = frozenset("ivxlcdm")


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


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def count_sentences(text: str) -> int:
    """Return the number of sentences, at least one of a text that is not blank."""
    plain = _count_plain(text)
    if plain is not None:
        return plain
    sentences = sum(1 for sentence in split_sentences(text) if sentence.strip())
    return max(sentences, int(bool(text.strip())))


def _count_plain(text: str) -> int | None:
    """Return the number of sentences of a plain text, None for any other."""
    if not _PLAIN.fullmatch(text):
        return None
    if "(" in text and ('"' in text or "“" in text or _ends_like_a_list(text)):
        return None
    always, before_i = _special_words()
    ends = [(word.lower(), myself) for word, myself in _LAST_WORD.findall(text)]
    for word, myself in ends:
        if word in always or _ROMAN.issuperset(word) or (myself and word in before_i):
            return None
    # Two numbers at ends may be a numbered list.
    return len(ends) if sum(word.isdigit() for word, _ in ends) < 2 else None


def _ends_like_a_list(text: str) -> bool:
    """Return whether a bracket ends as the label of a list's entry may."""
    return any(_ROMAN.issuperset(word.lower()) for word in _LAST_IN_BRACKETS.findall(text))


def _similarity(left: int, right: int) -> float:
    return min(left, right) / max(left, right)


@lru_cache(maxsize=1)
def _special_words() -> tuple[frozenset[str], frozenset[str]]:
    """Return the words after which pysbd may not end a sentence: whatever follows, and where "I" follows as a word."""
    from pysbd.exclamation_words import ExclamationWords
    from pysbd.lang.english import English

    known = English.Abbreviation
    shouted = (word.strip("!").lower() for word in ExclamationWords.EXCLAMATION_WORDS)
    always = (*known.PREPOSITIVE_ABBREVIATIONS, *known.NUMBER_ABBREVIATIONS, *shouted)
    return frozenset(always), frozenset(known.ABBREVIATIONS)
