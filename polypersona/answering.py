"""One shard from cells to rows: builds the cells, asks the engine, checks its answers, sorts out those that failed.

Cells are independent, so routing is honoured here, for every engine: a cell whose gate forbids it is not asked and
becomes a committed row `not_asked`; one whose gate was quarantined is quarantined too. Engines that hold an interview
(`context: previous`) route for themselves, because what was asked before is part of their prompt.

A pure function of the shard, the population and the engine's settings, whichever process runs it. Knows no Ray and no
file.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.engines.base import Answer, Cell, Engine, Group
from polypersona.errors import EngineError
from polypersona.gates import FAILED, Outcome
from polypersona.ledger import Ledger, Shard
from polypersona.population import Population
from polypersona.records import Assignment, Item, Persona, Response, seed_from
from polypersona.routing import Outcomes, ask_in_rounds

# What `collect_outcomes` reads of a row.
OUTCOME_COLUMNS = ["persona_id", "item_id", "variant", "wave", "draw", "disposition", "code", "error"]


@dataclass(frozen=True, slots=True)
class Task:
    """What turns cells into rows, besides the engine."""

    seed: int
    is_shuffled: bool
    shows_options: bool
    adapter: str
    max_attempts: int
    is_interview: bool = False


@dataclass(frozen=True, slots=True)
class AskedCell:
    """A cell with what its row needs besides the answer."""

    persona: Persona
    assignment: Assignment
    cell: Cell

    @property
    def interview(self) -> tuple[str, int, int]:
        """Persona, wave and draw: the cells among which routing looks for gates."""
        return self.assignment.persona_id, self.assignment.wave, self.assignment.draw


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of a shard: those that are committed, and those that failed with their reason."""

    committed: tuple[Response, ...]
    quarantined: tuple[tuple[Response, str], ...] = ()


def build_cells(shard: Shard, ledger: Ledger, population: Population, task: Task) -> list[AskedCell]:
    """Return the shard's cells, persona by persona."""
    items = dict(zip(population.item_keys, population.items, strict=True))
    box = ledger.layers[shard.layer].box
    ordered = [items[key] for key in box.items]
    place = {key: index for index, key in enumerate(population.item_keys)}
    cells = []
    for index in range(shard.begin, shard.end):
        persona = population.personas[index]
        wanted = None if population.asked is None else frozenset(population.asked[index])
        for slot in ledger.slots(shard.layer, index):
            if wanted is None or place[box.items[slot.item]] in wanted:
                cells.append(_cell(persona, ordered[slot.item], slot.wave, slot.draw, task))
    return cells


def answer_cells(
    engine: Engine,
    cells: Sequence[AskedCell],
    max_attempts: int,
    known: Outcomes | None = None,
    *,
    is_interview: bool = False,
) -> list[tuple[Answer, int]]:
    """Return each cell's answer and how often it was asked; one that ends in `error` is asked again.

    Args:
        engine: who answers.
        cells: the shard's cells.
        max_attempts: how often a cell is asked at most.
        known: outcomes of gates that other shards hold.
        is_interview: the engine continues conversations and routes for itself. A group is then one interview, and an
            interview with an error is held again as a whole.

    Raises:
        RuntimeError: the engine left a cell out, or answered one that was not asked.
    """
    if is_interview:
        return _ask_until_answered(engine, cells, max_attempts, is_interview=True)
    attempts = [0] * len(cells)

    def ask(places: Sequence[int]) -> list[Answer]:
        answers = _ask_until_answered(engine, [cells[place] for place in places], max_attempts, is_interview=False)
        for place, (_, count) in zip(places, answers, strict=True):
            attempts[place] = count
        return [answer for answer, _ in answers]

    answers = ask_in_rounds([asked.cell for asked in cells], [asked.interview for asked in cells], ask, known)
    return list(zip(answers, attempts, strict=True))


def collect_outcomes(
    rows: Sequence[Mapping[str, Any]],
    wanted: Mapping[Hashable, Collection[str]],
    found: dict[Hashable, dict[str, Outcome]],
) -> None:
    """Add the outcomes of wanted items, by interview, that committed or quarantined rows hold."""
    for row in rows:
        interview = (row["persona_id"], row["wave"], row["draw"])
        if not row["variant"] and row["item_id"] in wanted.get(interview, ()):
            outcome = Outcome(row["disposition"], row["code"], row["error"])
            found.setdefault(interview, {})[row["item_id"]] = outcome


