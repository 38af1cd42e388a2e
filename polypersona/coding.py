"""Answer text → survey code and disposition. Knows an item's options and no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

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
# What may stand between the option and its rationale: closing quotes and marks, then punctuation and space.
_SEPARATOR = re.compile(r"[\"'”’*_)\]]*[.,:;!–—-]*[\"'”’*_)\]]*[\s.,:;–—-]*")


def code_answer(item: Item, text: str, order: Sequence[int] | None = None) -> int | None:
    """Return the survey code of the option an answer begins with, or None.

    The longest option label that opens the text as whole words wins, so "Strongly agree" is never read as "Agree";
    failing that, the letter of a lettered list. `order` are the indices of the options as the prompt lettered them.
    """
    found = _opening_option(item, text, order)
    return None if found is None else item.codes[found[0]]


def split_rationale(item: Item, text: str, order: Sequence[int] | None = None) -> tuple[str, str]:
    """Return (label, rationale) of a closed answer; the label is empty where no option opens the text."""
    found = _opening_option(item, text, order)
    if found is None:
        return "", text.strip()
    index, end = found
    return item.options[index], _SEPARATOR.sub("", text[end:], count=1).strip()


def disposition_of(item: Item, text: str, *, is_truncated: bool = False) -> Disposition:
    """Return how the cell ended, from its text alone.

    An empty text or "no answer" is `item_nonresponse`; a refusal is one even where an option is named; a closed
    answer without a code is `invalid`.
    """
    if not text.strip() or _NO_ANSWER.match(text):
        return "item_nonresponse"
    if _REFUSAL.search(text):
        return "refusal"
    if item.is_closed:
        return "complete" if code_answer(item, text) is not None else "invalid"
    return "truncated" if is_truncated else "complete"


def _opening_option(item: Item, text: str, order: Sequence[int] | None) -> tuple[int, int] | None:
    """Return the index of the option that opens the text, and where the text goes on after it."""
    if found := _opening_label(item, text, 0):
        return found
    letter = _LETTER.match(text)
    if letter is None:
        return None
    if found := _opening_label(item, text, letter.end()):
        return found
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
