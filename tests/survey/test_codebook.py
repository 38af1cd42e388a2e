"""Codebooks: read, checked item by item, and turned into an instrument."""

import copy
import json

import pytest

from polypersona.errors import SurveyError
from polypersona.questionbank import load_bank, load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.survey.codebook import card_name, codebook_items, says_not
from polypersona.survey.codebook_checks import is_codebook, load_codebook, parse_codebook


def problems_of(content):
    return [str(problem) for problem in parse_codebook(content)[1]]


def changed(book, path, value):
    content = copy.deepcopy(book)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_a_sound_codebook_has_no_problem(book):
    codebook, problems = parse_codebook(book)
    assert problems == []
    assert codebook.not_asked == {"", "NA"}
    assert codebook.question("q1").codes == (1, 2, 3)
    assert codebook.question("q1").is_ordered
    assert not codebook.question("q2").is_ordered


def test_the_nonvoters_codebook_is_read_whole(nonvoters):
    codebook = nonvoters.codebook
    assert len(codebook.questions) == 72
    assert codebook.question("Q19_3").options == {1: "ticked", -1: "not ticked"}
    assert codebook.question("Q19_3").missing == {}
    assert codebook.question("Q20").missing == {-1: "refused"}
    assert codebook.question("Q33").asked_if[0].codes == (3, 4, 5, -1)
    assert "CC BY 4.0" in codebook.source


REFUSED_PART = {
    "stem": "Which of these?",
    "part": "Dogs",
    "response_type": "yesno",
    "options": {"1": "ticked", "2": "left"},
    "missing": {"-1": "refused"},
}
# What is wrong, and what the message must name.
WRONG = [
    (("items", "q1", "missing"), {"3": "refused"}, ["'q1'", "3 means two things", "'Disagree'", "'refused'"]),
    (("items", "q3_1", "options"), {"1": "ticked"}, ["'q3_1'", "ticked and not ticked"]),
    (("items", "q3_2"), REFUSED_PART, ["'q3_2'", "-1 means two things: 'refused' here, 'not ticked' in 'q3_1'"]),
    (("items", "q1", "options"), {"1": "Agree", "one": "Disagree"}, ["'q1'", "'one'", "whole numbers"]),
    (("items", "q1", "options"), {"1": "Agree", "2": "agree "}, ["'q1'", "two codes have the label 'agree'"]),
    (("items", "q1", "options"), {"1": "Agree", "01": "Disagree"}, ["'q1'", "1 means two things"]),
    (("items", "q1", "response_type"), "likart", ["'q1'", "'likart'"]),
    (("items", "q2", "asked_if"), {"q9": [1]}, ["'q2'", "'q9'"]),
    (("items", "q2", "asked_if"), {"q1": [7]}, ["'q2'", "the code 7", "'q1'"]),
    (("items", "q1", "asked_if"), {"q2": [1]}, ["'q1'", "does not come before"]),
    (("items", "q1", "unused"), [9], ["'q1'", "9"]),
    (("items", "q1", "direction"), "down", ["'q1'", "'down'"]),
    (("items", "q1", "missings"), {}, ["'q1'", "'missings'", "Did you mean 'missing'?"]),
    (("items", "q1", "stem"), "", ["'q1'", "stem is missing"]),
    (("demographics", "sex"), {"label": "Sex"}, ["'sex'", "values"]),
    (("demographics", "age", "bands"), [40, 18], ["'age'", "rising"]),
    (("header_rows",), 0, ["header_rows", "0"]),
    (("not_asked",), 7, ["not_asked"]),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG)
def test_a_fault_is_named_by_item(book, path, value, named):
    found = "\n".join(problems_of(changed(book, path, value)))
    assert all(word in found for word in named), found


def test_a_code_written_twice_in_one_object_means_two_things(tmp_path, book):
    text = json.dumps(book).replace('"2": "Neither"', '"2": "Neither", "2": "Perhaps"')
    path = tmp_path / "codebook.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SurveyError, match=r"'q1': 2 means two things: it stands twice"):
        load_codebook(path)


def test_all_faults_come_at_once(tmp_path, book):
    wrong = changed(
        changed(book, ("items", "q1", "missing"), {"3": "x"}), ("items", "q3_1", "options"), {"1": "ticked"}
    )
    path = tmp_path / "codebook.json"
    path.write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(SurveyError) as caught:
        load_codebook(path)
    assert "'q1'" in caught.value.message
    assert "'q3_1'" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [[], {}, {"items": {}}, {"items": []}, "text", 7])
def test_what_is_no_codebook_is_said_to_be_none(content):
    assert problems_of(content)


def test_a_codebook_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "codebook.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(SurveyError, match="not valid JSON"):
        load_codebook(path)
    with pytest.raises(SurveyError, match="cannot be read"):
        load_codebook(tmp_path / "none.json")


def test_items_keep_ids_codes_labels_and_the_order_people_saw(nonvoters):
    items = {item.item_id: item for item in codebook_items(nonvoters.codebook)}
    assert len(items) == 72
    assert items["Q3_1"].options == ("Strongly agree", "Somewhat agree", "Somewhat disagree", "Strongly disagree")
    assert items["Q3_1"].codes == (1, 2, 3, 4)
    assert items["Q3_1"].stem.endswith("statements? Systemic racism is a problem in the United States.")
    assert items["Q5"].scale == "nominal"
    assert items["Q6"].scale == "ordered"
    assert items["Q31"].asked_if[0].codes == (1,)


def test_a_gate_keeps_only_codes_that_are_answers(nonvoters):
    items = {item.item_id: item for item in codebook_items(nonvoters.codebook)}
    assert items["Q33"].asked_if[0].codes == (3, 4, 5)


def test_a_box_becomes_a_yes_or_no_item_with_its_own_codes(nonvoters):
    item = next(item for item in codebook_items(nonvoters.codebook) if item.item_id == "Q19_1")
    assert (item.response_type, item.options, item.codes) == ("yesno", ("Yes", "No"), (1, -1))


@pytest.mark.parametrize(
    ("label", "expected"), [("not ticked", True), ("No", True), ("unticked", True), ("ticked", False)]
)
def test_an_empty_box_is_told_by_its_label(label, expected):
    assert says_not(label) is expected


def test_a_demographic_is_named_as_cards_name_it():
    names = [
        card_name(*pair) for pair in (("ppage", "Age in years"), ("educ", "x"), ("income_cat", "y"), ("race", "z"))
    ]
    assert names == ["age", "education", "income", "race"]


def test_a_codebook_is_an_instrument(test_data):
    path = test_data / "nonvoters" / "codebook.json"
    assert is_codebook(path)
    instrument = load_instrument(InstrumentRecipe(bank=str(path), items=["Q30", "Q31", "Q19_1"]))
    assert {item.item_id for item in instrument.items} == {"Q30", "Q31", "Q19_1"}
    assert len(load_bank(path)) == 72


def test_a_domain_file_is_no_codebook(tmp_path):
    path = tmp_path / "domain.json"
    path.write_text('{"domain": "x", "items": {"likert": []}}', encoding="utf-8")
    assert not is_codebook(path)
    assert not is_codebook(tmp_path / "none.json")


def test_a_descending_scale_counts_the_other_way(book):
    codebook, _ = parse_codebook(changed(book, ("items", "q1", "direction"), "descending"))
    assert codebook.question("q1").values == (-1.0, -2.0, -3.0)
    assert codebook.question("q1").codes == (1, 2, 3)
