"""Answer text → survey code and disposition. Knows an item's options and no model."""

from __future__ import annotations

import re

from polypersona.records import Disposition, Item

_REFUSAL = re.compile(
    r"\b(prefer not to (say|answer)|rather not (say|answer)|decline to answer|(i )?(can(no|')?t|won't) answer"
    r"|as an ai|i am an ai|i'm an ai|language model)\b",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(r"^\W*(n/?a|none|no answer|no comment|don'?t know|not applicable)\W*$", re.IGNORECASE)
_LETTER = re.compile(r"^\W*([A-Za-z])\s*[).:](?=\s|$)")


def code_answer(item: Item, text: str) -> int | None:
    """Return the survey code of the option an answer begins with, or None.

    The longest option label that opens the text as whole words wins, so "Strongly agree" is never read as "Agree"; failing that, the
    letter of a lettered list.
    """
    opening = _plain(text)
    for label, code in sorted(zip(item.options, item.codes, strict=True), key=lambda pair: -len(pair[0])):
        plain = _plain(label)
        if opening == plain or opening.startswith(plain + " "):
            return code
    letter = _LETTER.match(text)
    if letter:
        index = ord(letter.group(1).upper()) - ord("A")
        if index < len(item.codes):
            return item.codes[index]
    return None


def split_rationale(item: Item, text: str) -> tuple[str, str]:
    """Return (label, rationale) of a closed answer; the label is empty where no option opens the text."""
    code = code_answer(item, text)
    if code is None:
        return "", text.strip()
    label = item.options[item.codes.index(code)]
    rest = text.strip()[len(label) :].lstrip(" .,:;!-") if _plain(text).startswith(_plain(label)) else ""
    return label, rest


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


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())
