"""Survey quality: the share of named 0/1 checks an answer passes. In [0, 1], higher is better, no reference needed.

    quality = mean over answers of (checks passed / checks that apply)

The PolyPersona paper prints "Survey Quality" without a definition; this is this project's, and every check is printed
as a metric of its own. It says whether answers are usable, not whether they are true of anybody.

| check | passes where |
|---|---|
| `non_empty` | the answer is not blank |
| `finished` | it was not cut by the length limit and ends with sentence punctuation |
| `no_prompt_copy` | it repeats neither the item's stem (of five words or more) nor a heading of the prompt |
| `no_loop` | no phrase of one to eight words stands three times in a row, no sentence of four words or more twice |
| `length` | 3 to 150 words if open, 1 to 80 if closed |
| `coded` | closed items only: an option could be read from it |

A blank answer fails every check that applies. Cells that were not asked are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.metrics.words import plain_words

OPEN_WORDS = (3, 150)
CLOSED_WORDS = (1, 80)
MIN_STEM_WORDS = 5
MAX_PHRASE_WORDS = 8
LOOP_REPEATS = 3

_HEADINGS = re.compile(r"\b(persona|question|options|domain):|<\|", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s*")
_FINISHED = re.compile(r"[.!?…][\"'”’)\]]*\s*$")


@dataclass(frozen=True, slots=True)
class SurveyQuality:
    """Mean share of checks passed. Row: defined, share in fixed point."""

    name: str = "survey_quality"
    label: str = "Survey quality"
    higher_is_better: bool = True
    needs_reference: bool = False
    width: int = 2

    @property
    def signature(self) -> str:
        return f"survey_quality:mean|checks:{'+'.join(CHECKS)}|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([_share(run_checks(pair)) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """Share of answers that pass one check. Row: defined, 0 or 1 in fixed point."""

    check: str
    higher_is_better: bool = True
    needs_reference: bool = False
    width: int = 2

    @property
    def name(self) -> str:
        return f"quality_{self.check}"

    @property
    def label(self) -> str:
        return f"Quality: {self.check.replace('_', ' ')}"

    @property
    def signature(self) -> str:
        return f"survey_quality:{self.check}|range:0-1"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        return mean_rows([run_checks(pair).get(self.check) for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def run_checks(pair: Pair) -> dict[str, bool]:
    """Return the checks that apply to an answer and whether it passes; empty for a cell that was not asked."""
    if pair.disposition == "not_asked":
        return {}
    names = [name for name in CHECKS if name != "coded" or pair.item.is_closed]
    if not pair.text.strip():
        return dict.fromkeys(names, False)
    return {name: CHECKS[name](pair) for name in names}


def _share(checks: Mapping[str, bool]) -> float | None:
    return sum(checks.values()) / len(checks) if checks else None


def _is_finished(pair: Pair) -> bool:
    return pair.disposition != "truncated" and bool(_FINISHED.search(pair.text))


def _copies_no_prompt(pair: Pair) -> bool:
    stem = plain_words(pair.item.stem)
    copied = len(stem) >= MIN_STEM_WORDS and f" {' '.join(stem)} " in f" {' '.join(plain_words(pair.text))} "
    return not copied and not _HEADINGS.search(pair.text)


def _has_no_loop(pair: Pair) -> bool:
    return not _loops(pair.text)


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def _loops(text: str) -> bool:
    words = plain_words(text)
    if any(_repeats(words, length) for length in range(1, MAX_PHRASE_WORDS + 1)):
        return True
    sentences = [plain_words(sentence) for sentence in _SENTENCE_END.split(text)]
    long_ones = [sentence for sentence in sentences if len(sentence) >= 4]
    return len(set(long_ones)) < len(long_ones)


def _repeats(words: Sequence[str], length: int) -> bool:
    """Return whether a phrase of this length stands LOOP_REPEATS times in a row."""
    equal = 0
    for index in range(length, len(words)):
        equal = equal + 1 if words[index] == words[index - length] else 0
        if equal >= length * (LOOP_REPEATS - 1):
            return True
    return False


def _has_length(pair: Pair) -> bool:
    low, high = CLOSED_WORDS if pair.item.is_closed else OPEN_WORDS
    return low <= len(pair.text.split()) <= high


CHECKS: Mapping[str, Callable[[Pair], bool]] = {
    "non_empty": lambda pair: bool(pair.text.strip()),
    "finished": _is_finished,
    "no_prompt_copy": _copies_no_prompt,
    "no_loop": _has_no_loop,
    "length": _has_length,
    "coded": lambda pair: pair.code is not None,
}
