"""A run's items beside a codebook's: which are the same, and where a run's codes lie among the codebook's options.

Items meet by id; their codes and labels must then be the same question's. Knows no response and no respondent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from polypersona.errors import SurveyError
from polypersona.records import Item
from polypersona.survey.codebook import Codebook, Question, box_labels
from polypersona.survey.problems import Problem, refusal


@dataclass(frozen=True, slots=True)
class Aligned:
    """A question that humans and run share. `order` has the place in the codebook of each of the run's options."""

    question: Question
    order: tuple[int, ...]

    @property
    def num_options(self) -> int:
        """K."""
        return len(self.question.codes)


@dataclass(frozen=True, slots=True)
class Alignment:
    """All shared items, and the ids that only one side has."""

    items: tuple[Aligned, ...]
    only_human: tuple[str, ...]
    only_run: tuple[str, ...]


def align(codebook: Codebook, items: Sequence[Item], answered: Collection[str]) -> Alignment:
    """Return the closed items that both sides have, in the codebook's order.

    Args:
        codebook: of the human data.
        items: of the run.
        answered: items that the human data hold.

    Raises:
        SurveyError: they share no closed item, or one's codes or labels differ; all such items are named.
    """
    by_id = {item.item_id: item for item in items if not item.variant and item.is_closed}
    shared, problems = [], []
    for question in codebook.questions:
        if question.item_id in by_id and question.item_id in answered:
            item = by_id[question.item_id]
            found = _differences(question, item)
            problems += found
            if not found:
                shared.append(Aligned(question, tuple(question.codes.index(code) for code in item.codes)))
    if problems:
        raise refusal("The codebook, beside the run's items,", problems)
    if not shared:
        raise SurveyError(
            f"The run and the codebook share no closed item: the run asks {_listed(by_id)}, the codebook has "
            f"{_listed(question.item_id for question in codebook.questions)}.",
            "Generate with `instrument: {bank: codebook.json}`, or give the codebook's items the run's ids.",
        )
    ids = {one.question.item_id for one in shared}
    return Alignment(
        tuple(shared),
        tuple(question.item_id for question in codebook.questions if question.item_id not in ids),
        tuple(item.item_id for item in items if item.item_id not in ids and not item.variant),
    )


def _differences(question: Question, item: Item) -> list[Problem]:
    ours = dict(zip(item.codes, item.options, strict=True))
    if set(ours) != set(question.options):
        return [
            Problem(
                question.item_id,
                f"the run's item has the codes {sorted(ours)}, the codebook {sorted(question.options)}",
            )
        ]
    boxes = dict(zip(question.codes, box_labels(question), strict=True))
    return [
        Problem(question.item_id, f"the code {code} is {ours[code]!r} in the run and {label!r} in the codebook")
        for code, label in question.options.items()
        if _folded(ours[code]) != _folded(label)
        and not (question.response_type == "multiple" and _folded(ours[code]) == _folded(boxes[code]))
    ]


def _folded(label: str) -> str:
    return " ".join(label.casefold().split()).rstrip(".")


def _listed(names: Iterable[str], most: int = 4) -> str:
    found = list(names)
    shown = ", ".join(found[:most])
    return f"{shown} and {len(found) - most} more" if len(found) > most else shown or "none"
