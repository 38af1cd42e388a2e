"""The words of a text, as each metric cuts them: found once per distinct text, and once per distinct word.

Every tokenisation here looks at one whitespace-separated piece at a time, so that it can be remembered by piece:
pieces repeat where texts do not. What is remembered is bounded; equal tokens are one object.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Generic, TypeVar

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS

Value = TypeVar("Value")

MAX_REMEMBERED_WORDS = 2**17
MAX_WORD_LENGTH = 64

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")


class ByWord(dict[str, Value], Generic[Value]):
    """A function of a word with a bounded memory: `by_word[word]`; long words are not remembered."""

    def __init__(self, find: Callable[[str], Value]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, word: str) -> Value:
        value = self._find(word)
        if len(word) <= MAX_WORD_LENGTH:
            if len(self) >= MAX_REMEMBERED_WORDS:
                self.clear()
            self[word] = value
        return value


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def lower_words(text: str) -> tuple[str, ...]:
    """Return the lower-cased whitespace-separated words."""
    return tuple(map(_same.__getitem__, text.lower().split()))


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def plain_words(text: str) -> tuple[str, ...]:
    """Return the lower-cased runs of letters and digits, each with one apostrophe inside at most."""
    return tuple(chain.from_iterable(map(_plain.__getitem__, lower_words(text))))


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """Return what `rouge_score.tokenize.tokenize(text, None)` returns."""
    return tuple(chain.from_iterable(map(_rouge.__getitem__, lower_words(text))))


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def bleu_tokens(text: str) -> tuple[str, ...]:
    """Return the tokens of sacrebleu's `13a`, which mteval-v13a.pl defined."""
    # The only rules that see more than one whitespace-separated piece.
    if "-\n" in text or "<skipped>" in text:
        return _bleu_of(text.rstrip())
    return tuple(chain.from_iterable(map(_bleu.__getitem__, text.split())))


def count_shared(left: Sequence[str], right: Sequence[str], max_order: int) -> list[int]:
    """Return the n-grams two texts share, each as often as in the text that has fewer of it, by order from one."""
    shared = [0] * max_order
    for order in range(1, max_order + 1):
        ours, theirs = _ngrams(left, order), _ngrams(right, order)
        our_kinds, their_kinds = set(ours), set(theirs)
        common = our_kinds & their_kinds
        if not common:
            break
        if len(our_kinds) == len(ours) or len(their_kinds) == len(theirs):
            shared[order - 1] = len(common)
        else:
            our_counts, their_counts = Counter(ours), Counter(theirs)
            shared[order - 1] = sum(min(our_counts[ngram], their_counts[ngram]) for ngram in common)
    return shared


def _ngrams(tokens: Sequence[str], order: int) -> Sequence[object]:
    return tokens if order == 1 else list(zip(*(tokens[start:] for start in range(order)), strict=False))


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer13a:
    return Tokenizer13a()


def _bleu_of(piece: str) -> tuple[str, ...]:
    return tuple(map(_same.__getitem__, _tokenizer()(piece).split()))


_same: ByWord[str] = ByWord(lambda word: word)
_plain: ByWord[tuple[str, ...]] = ByWord(lambda word: tuple(_WORD.findall(word)))
_rouge: ByWord[tuple[str, ...]] = ByWord(lambda word: tuple(_ROUGE_TOKEN.findall(word)))
_bleu: ByWord[tuple[str, ...]] = ByWord(_bleu_of)
