"""Text that could be read as a model's control tokens → text that cannot.

What people wrote and what a model answered goes into prompts as plain text. Two things keep it plain: brackets of
anything shaped like a control token of the known families are replaced, whatever the tokenizer; and the tokens that a
tokenizer itself calls special are taken apart, whatever their shape. Knows tokenizers by duck typing only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

_TAG = re.compile(r"<(?=[|｜/<\w])([^<>\n]{0,64})>|<<|>>")
_BRACKET = re.compile(r"\[(/?(?:[gs]?MASK|[A-Z][A-Z0-9_]+|(?i:INST|SYS)\w*))\]")
# A token that is not called special is one all the same where it has one of these; `def` and a run of blanks are not.
_MARK = re.compile(r"[<>\[\]{}|｜]")
_SHORTEST_MARKED = 3
_DISGUISE = re.compile(r"[^\w\s.,;:!?'()-]|_")


def without_markup(text: str) -> str:
    """Return the text with the brackets of anything that looks like a control token replaced."""
    text = _BRACKET.sub(r"(\1)", text)
    return _TAG.sub(lambda found: found.group(0).replace("<", "‹").replace(">", "›"), text)


def without_control_tokens(tokenizer: Any, text: str) -> str:
    """Return the text in such a form that the tokenizer makes none of its control tokens of it."""
    text = without_markup(text)
    controls = _controls_of(tokenizer)
    if controls.tokens is not None:
        text = _taken_apart(controls.tokens, text)
    if controls.is_hidden_in(text):
        text = "\n".join(_plain(line) if controls.is_hidden_in(line) else line for line in text.split("\n"))
    return text


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that a tokenizer calls special, but for the one of unknown text."""
    ids = set(getattr(tokenizer, "all_special_ids", ()))
    ids |= {number for number, token in _added_tokens(tokenizer).items() if token.special}
    return frozenset(map(int, ids - {getattr(tokenizer, "unk_token_id", None)}))


@dataclass(frozen=True, slots=True)
class _Controls:
    """A tokenizer's control tokens: those found in a text as it is, and those found once it is normalised."""

    size: int
    tokens: re.Pattern[str] | None
    normalized: re.Pattern[str] | None = None
    normalize: Callable[[str], str] | None = None

    def is_hidden_in(self, text: str) -> bool:
        """Return whether the tokenizer's own normalisation makes a control token of some part of the text."""
        return (
            self.normalize is not None
            and self.normalized is not None
            and self.normalized.search(self.normalize(text)) is not None
        )


_KNOWN: WeakKeyDictionary[Any, _Controls] = WeakKeyDictionary()


def _controls_of(tokenizer: Any) -> _Controls:
    size = len(tokenizer) if hasattr(type(tokenizer), "__len__") else 0
    known = _KNOWN.get(tokenizer)
    if known is None or known.size != size:
        known = _KNOWN[tokenizer] = _build_controls(tokenizer, size)
    return known


def _build_controls(tokenizer: Any, size: int) -> _Controls:
    added = list(_added_tokens(tokenizer).values())
    tokens = {token.content for token in added if token.special or _is_marked(token.content)}
    tokens |= set(getattr(tokenizer, "all_special_tokens", ()))
    whole = _any_of({token for token in tokens if without_markup(token) == token})
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return _Controls(size, whole)
    fold = normalizer.normalize_str
    folded = {fold(token.content) for token in added if token.normalized and token.content in tokens}
    return _Controls(size, whole, _any_of(folded), fold)


def _is_marked(token: str) -> bool:
    return len(token) >= _SHORTEST_MARKED and _MARK.search(token) is not None


def _added_tokens(tokenizer: Any) -> dict[int, Any]:
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return added


def _any_of(tokens: set[str]) -> re.Pattern[str] | None:
    """Return a pattern of the tokens, the longest first; None without any."""
    longest_first = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _plain(line: str) -> str:
    """Return a line that hides a control token with nothing left to hide it in: letters apart, few marks."""
    return " ".join(_DISGUISE.sub(" ", unicodedata.normalize("NFKC", line)).replace(" ", ""))


def _taken_apart(tokens: re.Pattern[str], text: str) -> str:
    """Return the text with blanks inside every token, again until what the blanks make is no token either."""
    count = 1
    while count:
        text, count = tokens.subn(lambda found: " ".join(found.group(0)) if len(found.group(0)) > 1 else " ", text)
    return text