def build_rows(
    shard: Shard, cells: Sequence[AskedCell], answers: Sequence[tuple[Answer, int]], task: Task
) -> ShardRows:
    """Return the shard's rows."""
    committed, quarantined = [], []
    for asked, (answer, attempts) in zip(cells, answers, strict=True):
        row = _row(shard, asked, answer, attempts, task)
        if answer.disposition in FAILED:
            quarantined.append((row, answer.error or "the answer is none of the options"))
        else:
            committed.append(row)
    return ShardRows(tuple(committed), tuple(quarantined))


def quarantine_all(shard: Shard, cells: Sequence[AskedCell], failures: Sequence[str], task: Task) -> ShardRows:
    """Return the rows of a shard that is given up: none committed, each with the last failure as its reason."""
    reason = failures[-1]
    answers = [(Answer(asked.cell.assignment_id, "", "error", error=reason), len(failures)) for asked in cells]
    return build_rows(shard, cells, answers, task)


def _cell(persona: Persona, item: Item, wave: int, draw: int, task: Task) -> AskedCell:
    assignment = Assignment(persona.persona_id, item.item_id, item.variant, wave, draw)
    seed = assignment.seed(task.seed)
    order = None
    if task.is_shuffled and item.is_closed:
        places = list(range(len(item.options)))
        random.Random(seed_from(seed, "order")).shuffle(places)
        order = tuple(places)
    return AskedCell(persona, assignment, Cell(assignment.assignment_id, item, seed, order))


def _ask_until_answered(
    engine: Engine, cells: Sequence[AskedCell], max_attempts: int, *, is_interview: bool
) -> list[tuple[Answer, int]]:
    answers: list[tuple[Answer, int]] = []
    todo = list(range(len(cells)))
    for attempt in range(1, max_attempts + 1):
        for place, answer in zip(todo, _ask(engine, [cells[place] for place in todo], is_interview), strict=True):
            if attempt == 1:
                answers.append((answer, 1))
            else:
                answers[place] = (answer, attempt)
        todo = [place for place, (answer, _) in enumerate(answers) if answer.disposition == "error"]
        if is_interview:
            failed = {cells[place].interview for place in todo}
            todo = [place for place, asked in enumerate(cells) if asked.interview in failed]
        if not todo:
            break
    return answers


def _ask(engine: Engine, cells: Sequence[AskedCell], is_interview: bool) -> list[Answer]:
    groups: dict[object, list[AskedCell]] = {}
    for asked in cells:
        groups.setdefault(asked.interview if is_interview else asked.persona.persona_id, []).append(asked)
    answers = engine.answer(
        [Group(group[0].persona, tuple(asked.cell for asked in group)) for group in groups.values()]
    )
    expected = [asked.cell.assignment_id for group in groups.values() for asked in group]
    got = [answer.assignment_id for answer in answers]
    if got != expected:
        raise RuntimeError(
            f"the {engine.name} engine gave {len(got)} answers ({len(set(got) & set(expected))} of them asked for) to "
            f"{len(expected)} cells, or another order"
        )
    return answers


def _row(shard: Shard, asked: AskedCell, answer: Answer, attempts: int, task: Task) -> Response:
    item, assignment = asked.cell.item, asked.assignment
    is_complete = answer.disposition == "complete"
    if is_complete and item.is_closed and answer.code not in item.codes:
        raise EngineError(
            f"The engine coded item {item.item_id!r} as {answer.code!r}; its codes are {list(item.codes)}.",
            "Report this as a bug of the engine.",
        )
    shown = asked.cell.order or tuple(range(len(item.options)))
    is_shown = item.is_closed and task.shows_options and answer.disposition != "not_asked"
    return Response(
        assignment_id=assignment.assignment_id,
        persona_id=assignment.persona_id,
        item_id=assignment.item_id,
        variant=assignment.variant,
        domain=item.domain,
        response_type=item.response_type,
        wave=assignment.wave,
        draw=assignment.draw,
        weight=asked.persona.weight,
        text=answer.text,
        rationale=answer.rationale,
        code=answer.code if is_complete else None,
        codes=None,
        value=None,
        label=answer.label if is_complete else "",
        option_probs=answer.option_probs,
        options_as_shown=shown if is_shown else None,
        disposition=answer.disposition,
        error=answer.error,
        attempts=attempts,
        prompt_tokens=answer.prompt_tokens,
        reused_prompt_tokens=answer.reused_prompt_tokens,
        new_tokens=answer.new_tokens,
        adapter=task.adapter,
        seed=asked.cell.seed,
        shard=shard.number,
    )
