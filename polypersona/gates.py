"""Routing's rules: in which order items are asked, and whether an item is asked, from the answers to its gates.

A gate is an earlier closed item with codes; `asked_if` of an item lists the gates that must all hold. Takes items and
outcomes; knows no persona, no engine and no file. An item's variants are routed by the answer to the gate itself, never
to a variant of it, so all forms of an item go to the same respondents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from polypersona.records import Disposition, Gate, Item

# `wait`: a gate is not answered yet. `failed`: a gate has no answer that could be trusted.
Verdict = Literal["ask", "skip", "wait", "failed"]
# Rows that hold no answer a table could use. Refusals and missing answers are answers.
FAILED: tuple[Disposition, ...] = ("error", "invalid")


class Outcome(NamedTuple):
    """How a cell ended, as far as routing needs it."""

    disposition: Disposition
    code: int | None = None
    error: str = ""


def judge_gates(item: Item, outcomes: Mapping[str, Outcome]) -> Verdict:
    """Return whether the item is asked, given the outcomes of one interview so far, by item id.

    A gate holds where its answer is complete and has one of the codes. A refusal, a missing answer and a gate that was
    itself not asked do not hold. One gate that does not hold decides, whatever the others are; failing that, one that
    is still open makes the item wait; failing that, one that failed (`error`, `invalid`) fails the item.
    """
    verdicts = {_judge(gate, outcomes.get(gate.item_id)) for gate in item.asked_if}
    order: tuple[Verdict, ...] = ("skip", "wait", "failed")
    return next((verdict for verdict in order if verdict in verdicts), "ask")


def _judge(gate: Gate, outcome: Outcome | None) -> Verdict:
    if outcome is None:
        return "wait"
    if outcome.disposition in FAILED:
        return "failed"
    return "ask" if outcome.disposition == "complete" and outcome.code in gate.codes else "skip"


def describe_failure(item: Item, outcomes: Mapping[str, Outcome]) -> str:
    """Return why an item cannot be asked whose gates `judge_gates` calls failed."""
    gate = next(
        gate for gate in item.asked_if if gate.item_id in outcomes and outcomes[gate.item_id].disposition in FAILED
    )
    outcome = outcomes[gate.item_id]
    return f"its gate {gate.item_id} failed: {outcome.error or 'the answer is none of the options'}"


def asking_order(items: Sequence[Item]) -> list[Item]:
    """Return the items in the order given, but one that stands before a gate of its own right after the last of them.

    Gates that are not among the items do not matter. Items that wait for each other keep their order at the end.
    """
    known = {item.item_id for item in items if not item.variant}
    needs = [{gate.item_id for gate in item.asked_if} & known for item in items]
    if not any(needs):
        return list(items)
    ordered: list[Item] = []
    placed: set[str] = set()
    waiting: list[int] = []
    for index in range(len(items)):
        waiting.append(index)
        # An item that finds its place may be the gate of one that waits.
        while (free := next((place for place in waiting if needs[place] <= placed), None)) is not None:
            waiting.remove(free)
            ordered.append(items[free])
            if not items[free].variant:
                placed.add(items[free].item_id)
    return ordered + [items[place] for place in waiting]


def gates_of(items: Sequence[Item], wanted: set[str]) -> set[str]:
    """Return the ids of all items that decide, directly or through others, whether the wanted ones are asked."""
    by_id = {item.item_id: item for item in items}
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        item = by_id.get(todo.pop())
        for gate in item.asked_if if item is not None else ():
            if gate.item_id in by_id and gate.item_id not in found:
                found.add(gate.item_id)
                todo.append(gate.item_id)
    return found - wanted
