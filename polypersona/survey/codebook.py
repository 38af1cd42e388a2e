"""A codebook: what the columns of coded human data mean, item by item; and the same items as an instrument.

The format is JSON: `title`, `source` (whose data, under what licence), `respondent_id`, `weight`, `demographics`,
`not_asked` (the cells that mean so) and `items`, each with `stem`, `part`, `response_type`, `options` (code → label),
`missing` (code → label), and where they matter `ordinal`, `direction`, `reverse`, `construct`, `asked_if` (item →
codes), `unused` (codes nobody may have chosen) and `column`. `codebook_checks` reads and checks it. Knows no data file,
no persona and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from polypersona.chatml import CARD_ORDER
from polypersona.records import Gate, Item, ResponseType

DEFAULT_DOMAIN = "survey"
Direction = Literal["ascending", "descending"]


@dataclass(frozen=True, slots=True)
class Question:
    """One item of a codebook. `options` are in the order respondents saw them.

    `direction` says whether a higher code means more of what the stem asks; `unused` are options that the data need
    not hold. A question of type `multiple` is one column of a select-all question: two codes, ticked and not ticked.
    """

    item_id: str
    stem: str
    part: str
    response_type: ResponseType
    options: Mapping[int, str]
    missing: Mapping[int, str] = field(default_factory=dict)
    is_ordered: bool = False
    direction: Direction = "ascending"
    is_reverse: bool = False
    construct: str = ""
    asked_if: tuple[Gate, ...] = ()
    unused: frozenset[int] = frozenset()
    column: str = ""

    @property
    def codes(self) -> tuple[int, ...]:
        """The options' codes, in the options' order."""
        return tuple(self.options)

    @property
    def text(self) -> str:
        """The stem and, in a battery, the part that this item asks."""
        ends = self.stem.rstrip().endswith((".", "?", "!", ":", "…"))
        return f"{self.stem}{' ' if ends else ': '}{self.part}" if self.part else self.stem

    @property
    def is_closed(self) -> bool:
        """Whether an answer is one of the options."""
        return len(self.options) > 1

    @property
    def values(self) -> tuple[float, ...]:
        """What each option counts as, in the options' order: its code, negated where a higher code means less."""
        sign = -1.0 if self.direction == "descending" else 1.0
        return tuple(sign * code for code in self.options)


@dataclass(frozen=True, slots=True)
class Demographic:
    """A column that describes the respondent. `attribute` is its name on a persona's card."""

    column: str
    label: str
    is_integer: bool
    values: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    attribute: str = ""


@dataclass(frozen=True, slots=True)
class Codebook:
    """All that is known of a data file. `header_rows` counts the lines above the data (Qualtrics writes three)."""

    title: str
    source: str
    license: str
    respondent_id: str
    weight: str
    not_asked: frozenset[str]
    demographics: tuple[Demographic, ...]
    questions: tuple[Question, ...]
    domain: str = DEFAULT_DOMAIN
    header_rows: int = 1

    def question(self, item_id: str) -> Question:
        """Return the item of that id; a KeyError is the caller's mistake."""
        for question in self.questions:
            if question.item_id == item_id:
                return question
        raise KeyError(item_id)


def codebook_items(codebook: Codebook) -> tuple[Item, ...]:
    """Return the codebook's items as an instrument, so that a run asks what the humans were asked, under the same ids.

    Options keep their codes, and prompts show them in the codebook's order; those of a scale are stored low to high.
    A column of a select-all question becomes a yes-or-no item with the codes of ticked and not ticked; asking each
    option alone is known to draw more yes than a list of boxes.
    A gate keeps the codes that are answers: routing on a refusal is the data's, no synthetic answer can follow it.
    """
    missing = {question.item_id: set(question.missing) for question in codebook.questions}
    return tuple(_item(codebook, question, missing) for question in codebook.questions)


def _item(codebook: Codebook, question: Question, missing: Mapping[str, set[int]]) -> Item:
    gates = tuple(
        Gate(gate.item_id, tuple(code for code in gate.codes if code not in missing.get(gate.item_id, ())))
        for gate in question.asked_if
    )
    is_box = question.response_type == "multiple"
    labels = box_labels(question) if is_box else tuple(question.options.values())
    order = scale_order(question)
    shown = tuple(order.index(place) for place in range(len(order)))
    return Item(
        item_id=question.item_id,
        domain=codebook.domain,
        stem=question.text,
        response_type="yesno" if is_box else question.response_type,
        options=tuple(labels[place] for place in order),
        codes=tuple(question.codes[place] for place in order),
        scale="ordered" if question.is_ordered else "nominal",
        reverse=question.is_reverse,
        construct=question.construct,
        source=codebook.source,
        missing=dict(question.missing),
        asked_if=gates,
        shown=() if shown == tuple(sorted(shown)) else shown,
    )


def scale_order(question: Question) -> tuple[int, ...]:
    """Return the places of the options low to high; those without a scale or a direction keep the codebook's order."""
    places = range(len(question.options))
    has_scale = question.is_ordered or question.direction == "descending"
    return tuple(sorted(places, key=question.values.__getitem__)) if has_scale else tuple(places)


def box_labels(question: Question) -> tuple[str, ...]:
    """Return the labels of a select-all column as a yes-or-no item: No for the one that says "not"."""
    return tuple("No" if says_not(label) else "Yes" for label in question.options.values())


def says_not(label: str) -> bool:
    """Return whether an option of a select-all column means that the box is empty."""
    return bool(re.match(r"(?i)\s*(not|no|un)\b|\s*un(ticked|checked|selected)", label))


def card_name(column: str, label: str) -> str:
    """Return a demographic's name on a card: one the cards know if column or label begins with it, else the column.

    `educ` is `education`, `income_cat` is `income`, "Age in years" is `age`.
    """
    first = (re.findall(r"[a-z]+", label.lower()) or [""])[0]
    low = column.lower()
    for name in CARD_ORDER:
        if low.startswith(name) or first == name or (len(low) > 3 and name.startswith(low)):
            return name
    return column


def batteries(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Return the items of each question with parts, by its stem."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        if question.part:
            found.setdefault(question.stem, []).append(question)
    return found
