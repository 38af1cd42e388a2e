"""Where the prompt letters its options, answers begin with the letter: written, taught, read back and compared."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona import dataset
from polypersona.chatml import build_messages, render_answer, render_choice, render_letter, shown_place
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.fake import FakeEngine
from polypersona.engines.rules import RulesEngine
from polypersona.errors import QuestionbankError
from polypersona.examples import load_examples
from polypersona.questionbank import load_bank
from polypersona.recipe import build_recipe
from polypersona.records import Item, Persona
from polypersona.records_loader import load_records
from polypersona.references import DatasetReferences, TeacherReferences
from polypersona.storage import RunDirectory

LIKERT = Item(
    "x.likert.01", "x", "I like it.", "likert",
    ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree"),
    construct="perceived_usefulness",
)  # fmt: skip
YES_NO = Item("x.yesno.01", "x", "Do you?", "yesno", ("No", "Yes"))
TURNED = (4, 3, 2, 1, 0)
CLOSED = [item for item in load_bank() if item.is_closed]
NURSE = Persona("n", {"age": 31, "occupation": "nurse", "education": "graduate degree"})


def test_the_letter_is_that_of_the_place_the_prompt_shows():
    for order in (None, TURNED, (2, 0, 4, 1, 3)):
        shown = build_messages(NURSE, LIKERT, "letters", order)[1]["content"].splitlines()[-1]
        for index, label in enumerate(LIKERT.options):
            choice = render_choice(label, "letters", shown_place(index, order))
            assert choice.removesuffix(".") in shown.removeprefix("Options: ").split("; ")
    assert render_answer("Agree", "I do.", "letters", shown_place(3, TURNED)) == "B) Agree. I do."


def test_answers_without_letters_are_what_they_were():
    assert (
        render_choice("Agree") == render_choice("Agree", "labels", 3) == render_choice("Agree", "none", 3) == "Agree."
    )
    assert render_answer("Yes!", "I do.") == "Yes! I do."


def test_an_option_without_a_letter_is_refused():
    assert [render_letter(0), render_letter(25)] == ["A", "Z"]
    with pytest.raises(QuestionbankError, match=r"number 27 .* A to Z") as refused:
        render_letter(26)
    assert "labels" in refused.value.hint
    with pytest.raises(ValueError, match="with its place"):
        render_choice("Agree", "letters")


@pytest.mark.parametrize(
    ("text", "order", "code", "rationale"),
    [
        ("B", None, 2, ""),
        ("B)", None, 2, ""),
        ("B.", None, 2, ""),
        ("b", None, 2, ""),
        ("(b)", None, 2, ""),
        ("**B**", None, 2, ""),
        ("B) Disagree.", None, 2, ""),
        ("B) Disagree. I do.", None, 2, "I do."),
        ("B Disagree, for I do.", None, 2, "for I do."),
        ("B: it is not for me", None, 2, "it is not for me"),
        ("B", TURNED, 4, ""),
        ("(B) Agree. I do.", TURNED, 4, "I do."),
        ("Agree. I do.", TURNED, 4, "I do."),  # a label alone still names its option
        ("B) Strongly agree.", None, None, "B) Strongly agree."),  # letter and label contradict
        ("B) Agree.", None, None, "B) Agree."),
        ("F", None, None, "F"),
        ("F) Agree", None, None, "F) Agree"),
        ("A friend told me.", None, None, "A friend told me."),
        ("Because", None, None, "Because"),
        ("", None, None, ""),
    ],
)
def test_a_lettered_answer_is_read_by_the_order_shown(text, order, code, rationale):
    assert code_answer(LIKERT, text, order, has_letters=True) == code
    assert split_rationale(LIKERT, text, order, has_letters=True)[1] == rationale
    if text:
        is_valid = disposition_of(LIKERT, text, order=order, has_letters=True) == "complete"
        assert is_valid == (code is not None)


def test_a_rationale_may_begin_like_another_option():
    assert code_answer(YES_NO, "B) No one does.", has_letters=True) == 2
    assert code_answer(YES_NO, "B) No.", has_letters=True) is None
    assert code_answer(YES_NO, "B", has_letters=True) == 2
    assert code_answer(YES_NO, "B") is None  # nothing was lettered


@given(st.data())
def test_every_lettered_answer_this_project_renders_is_read_back(data):
    item = data.draw(st.sampled_from(CLOSED))
    order = data.draw(st.permutations(range(len(item.options))))
    index = data.draw(st.sampled_from(order))
    rationale = data.draw(st.sampled_from(["", "I do.", "Agree with me.", "No. Yes.", "A) is mine.", "B"]))
    text = render_answer(item.options[index], rationale, "letters", shown_place(index, order))
    assert code_answer(item, text, order, has_letters=True) == item.codes[index]
    assert split_rationale(item, text, order, has_letters=True) == (item.options[index], rationale)
    assert disposition_of(item, text, order=order, has_letters=True) == "complete"


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_letters(text):
    assert code_answer(LIKERT, text, TURNED, has_letters=True) in (None, *LIKERT.codes)


@pytest.mark.parametrize("engine", [FakeEngine, RulesEngine])
@pytest.mark.parametrize("order", [None, TURNED])
def test_engines_answer_with_the_letter_shown(engine, order):
    name = engine.name
    [answer] = engine(EngineSettings(name, 7, show_options="letters", rationale=True)).answer(
        [Group(NURSE, (Cell("c", LIKERT, 5, order),))]
    )
    [plain] = engine(EngineSettings(name, 7, rationale=True)).answer([Group(NURSE, (Cell("c", LIKERT, 5, order),))])
    letter = render_letter(shown_place(LIKERT.codes.index(answer.code), order))
    assert answer.text == f"{letter}) {plain.text}"
    assert (answer.code, answer.label, answer.rationale) == (plain.code, plain.label, plain.rationale)
    assert code_answer(LIKERT, answer.text, order, has_letters=True) == answer.code


def lettered(tmp_path, **sections):
    instrument = {"domains": ["finance"], "show_options": "letters"}
    panel = {"source": "sampled", "size": 12}
    return build_recipe({"name": "l", "out": str(tmp_path), "panel": panel, "instrument": instrument, **sections})


def test_training_sees_letters_and_references_have_them(tmp_path):
    own = lettered(tmp_path, dataset={"records": 60, "split_by": "neither"})
    dataset.run(own)
    rows = load_examples(RunDirectory.at(own.location), "train")
    closed = [row for row in rows if row.metadata["code"] is not None]
    assert closed
    for row in closed:
        place = row.metadata["options"].index(row.metadata["label"])
        expected = render_answer(row.metadata["label"], row.metadata["rationale"], "letters", place)
        assert row.messages[-1]["content"] == row.metadata["reference"] == expected
        assert expected.split(". ")[0].removesuffix(".") in row.messages[1]["content"]
    bare = DatasetReferences.build(rows, 7, has_rationale=False, is_taught_by_rules=True, show="letters")
    stored = closed[0].metadata
    place = stored["options"].index(stored["label"])
    reference = bare.own(stored["persona_id"], stored["item_id"])
    assert reference.text == render_answer(stored["label"], show="letters", place=place)
    assert bare.retest(stored["persona_id"], stored["item_id"]).text[1] == ")"
    teacher = TeacherReferences.build([NURSE], [LIKERT], 7, has_rationale=False, show="letters")
    assert teacher.own("n", LIKERT.item_id).text[1] == ")"


def test_records_made_elsewhere_get_letters_too(tmp_path):
    record = {"persona": {"age": 40}, "question": "Do you?", "options": ["No", "Yes"], "reference": "Yes. I do."}
    file = tmp_path / "records.jsonl"
    file.write_text(
        json.dumps(record) + "\n" + json.dumps({**record, "persona": {"age": 41}, "reference": "No"}) + "\n"
    )
    rows = load_records(str(file), "letters").splits["all"]
    assert [row.messages[-1]["content"] for row in rows] == ["B) Yes. I do.", "A) No."]
    assert [row.metadata["reference"] for row in rows] == ["B) Yes. I do.", "A) No."]
    plain = load_records(str(file), "labels").splits["all"]
    assert [row.messages[-1]["content"] for row in plain] == ["Yes. I do.", "No"]
