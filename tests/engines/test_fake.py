"""pytest tests/engines/test_fake.py"""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from polypersona.coding import code_answer, disposition_of
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.fake import FakeEngine
from polypersona.engines.registry import load_engine
from polypersona.errors import EngineError
from polypersona.records import Assignment, Item, Persona

CLOSED = Item("x.likert.01", "x", "Is it good?", "likert", ("Bad", "Fair", "Good"))
OPEN = Item("x.open.01", "x", "Why?", "open")
SETTINGS = EngineSettings(engine="fake", seed=7)


def group(persona, items=(CLOSED, OPEN), draws=1):
    assignments = [
        Assignment(persona.persona_id, item.item_id, draw=draw) for item in items for draw in range(1, draws + 1)
    ]
    cells = [
        Cell(assignment.assignment_id, item, assignment.seed(7))
        for assignment, item in zip(assignments, [item for item in items for _ in range(draws)], strict=True)
    ]
    return Group(persona, tuple(cells))


def test_answers_are_a_function_of_seed_persona_and_item():
    first = FakeEngine(SETTINGS).answer([group(Persona("a")), group(Persona("b"))])
    again = FakeEngine(SETTINGS).answer([group(Persona("b")), group(Persona("a"))])
    assert first == again[2:] + again[:2]
    assert first[0].option_probs != first[2].option_probs
    assert FakeEngine(replace(SETTINGS, seed=8)).answer([group(Persona("a"))])[0].option_probs != first[0].option_probs


def test_closed_answers_are_drawn_from_their_probabilities():
    answers = FakeEngine(SETTINGS).answer([group(Persona("a"), (CLOSED,), draws=2000)])
    shares = Counter(answer.code for answer in answers)
    for code, prob in zip(CLOSED.codes, answers[0].option_probs, strict=True):
        assert shares[code] / 2000 == pytest.approx(prob, abs=0.04)
    assert all(code_answer(CLOSED, answer.text) == answer.code for answer in answers)


def test_temperature_zero_takes_the_likeliest_option():
    cold = FakeEngine(replace(SETTINGS, temperature=0)).answer([group(Persona("a"), (CLOSED,), draws=50)])
    assert len({answer.code for answer in cold}) == 1
    assert CLOSED.codes[cold[0].option_probs.index(max(cold[0].option_probs))] == cold[0].code
    warm = FakeEngine(SETTINGS).answer([group(Persona("a"), (CLOSED,))])[0]
    assert warm.option_probs.index(max(warm.option_probs)) == CLOSED.codes.index(cold[0].code)


def test_a_failure_may_be_that_of_one_item():
    engine = FakeEngine(SETTINGS)
    answers = engine.answer([group(Persona("a", {"fake_failure": "error", "fake_item": OPEN.item_id}))])
    assert [answer.disposition for answer in answers] == ["complete", "error"]


def test_open_answers_mention_the_persona():
    persona = Persona("a", {"age": 44, "occupation": "nurse"})
    answer = FakeEngine(SETTINGS).answer([group(persona, (OPEN,))])[0]
    assert "nurse" in answer.text
    assert disposition_of(OPEN, answer.text) == "complete"


def test_a_rationale_follows_where_it_is_asked_for():
    answer = FakeEngine(replace(SETTINGS, rationale=True)).answer([group(Persona("a"), (CLOSED,))])[0]
    assert answer.rationale
    assert answer.text == f"{answer.label}. {answer.rationale}"


def test_closed_text_has_no_probabilities():
    assert FakeEngine(replace(SETTINGS, closed="text")).answer([group(Persona("a"))])[0].option_probs is None


def test_an_open_answer_is_cut_at_the_limit():
    answer = FakeEngine(replace(SETTINGS, max_new_tokens=3)).answer([group(Persona("a"), (OPEN,))])[0]
    assert (answer.disposition, answer.new_tokens, len(answer.text.split())) == ("truncated", 3, 3)


@pytest.mark.parametrize(
    ("failure", "disposition"),
    [("error", "error"), ("refusal", "refusal"), ("invalid", "invalid"), ("nonresponse", "item_nonresponse")],
)
def test_failures_come_on_request(failure, disposition):
    answers = FakeEngine(SETTINGS).answer([group(Persona("a", {"fake_failure": failure})), group(Persona("b"))])
    assert [answer.disposition for answer in answers] == [disposition] * 2 + ["complete"] * 2
    if failure != "error":
        assert disposition_of(CLOSED, answers[0].text) == disposition


def test_a_raise_on_request_happens_once_where_a_file_is_named(tmp_path):
    persona = Persona("a", {"fake_failure": "raise", "fake_once": str(tmp_path / "raised")})
    engine = FakeEngine(SETTINGS)
    with pytest.raises(RuntimeError, match="asked the fake engine to raise"):
        engine.answer([group(persona)])
    assert engine.answer([group(persona)])[0].disposition == "complete"


def test_a_crash_on_request_ends_the_process():
    code = (
        "from polypersona.engines.fake import *; from polypersona.records import Persona;"
        "FakeEngine(EngineSettings('fake', 7)).answer([Group(Persona('a', {'fake_failure': 'crash'}), ())])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_unknown_failures_and_options_are_refused_by_name():
    with pytest.raises(EngineError, match="Did you mean 'refusal'"):
        FakeEngine(SETTINGS).answer([group(Persona("a", {"fake_failure": "refusl"}))])
    with pytest.raises(EngineError, match="top_k"):
        load_engine(replace(SETTINGS, top_k=5))
