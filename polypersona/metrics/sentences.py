"""pysbd's English sentences, found a few times faster: no search for abbreviations that no period follows.

Only the two steps in which pysbd compiles hundreds of patterns per text are written anew here; the sentences are the
same.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pysbd
from pysbd.lang.english import English

# Letters that lower-case to something else than what a pattern that ignores case takes them for.
_ODD_LETTERS = frozenset("İıſ\u212a")
_PLAIN_ABBREVIATIONS = frozenset(word for word in English.Abbreviation.ABBREVIATIONS if word.isalpha())
_BEFORE_PERIOD = re.compile(r"(?:^|\s)([a-z]+)\.")


class _Abbreviations(English.AbbreviationReplacer):  # type: ignore[misc]
    lang: Any

    def search_for_abbreviations_in_string(self, text: str) -> str:
        if not _ODD_LETTERS.isdisjoint(text):
            return str(super().search_for_abbreviations_in_string(text))
        language = self.lang
        self.lang = _looking_for(_PLAIN_ABBREVIATIONS.intersection(_BEFORE_PERIOD.findall(text.lower())))
        found = str(super().search_for_abbreviations_in_string(text))
        self.lang = language
        return found


@lru_cache(maxsize=4096)
def _looking_for(plain: frozenset[str]) -> Any:
    """Return English that knows only these abbreviations and those with a period inside, in its order.

    An abbreviation with a period inside is a pattern to pysbd, whose period stands for any letter.
    """
    known = [word for word in English.Abbreviation.ABBREVIATIONS if word in plain or "." in word]
    abbreviation = type("Abbreviation", (English.Abbreviation,), {"ABBREVIATIONS": known})
    return type("Language", (English,), {"Abbreviation": abbreviation})


class _FastEnglish(English):  # type: ignore[misc]
    AbbreviationReplacer = _Abbreviations


class _Segmenter(pysbd.Segmenter):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(language="en", clean=False)
        self.language_module = _FastEnglish

    def sentences_with_char_spans(self, sentences: list[str]) -> Any:
        text: str = self.original_text
        if not all(sentences):
            return super().sentences_with_char_spans(sentences)
        spans, prior_end = [], 0
        for sentence in sentences:
            start = text.find(sentence)
            while start >= 0:
                end = start + len(sentence)
                while end < len(text) and text[end].isspace():
                    end += 1
                if end > prior_end:
                    spans.append(pysbd.utils.TextSpan(text[start:end], start, end))
                    prior_end = end
                    break
                start = text.find(sentence, end)
        return spans


def split_sentences(text: str) -> list[str]:
    """Return `pysbd.Segmenter(language="en", clean=False).segment(text)`."""
    return list(_segmenter().segment(text))


@lru_cache(maxsize=1)
def _segmenter() -> _Segmenter:
    return _Segmenter()
