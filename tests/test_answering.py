"""pytest tests/test_answering.py"""

from dataclasses import replace

import pytest
from response_rows import rows_of

from polypersona.answering import Task, answer_cells, build_cells, build_rows
from polypersona.engines.base import Answer, EngineSettings
from polypersona.engines.fake import FakeEngine
from polypersona.errors import EngineError
from polypersona.ledger import Box, Ledger
from polypersona.population import Population
from polypersona.records import Assignment, Item, Persona

ITEMS = (
    Item("x.likert.01", "x", "Is it good?", "likert", ("Bad", "Fair", "Good")),
    Item("x.open.01", "x", "Why?", "open"),
)
PERSONAS = tuple(Persona(f"p{index}", {"age": 20 + index}) for index in range(5))
POPULATION = Population(PERSONAS, ITEMS)
TASK = Task(seed=7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=3)
SETTINGS = EngineSettings(engine="fake", seed=7)


def ledger(draws=1, size=2, population=POPULATION):
    box = Box(len(population.personas), population.item_keys, draws=draws)
    return Ledger(size).extend(box, asked=population.asked)


class Scripted:
    """An engine that gives what the test says, call by call."""

    name = "scripted"
    reproduces = "bytes"

    def __init__(self, *calls):
        self.calls = list(calls)
        self.asked = []

    def answer(self, groups):
        cells = [cell for group in groups for cell in group.cells]
        self.asked.append([cell.assignment_id for cell in cells])
        return [self.calls.pop(0)(cell) for cell in cells] if callable(self.calls[0]) else self.calls.pop(0)

    def close(self):
        pass


def error(cell):
    return Answer(cell.assignment_id, "", "error", error="not now")


def fine(cell):
    return Answer(cell.assignment_id, "Fine.", "complete")


def test_a_shards_cells_are_whole_personas_in_panel_order():
    cells = build_cells(ledger(draws=2).shard(1), ledger(draws=2), POPULATION, TASK)
    assert [asked.persona.persona_id for asked in cells] == ["p2"] * 4 + ["p3"] * 4
    assert [asked.draw for asked in cells[:4]] == [1, 1, 2, 2]
    assert len({asked.cell.assignment_id for asked in cells}) == 8
    assert cells[0].cell.seed == Assignment("p2", "x.likert.01").seed(7)


def test_the_test_split_asks_each_persona_its_own_items():
    population = replace(POPULATION, asked=((0,), (1,), (0, 1), (1,), (0,)))
    plan = ledger(population=population)
    cells = [asked for number in range(3) for asked in build_cells(plan.shard(number), plan, population, TASK)]
    assert [(asked.persona.persona_id, asked.cell.item.item_id) for asked in cells] == [
        ("p0", "x.likert.01"),
        ("p1", "x.open.01"),
        ("p2", "x.likert.01"),
        ("p2", "x.open.01"),
        ("p3", "x.open.01"),
        ("p4", "x.likert.01"),
    ]


def test_a_random_order_follows_from_the_cell_alone():
    shuffled = replace(TASK, is_shuffled=True)
    first = build_cells(ledger().shard(0), ledger(), POPULATION, shuffled)
    other = build_cells(ledger(size=5).shard(0), ledger(size=5), POPULATION, shuffled)
    assert [asked.cell.order for asked in first] == [asked.cell.order for asked in other[:4]]
    assert sorted(first[0].cell.order) == [0, 1, 2]
    assert first[1].cell.order is None  # nothing to shuffle in an open item
    assert len({asked.cell.order for asked in other}) > 2


def test_a_cell_that_ends_in_error_is_asked_again_and_its_attempts_counted():
    cells = build_cells(ledger(size=1).shard(0), ledger(size=1), POPULATION, TASK)
    engine = Scripted(error, fine, fine)
    answers = answer_cells(engine, cells, 3)
    assert [(answer.disposition, attempts) for answer, attempts in answers] == [("complete", 2), ("complete", 1)]
    assert engine.asked[1] == [cells[0].cell.assignment_id]


def test_an_error_that_stays_is_quarantined_with_its_message():
    cells = build_cells(ledger(size=1).shard(0), ledger(size=1), POPULATION, TASK)[:1]
    answers = answer_cells(Scripted(error, error), cells, 2)
    rows = build_rows(ledger(size=1).shard(0), cells, answers, TASK)
    assert not rows.committed.num_rows
    [row] = rows_of(rows.quarantined)
    assert (row.disposition, row.attempts, row.error, row.reason) == ("error", 2, "not now", "not now")


@pytest.mark.parametrize("fault", ["one too few", "twice the same", "another order"])
def test_an_engine_that_does_not_answer_each_cell_once_is_caught(fault):
    cells = build_cells(ledger(size=1).shard(0), ledger(size=1), POPULATION, TASK)
    answers = [fine(asked.cell) for asked in cells]
    wrong = {"one too few": answers[:1], "twice the same": [answers[0]] * 2, "another order": answers[::-1]}[fault]
    with pytest.raises(RuntimeError, match="2 cells"):
        answer_cells(Scripted(wrong), cells, 1)


def test_a_code_that_the_item_does_not_have_is_refused():
    cells = build_cells(ledger(size=1).shard(0), ledger(size=1), POPULATION, TASK)[:1]
    answer = Answer(cells[0].cell.assignment_id, "Great.", "complete", code=9, label="Great")
    with pytest.raises(EngineError, match="codes are"):
        build_rows(ledger(size=1).shard(0), cells, [(answer, 1)], TASK)


def test_rows_say_who_was_asked_what_and_how():
    plan = ledger(size=1)
    cells = build_cells(plan.shard(0), plan, POPULATION, TASK)
    rows = rows_of(build_rows(plan.shard(0), cells, answer_cells(FakeEngine(SETTINGS), cells, 1), TASK).committed)
    closed, written = rows
    assert closed.options_as_shown == (0, 1, 2)
    assert closed.code in (1, 2, 3)
    assert sum(closed.option_probs) == pytest.approx(1)
    assert written.code is None
    assert written.option_probs is None
    assert written.options_as_shown is None
    assert {row.adapter for row in rows} == {"none"}


def test_ids_and_seeds_are_those_of_the_assignments():
    plan = ledger(draws=2)
    for asked in build_cells(plan.shard(0), plan, POPULATION, TASK):
        item = asked.cell.item
        assignment = Assignment(asked.persona.persona_id, item.item_id, item.variant, asked.wave, asked.draw)
        assert asked.cell.assignment_id == assignment.assignment_id
        assert asked.cell.seed == assignment.seed(TASK.seed)


def test_repeated_values_are_numbered_in_the_order_of_their_rows_in_both_files():
    plan = ledger(size=5)
    cells = build_cells(plan.shard(0), plan, POPULATION, TASK)
    answers = [(error(asked.cell), 1) if asked.persona.persona_id == "p1" else (fine(asked.cell), 1) for asked in cells]
    open_cells = [(asked, answer) for asked, answer in zip(cells, answers, strict=True) if not asked.cell.item.options]
    rows = build_rows(plan.shard(0), *map(list, zip(*open_cells, strict=True)), TASK)
    assert rows.committed.column("persona_id").combine_chunks().dictionary.to_pylist() == ["p0", "p2", "p3", "p4"]
    assert rows.quarantined.column("persona_id").combine_chunks().dictionary.to_pylist() == ["p1"]
