"""Asks cells in rounds, so that an item whose gate forbids it is never asked: for any engine, and for the teacher.

First go the cells without a gate, then those whose gates are answered, until none is left. Cells belong to an
interview (a persona, and where there are several a wave and a draw), within which gates are looked up. A cell that is
not asked gets an answer with disposition `not_asked`; one whose gate failed ends as `error` with that reason. Without
any gate there is one round, which costs nothing. Knows cells and answers; no engine, no shard and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeAlias

from polypersona.engines.base import Answer, Cell
from polypersona.engines.unasked import not_asked, outcome_of, unroutable
from polypersona.gates import Outcome, judge_gates

# Takes the places of some cells, gives their answers in that order.
Ask: TypeAlias = Callable[[Sequence[int]], Sequence[Answer]]
# Interview → item id → outcome.
Outcomes: TypeAlias = Mapping[Hashable, Mapping[str, Outcome]]


def ask_in_rounds(
    cells: Sequence[Cell], interviews: Sequence[Hashable], ask: Ask, known: Outcomes | None = None
) -> list[Answer]:
    """Return one answer per cell, asked or not.

    Args:
        cells: what may be asked.
        interviews: each cell's interview.
        ask: answers the cells at some places; called once a round.
        known: outcomes of gates that are not among the cells.

    Raises:
        RuntimeError: a cell's gate is neither among the cells nor known, so whether to ask it cannot be told.
    """
    if not any(cell.item.asked_if for cell in cells):
        return list(ask(range(len(cells))))
    outcomes: dict[Hashable, dict[str, Outcome]] = {key: dict(found) for key, found in (known or {}).items()}
    answers: dict[int, Answer] = {}
    todo = list(range(len(cells)))
    while todo:
        found = {place: judge_gates(cells[place].item, outcomes.setdefault(interviews[place], {})) for place in todo}
        ready = [place for place in todo if found[place] == "ask"]
        round_answers = dict(zip(ready, ask(ready), strict=True)) if ready else {}
        for place in todo:
            if found[place] == "skip":
                round_answers[place] = not_asked(cells[place])
            elif found[place] == "failed":
                round_answers[place] = unroutable(cells[place], outcomes[interviews[place]])
        if not round_answers:
            item = cells[todo[0]].item
            raise RuntimeError(
                f"no answer to a gate of the item {item.item_id} is there, one of "
                f"{', '.join(gate.item_id for gate in item.asked_if)}"
            )
        for place, answer in round_answers.items():
            if not cells[place].item.variant:
                outcomes[interviews[place]][cells[place].item.item_id] = outcome_of(answer)
        answers |= round_answers
        todo = [place for place in todo if place not in round_answers]
    return [answers[place] for place in range(len(cells))]


def missing_gates(cells: Sequence[Cell], interviews: Sequence[Hashable]) -> dict[Hashable, set[str]]:
    """Return the ids of the gates that decide on cells and are not among those of the interview, by interview."""
    wanted: dict[Hashable, set[str]] = {}
    asked: dict[Hashable, set[str]] = {}
    for cell, interview in zip(cells, interviews, strict=True):
        if not cell.item.variant:
            asked.setdefault(interview, set()).add(cell.item.item_id)
        if cell.item.asked_if:
            wanted.setdefault(interview, set()).update(gate.item_id for gate in cell.item.asked_if)
    return {key: lost for key, ids in wanted.items() if (lost := ids - asked.get(key, set()))}
