"""pytest tests/test_merging.py"""

import pytest

from polypersona.answering import Task, build_rows
from polypersona.engines.base import Answer, Cell
from polypersona.ledger import Shard
from polypersona.merging import cells_to_retry, merge_rows
from polypersona.records import Assignment, Item, Persona
from polypersona.response_table import AskedCell
from polypersona.shardfile import Footer, render_shard

TASK = Task(seed=7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=2)
SHARD = Shard(3, 0, 0, 3)
ITEMS = [Item("a.open.01", "a", "How?", "open"), Item("b.likert.01", "b", "Good?", "likert", ("No", "Yes"))]
CELLS = [
    AskedCell(Persona(name), 1, 1, Cell(Assignment(name, item.item_id).assignment_id, item, 5))
    for name in ("p0", "p1", "p2")
    for item in ITEMS
]


def rows(cells, failing=(), attempts=1, word="well"):
    """Return the rows of cells; those of the `failing` places of CELLS end as errors."""
    answers = []
    for asked in cells:
        place, item = CELLS.index(asked), asked.cell.item
        code = 2 if item.is_closed else None
        if place in failing:
            answers.append((Answer(asked.cell.assignment_id, "", "error", error=f"{word} failed"), attempts))
        else:
            text = f"{word} {place}"
            label = item.options[1] if code else ""
            answers.append((Answer(asked.cell.assignment_id, text, "complete", code=code, label=label), attempts))
    return build_rows(SHARD, cells, answers, TASK)


def column(table, name):
    return table.column(name).to_pylist()


def ids(places):
    return [CELLS[place].cell.assignment_id for place in places]


def retry(failing, still=(), attempts=1, word="well", is_interview=False):
    earlier = rows(CELLS, failing, attempts=3)
    asked = cells_to_retry(CELLS, set(column(earlier.quarantined, "assignment_id")), is_interview=is_interview)
    again = rows(asked, still, attempts, word)
    return merge_rows(CELLS, earlier, again, is_interview=is_interview)


def test_what_is_answered_moves_into_the_order_of_the_plan_and_the_rest_stays():
    merged = retry({0, 3, 4}, still={3})
    assert column(merged.committed, "assignment_id") == ids([0, 1, 2, 4, 5])
    assert column(merged.committed, "attempts") == [4, 3, 3, 4, 3]
    assert column(merged.quarantined, "assignment_id") == ids([3])
    assert column(merged.quarantined, "attempts") == [4]
    assert column(merged.quarantined, "reason") == ["well failed"]


@pytest.mark.parametrize("failing", [{0}, {5}, {1, 2, 3}, {0, 1, 2, 3, 4, 5}])
def test_a_mended_shard_has_the_bytes_of_an_undisturbed_one(failing):
    footer = Footer("ab", 3, 6, 6, 0)
    merged, calm = retry(failing, attempts=0), rows(CELLS, attempts=3)
    assert render_shard(merged.committed, footer) == render_shard(calm.committed, footer)
    assert render_shard(merged.quarantined, footer) == render_shard(calm.quarantined, footer)


def test_attempts_do_not_overflow():
    assert column(retry({0}, attempts=2**15 - 2).committed, "attempts")[0] == 2**15 - 1


def test_an_interview_is_held_again_as_a_whole():
    merged = retry({3}, word="anew", is_interview=True)
    assert column(merged.committed, "text") == ["well 0", "well 1", "anew 2", "anew 3", "well 4", "well 5"]
    assert merged.quarantined.num_rows == 0


def test_an_interview_that_would_lose_an_answer_stays_as_it_was():
    merged = retry({3, 5}, still={2}, word="anew", is_interview=True)
    assert column(merged.committed, "text") == ["well 0", "well 1", "well 2", "anew 4", "anew 5"]
    assert column(merged.quarantined, "assignment_id") == ids([3])
