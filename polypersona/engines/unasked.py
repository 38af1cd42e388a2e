"""Answers that stand for questions that were not put, and what routing needs of any answer."""

from __future__ import annotations

from collections.abc import Mapping

from polypersona.engines.base import Answer, Cell
from polypersona.gates import Outcome, describe_failure


def outcome_of(answer: Answer) -> Outcome:
    """Return what routing needs of an answer."""
    return Outcome(answer.disposition, answer.code, answer.error)


def not_asked(cell: Cell) -> Answer:
    """Return the answer that stands for a question that was not put."""
    return Answer(cell.assignment_id, "", "not_asked")


def unroutable(cell: Cell, outcomes: Mapping[str, Outcome]) -> Answer:
    """Return the answer of a cell of which a failed gate leaves open whether to ask it."""
    return Answer(cell.assignment_id, "", "error", error=describe_failure(cell.item, outcomes))
