"""Items of a codebook whose higher codes mean less: stored low to high, and asked as the questionnaire asks them."""

import csv
import json

import pytest

from polypersona.annotation.sample import build_entry
from polypersona.bias.forms import build_forms, is_agreement_scale
from polypersona.chatml import build_messages, render_question
from polypersona.engines.base import Answer, EngineSettings
from polypersona.examples import build_example, example_item, render_examples
from polypersona.questionbank import load_bank
from polypersona.recipe_sections import DatasetRecipe, SurveyRecipe
from polypersona.records import Persona
from polypersona.records_loader import load_records
from polypersona.references import DatasetReferences, Teacher
from polypersona.respondents import build_splits, load_respondents
from polypersona.simulator.stance import stance_sign
from polypersona.survey.alignment import align
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.teacher import ask_teacher
from polypersona.training.choices import _Choices

PERSONA = Persona("p1", {"age": 40})


@pytest.fixture
def descending(book):
    """The toy codebook with a statement that is agreed with by the lowest code."""
    book["items"]["q1"] |= {"direction": "descending", "construct": "social_trust"}
    book["items"]["q1"]["options"] = {"1": "Agree", "2": "Neither", "3": "Disagree"}
    return book


@pytest.fixture
def item(descending):
    return codebook_items(parse_codebook(descending)[0])[0]


def test_a_descending_scale_is_stored_low_to_high_and_shown_as_the_questionnaire_shows_it(item):
    assert item.options == ("Disagree", "Neither", "Agree")
    assert item.codes == (3, 2, 1)
    assert item.options_as_shown == ("Agree", "Neither", "Disagree")
    assert render_question(item, "labels").endswith("Options: Agree; Neither; Disagree")
    assert build_entry("model", "c", PERSONA, item, "Agree.", "x").options == ("Agree", "Neither", "Disagree")


def test_a_scale_whose_codes_are_not_in_order_keeps_the_order_it_is_shown_in(book):
    book["items"]["q1"]["options"] = {"2": "Neither", "3": "Agree", "1": "Disagree"}
    item = codebook_items(parse_codebook(book)[0])[0]
    assert item.options == ("Disagree", "Neither", "Agree")
    assert item.options_as_shown == ("Neither", "Agree", "Disagree")


def test_other_items_keep_the_codebooks_order(book):
    for item, question in zip(codebook_items(parse_codebook(book)[0]), parse_codebook(book)[0].questions, strict=True):
        assert (item.codes, item.shown) == (question.codes, ())


def test_agreeing_is_a_stance_for_the_construct_and_the_scale_goes_from_disagreeing_to_agreeing(item):
    assert [stance_sign(item, code, "") for code in (1, 2, 3)] == [1, 0, -1]
    assert is_agreement_scale(item)


def test_forms_of_the_battery_are_shown_low_to_high_and_one_in_reverse(item):
    forms = {form.variant: form for form in build_forms([item], shows_options=True)}
    assert forms[""].options_as_shown == item.options
    assert forms["order"].options_as_shown == tuple(reversed(item.options))


def test_alignment_finds_each_option_by_its_code(descending, item):
    book = parse_codebook(descending)[0]
    assert align(book, [item], ["q1"]).items[0].order == (2, 1, 0)


def test_the_teacher_names_the_letter_that_the_prompt_gives_its_answer(item):
    settings = EngineSettings("rules", 1, show_options="letters")
    people = [Persona(f"p{number}", {"age": 20 + number}) for number in range(30)]
    taught = ask_teacher(settings, people, [item], {person.persona_id: ["q1"] for person in people})
    letters = {str(one.metadata["label"]): str(one.metadata["reference"])[:2] for one in taught.examples}
    assert letters == {"Agree": "A)", "Neither": "B)", "Disagree": "C)"}
    again = Teacher({one.persona_id: one for one in people}, [item], 1, show="letters")
    for one in taught.examples:
        assert again.answer(one.metadata["persona_id"], "q1").text[:2] == one.metadata["reference"][:2]
        assert one.metadata["code"] == {"A)": 1, "B)": 2, "C)": 3}[one.metadata["reference"][:2]]


def test_an_example_is_asked_in_the_order_shown_and_read_back_with_it(tmp_path, item):
    answer = Answer("x", "C) Disagree.", "complete", "", 3, "Disagree")
    example = build_example(PERSONA, item, answer, "letters")
    back = example_item(example)
    assert "A) Agree; B) Neither; C) Disagree" in example.messages[1]["content"]
    assert (back.options, back.codes, back.shown) == (item.options, item.codes, item.shown)
    assert build_messages(PERSONA, back, "letters") == example.messages[:2]
    assert _Choices().texts(example) == ("C) Disagree.", "B) Neither.", "A) Agree.")
    references = DatasetReferences.build([example], 1, has_rationale=False, is_taught_by_rules=False, show="letters")
    assert references.own("p1", "q1") == ("C) Disagree.", 3)
    (tmp_path / "train.jsonl").write_bytes(render_examples([example]))
    (loaded,) = load_records(str(tmp_path / "train.jsonl"), "letters").splits["all"]
    assert loaded.messages == example.messages


def test_a_respondents_answer_keeps_its_code_and_label(tmp_path, descending):
    codes = {f"r{number}": 1 + number % 3 for number in range(30)}
    rows = [[name, 1, 20, "fm"[code % 2], code, "", 1, -1] for name, code in codes.items()]
    rows[-1][6:] = [-1, 1]
    rows[2][5], rows[5][5] = 1, 2
    with (tmp_path / "data.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], *rows])
    path = tmp_path / "codebook.json"
    descending["items"]["q2"]["asked_if"] = {}
    path.write_text(json.dumps(descending), encoding="utf-8")
    people = load_respondents(str(tmp_path / "data.csv"), SurveyRecipe(codebook=str(path), items=["q1"]))
    splits = build_splits(people, DatasetRecipe(splits=[0.8, 0.1, 0.1]), 1, "letters").splits
    found = {(one.metadata["code"], one.metadata["label"], one.messages[2]["content"]) for one in splits["train"]}
    assert found == {(1, "Agree", "A) Agree."), (2, "Neither", "B) Neither."), (3, "Disagree", "C) Disagree.")}
    assert load_bank(path)[0].codes == (3, 2, 1)
