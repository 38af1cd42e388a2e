"""pytest tests/test_units.py"""

from polypersona.attempts import Attempts
from polypersona.bisection import Found
from polypersona.engines.base import Answer, Cell
from polypersona.records import Item, Persona
from polypersona.response_table import AskedCell
from polypersona.units import Units

ITEM = Item("x.open.01", "x", "How?", "open")
# Two draws of two personas, and one of a third; by persona, then draw.
CELLS = [
    AskedCell(Persona(persona), 1, draw, Cell(f"{persona}-{draw}-{number}", ITEM, 1))
    for persona, draw in (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1))
    for number in range(2)
]


def test_a_unit_is_a_cell_or_an_interview():
    cells, interviews = (Units.of(CELLS, by_interview=by) for by in (False, True))
    assert (cells.count, interviews.count) == (10, 5)
    assert cells.cells_of([3, 4]) == [3, 4]
    assert interviews.cells_of([4, 1]) == [2, 3, 8, 9]


def test_each_cell_gets_its_answer_or_the_reason_of_its_unit_or_of_the_whole():
    units = Units.of(CELLS, by_interview=True)
    given = {place: (Answer(CELLS[place].cell.assignment_id, "yes", "complete"), 1) for place in range(8)}
    poisoned = (Found(4, "it kills", 6),)
    answers = units.complete(given, Attempts(poisoned=poisoned))
    assert [answer.text for answer, _ in answers] == ["yes"] * 8 + ["", ""]
    assert [(answer.error, answer.disposition, tries) for answer, tries in answers[8:]] == [
        ("it kills", "error", 6)
    ] * 2
    given_up = units.complete({}, Attempts(poisoned=poisoned, failures=("a", "b"), verdict="b"))
    assert [(answer.error, tries) for answer, tries in given_up] == [("b", 2)] * 8 + [("it kills", 6)] * 2
    assert [answer.assignment_id for answer, _ in given_up] == [asked.cell.assignment_id for asked in CELLS]
