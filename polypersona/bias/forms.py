"""Changed forms of items, whose answers beside the item's own show how much wording, order and scale decide.

Every form is built from the item alone, so it is the same in every run; it keeps the item's id and carries its name as
the variant. The forms are those of split-ballot experiments (Schuman and Presser 1981) and of their use on language
models, from which the controls come as well (Tjuatja et al. 2024, Do LLMs Exhibit Human-like Response Biases?):

| variant | form | of |
|---|---|---|
| `negated` | "It is wrong to say: …", the item's key reversed | agree–disagree scales |
| `order` | the options shown in reverse | items with two options or more |
| `even` | without the middle option | ordered scales of an odd length |
| `dont_know` | with the further option "Don't know" | items that have none |
| `forbid` | "forbidden" for "allowed" | yes–no items that ask so, and `WORDING_ITEMS` |
| `typo` | one letter of one word left out; a control | all |
| `letter_swap` | two neighbouring letters of one word exchanged; a control | all |

Knows no engine, no persona and no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from polypersona.records import Item, digest

DONT_KNOW = "Don't know"
# Topics of the experiments on forbidding and allowing (Rugg 1941; Schuman and Presser 1981).
_TOPICS = ("public speeches against democracy", "films that show violence", "advertising for cigarettes", "gambling")
WORDING_ITEMS = tuple(
    Item(
        f"bias.yesno.{number:02}", "social_issues", f"Do you think that {topic} should be allowed?", "yesno",
        ("No", "Yes"), source="after Rugg 1941, Schuman and Presser 1981",
    )
    for number, topic in enumerate(_TOPICS, start=1)
)  # fmt: skip

_STATEMENT = re.compile(r"(?P<lead>Statement:\s*)?(?P<text>.*)", re.DOTALL | re.IGNORECASE)
_ALLOWED = re.compile(r"\b(be|is|are) (?:allowed|permitted)\b")
_WORD = re.compile(r"[A-Za-z]{5,}")
_HAS_NO_OPINION = re.compile(r"\b(don't know|do not know|no opinion|not sure|undecided|can't say)\b", re.IGNORECASE)


def build_forms(items: Iterable[Item], *, shows_options: bool) -> list[Item]:
    """Return each closed item and its changed forms, without routing; open items have none and are left out.

    All show their options low to high, whatever order the questionnaire has, and one in reverse: only then does the
    sign of its effect mean the same for every item.

    Args:
        items: of the instrument.
        shows_options: whether prompts show the options; their order is a form only then.
    """
    forms: list[Item] = []
    for item in items:
        if not item.is_closed or item.variant:
            continue
        plain = replace(item, asked_if=(), shown=())
        found = (
            _negated(plain),
            _reordered(plain) if shows_options else None,
            _even(plain),
            _with_dont_know(plain) if shows_options else None,
            _forbidding(plain),
            _misspelt(plain, "typo"),
            _misspelt(plain, "letter_swap"),
        )
        forms += [plain, *(form for form in found if form is not None)]
    return forms


def is_agreement_scale(item: Item) -> bool:
    """Return whether the options go from disagreeing to agreeing."""
    first, last = item.options[0].casefold(), item.options[-1].casefold()
    return item.scale == "ordered" and "disagree" in first and "agree" in last and "disagree" not in last


def _negated(item: Item) -> Item | None:
    if not is_agreement_scale(item):
        return None
    found = _STATEMENT.fullmatch(item.stem)
    lead, text = (found["lead"] or "", found["text"]) if found else ("", item.stem)
    stem = f"{lead}It is wrong to say: {text}"
    return replace(item, variant="negated", stem=stem, reverse=not item.reverse)


def _reordered(item: Item) -> Item | None:
    count = len(item.options)
    return replace(item, variant="order", shown=tuple(reversed(range(count)))) if count > 1 else None


def _even(item: Item) -> Item | None:
    count = len(item.options)
    if item.scale != "ordered" or count % 2 == 0 or count < 3:
        return None
    kept = [place for place in range(count) if place != count // 2]
    return replace(item, variant="even", options=_at(item.options, kept), codes=tuple(item.codes[at] for at in kept))


def _with_dont_know(item: Item) -> Item | None:
    if any(_HAS_NO_OPINION.search(option) for option in item.options):
        return None
    # The added option has no place on the scale.
    return replace(
        item,
        variant="dont_know",
        options=(*item.options, DONT_KNOW),
        codes=(*item.codes, max(item.codes) + 1),
        scale="nominal",
    )


def _forbidding(item: Item) -> Item | None:
    if [option.casefold() for option in item.options] != ["no", "yes"] or not _ALLOWED.search(item.stem):
        return None
    return replace(item, variant="forbid", stem=_ALLOWED.sub(r"\1 forbidden", item.stem), reverse=not item.reverse)


def _misspelt(item: Item, variant: str) -> Item | None:
    """Return the item with one letter of one word left out, or two exchanged; which follows from its id."""
    words = list(_WORD.finditer(item.stem))
    if not words:
        return None
    chance = int(digest(variant, item.item_id), 16)
    word = words[chance % len(words)]
    letters = word.group()
    places = [place for place in range(1, len(letters) - 2) if letters[place] != letters[place + 1]]
    if not places:
        return None
    at = places[chance // len(words) % len(places)]
    middle = "" if variant == "typo" else letters[at + 1] + letters[at]
    end = at + 1 if variant == "typo" else at + 2
    changed = letters[:at] + middle + letters[end:]
    return replace(item, variant=variant, stem=item.stem[: word.start()] + changed + item.stem[word.end() :])


def _at(options: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(options[place] for place in places)
