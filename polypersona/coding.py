"""Answer text → survey code and disposition. Knows an item's options and no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from polypersona.records import Disposition, Item

_REFUSAL = re.compile(
    r"\b(?:prefer not to|rather not|decline to|refuse to) (?:say|answer)\b"
    r"|\b(?:can(?:no|['’])?t|won['’]?t|(?:unable|not able) to) answer"
    r"(?: (?:that|this|it|the|your|such|these)(?: (?:questions?|survey|items?|one))?)?"
    r"(?=\s*(?:[.,;:!?]|$|because\b|as\b|without\b))"
    r"|\b(?:as|being|i am|i['’]m) (?:just |only )?an? (?:(?:large |ai )*language model\b"
    r"|ai(?=\s*(?:[.,;:!?)]|$|(?:model|assistant|system|chatbot|and|so|i|without)\b)))",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(r"^\W*(n/?a|none|no answer|no comment|don['’]?t know|not applicable)\W*$", re.IGNORECASE)
_LETTER = re.compile(r"^\W*([A-Za-z])\s*[).:](?=\s|$)")
# Where letters were shown, one may also stand alone, or before its label.
_BARE_LETTER = re.compile(r"^\W*([A-Za-z])(?:\W*$|\s+)")
_GOES_ON = re.compile(r"\s+\w")
# What may stand between the option and its rationale: closing quotes and marks, then punctuation and space.
_SEPARATOR = re.compile(r"[\"'”’*_)\]]*[.,:;!–—-]*[\"'”’*_)\]]*[\s.,:;–—-]*")


def code_answer(item: Item, text: str, order: Sequence[int] | None = None, *, has_letters: bool = False) -> int | None:
    """Return the survey code of the option an answer begins with, or None.

    The longest option label that opens the text as whole words wins, so "Strongly agree" is never read as "Agree";
    failing that, the letter of a lettered list. `order` are the indices of the options as the prompt showed them.
    Where it showed letters (`has_letters`), the letter comes first, may stand alone ("B"), and an answer whose letter
    and label name different options has no code.
    """
    found = _opening_option(item, text, order, has_letters)
    return None if found is None else item.codes[found[0]]


def split_rationale(
    item: Item, text: str, order: Sequence[int] | None = None, *, has_letters: bool = False
) -> tuple[str, str]:
    """Return (label, rationale) of a closed answer; the label is empty where no option opens the text."""
    found = _opening_option(item, text, order, has_letters)
    if found is None:
        return "", text.strip()
    index, end = found
    return item.options[index], _SEPARATOR.sub("", text[end:], count=1).strip()


def disposition_of(
    item: Item,
    text: str,
    *,
    is_truncated: bool = False,
    order: Sequence[int] | None = None,
    has_letters: bool = False,
) -> Disposition:
    """Return how the cell ended, from its text alone.

    An empty text or "no answer" is `item_nonresponse`; a refusal is one even where an option is named; the words of
    the option itself ("None") are neither. A closed answer without a code is `invalid`. `order` and `has_letters` are
    those of `code_answer`.
    """
    found = _opening_option(item, text, order, has_letters) if item.is_closed else None
    if missing := missing_answer(text, 0 if found is None else found[1]):
        return missing
    if item.is_closed:
        return "complete" if found is not None else "invalid"
    return "truncated" if is_truncated else "complete"


def missing_answer(text: str, begin: int = 0) -> Literal["item_nonresponse", "refusal"] | None:
    """Return how a text declines to answer, None where it does not, in words that do not end before `begin`."""
    found = _NO_ANSWER.match(text)
    if not text.strip() or (found is not None and found.end(1) > begin):
        return "item_nonresponse"
    return "refusal" if any(found.end() > begin for found in _REFUSAL.finditer(text)) else None


def _opening_option(item: Item, text: str, order: Sequence[int] | None, has_letters: bool) -> tuple[int, int] | None:
    """Return the index of the option that opens the text, and where the text goes on after it."""
    if has_letters:
        return _opening_letter(item, text, order)
    if found := _opening_label(item, text, 0):
        return found
    letter = _LETTER.match(text)
    if letter is None:
        return None
    return _opening_label(item, text, letter.end()) or _option_of(item, letter, order)


def _opening_letter(item: Item, text: str, order: Sequence[int] | None) -> tuple[int, int] | None:
    """Return the option and the end of an answer to a lettered list; None where letter and label contradict."""
    letter = _LETTER.match(text)
    if letter is None:
        if found := _opening_label(item, text, 0):
            return found
        letter = _BARE_LETTER.match(text)
    option = None if letter is None else _option_of(item, letter, order)
    if letter is None or option is None:
        return None
    is_bare = letter.re is _BARE_LETTER and bool(text[letter.end() :].strip())
    label = _opening_label(item, text, letter.end())
    if label is None:
        return None if is_bare else option
    if label[0] == option[0]:
        return label
    # "B) No one helps me" goes on with a rationale; "B) No." names another option.
    return option if not is_bare and _GOES_ON.match(text, label[1]) else None


def _option_of(item: Item, letter: re.Match[str], order: Sequence[int] | None) -> tuple[int, int] | None:
    shown = range(len(item.options)) if order is None else order
    position = ord(letter.group(1).upper()) - ord("A")
    return (shown[position], letter.end()) if position < len(shown) else None


def _opening_label(item: Item, text: str, begin: int) -> tuple[int, int] | None:
    for index in sorted(range(len(item.options)), key=lambda index: -len(item.options[index])):
        pattern = _label_pattern(item.options[index])
        if pattern is not None and (match := pattern.match(text, begin)):
            return index, match.end()
    return None


@lru_cache(maxsize=4096)
def _label_pattern(label: str) -> re.Pattern[str] | None:
    """Return what the label looks like at the head of an answer, in any case and punctuation; None without a word."""
    words = re.findall(r"\w(?:[\w'’]*\w)?", label)
    if not words:
        return None
    spelled = r"\W+".join(re.escape(word).replace("’", "'").replace("'", "['’]") for word in words)
    return re.compile(rf"[\W_]*{spelled}(?!['’]?[^\W_])", re.IGNORECASE)
