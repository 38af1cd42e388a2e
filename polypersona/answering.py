"""One shard from cells to rows: builds the cells, asks the engine, checks its answers, sorts out those that failed.

Cells are independent, so routing is honoured here, for every engine: a cell whose gate forbids it is not asked and
becomes a committed row `not_asked`; one whose gate was quarantined is quarantined too. Engines that hold an interview
(`context: previous`) route for themselves, because what was asked before is part of their prompt.

A pure function of the shard, the population and the engine's settings, whichever process runs it. Knows no Ray and no
file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.engines.adapter_table import AdapterTable
from polypersona.engines.base import Answer, Cell, Engine, Group
from polypersona.gates import Outcome
from polypersona.ledger import Ledger, Shard
from polypersona.population import Population
from polypersona.recipe import Recipe
from polypersona.records import Item, encode_parts, seed_from
from polypersona.response_table import AskedCell, ShardRows, build_shard_rows
from polypersona.routing import Outcomes, ask_in_rounds

_ID_LENGTH = (16).to_bytes(8, "little")  # with which `encode_parts` begins an assignment's id
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
    table: AdapterTable | None = None

    @classmethod
    def of(cls, recipe: Recipe, adapter: str, table: AdapterTable | None = None) -> Task:
        """Return what a recipe says of it; `adapter` is the name of the weights that answer, `table` of several."""
        return cls(
            seed=recipe.seed,
            is_shuffled=recipe.generate.order == "random",
            shows_options=recipe.instrument.show_options != "none",
            adapter=adapter,
            max_attempts=recipe.generate.max_attempts,
            is_interview=recipe.generate.context == "previous",
            table=table,
        )

    def adapters_of(self, cells: Sequence[AskedCell]) -> str | list[str]:
        """Return the name of the weights that answer the cells: one name, or one for each cell."""
        if self.table is None:
            return self.adapter
        return [self.table.name_for(asked.persona, asked.cell.item.domain) for asked in cells]


def build_cells(shard: Shard, ledger: Ledger, population: Population, task: Task) -> list[AskedCell]:
    """Return the shard's cells, persona by persona."""
    items = dict(zip(population.item_keys, population.items, strict=True))
    ordered = [items[key] for key in ledger.layers[shard.layer].box.items]
    place = {key: index for index, key in enumerate(population.item_keys)}
    places = [place[key] for key in ledger.layers[shard.layer].box.items]
    seeds = hashlib.blake2b(encode_parts(task.seed) + _ID_LENGTH, digest_size=8)
    # Personas that are asked the same have the same slots, one object.
    known: dict[int, list[tuple[bytes, int, int, int, Item, tuple[int, ...] | None]]] = {}
    is_shuffled = task.is_shuffled
    cells: list[AskedCell] = []
    for index in range(shard.begin, shard.end):
        persona = population.personas[index]
        ids = hashlib.blake2b(encode_parts(persona.persona_id), digest_size=8)
        slots = ledger.slots(shard.layer, index)
        asked = known.get(id(slots))
        if asked is None:
            asked = known[id(slots)] = [
                (
                    encode_parts(item.item_id, item.variant, slot.wave, slot.draw),
                    places[slot.item],
                    slot.wave,
                    slot.draw,
                    item,
                    item.shown or None,
                )
                for slot in slots
                for item in (ordered[slot.item],)
            ]
        if population.asked is not None:
            wanted = frozenset(population.asked[index])
            asked = [one for one in asked if one[1] in wanted]
        for end, _, wave, draw, item, order in asked:
            # `Assignment.assignment_id` and `Assignment.seed`, with what cells have in common hashed once.
            state = ids.copy()
            state.update(end)
            assignment_id = state.hexdigest()
            state = seeds.copy()
            state.update(assignment_id.encode())
            seed = int.from_bytes(state.digest(), "big") >> 1
            if is_shuffled and item.options:
                order = _order(seed, item)
            cells.append(AskedCell(persona, wave, draw, Cell(assignment_id, item, seed, order)))
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
    if is_interview or not any(asked.cell.item.asked_if for asked in cells):
        return _ask_until_answered(engine, cells, max_attempts, is_interview=is_interview)
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
    """Return the shard's rows.

    Raises:
        EngineError: an answer's code is none of its item's.
    """
    adapter = task.adapters_of(cells)
    return build_shard_rows(shard.number, cells, answers, adapter=adapter, shows_options=task.shows_options)


def _order(seed: int, item: Item) -> tuple[int, ...]:
    """Return the order in which a cell shows the item's options, as its seed shuffles them."""
    places = list(range(len(item.options)))
    random.Random(seed_from(seed, "order")).shuffle(places)
    return tuple(places)


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
