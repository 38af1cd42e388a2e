"""Subgroups and alignment: the same words, bands and codes on both sides, or a sentence that says what differs."""

import csv
from dataclasses import replace

import pytest

from polypersona.errors import SurveyError
from polypersona.records import Item, Persona
from polypersona.survey.alignment import align
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.microdata import load_survey
from polypersona.survey.profiles import build_groupings, build_profiles, groups_of


@pytest.fixture
def survey(tmp_path, book):
    path = tmp_path / "data.csv"
    rows = [
        ["a", 1, 20, "f", 1, "", 1, -1],
        ["b", 1, 45, "m", 3, 1, -1, 1],
        ["c", 1, 60, "m", 2, "", 1, -1],
        ["d", 1, 33, "f", 3, 2, 1, 1],
    ]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], *rows])
    return load_survey(str(path), parse_codebook(book)[0])


def test_numbers_fall_into_the_codebooks_bands(survey):
    (grouping,) = build_groupings(survey, ["age"])
    assert grouping.labels == ("18–39", "40 or more")
    assert [grouping.place(value) for value in (20, "45", 40, 17, None, "old")] == [0, 1, 1, -1, -1, -1]


def test_numbers_without_bands_are_cut_at_the_weighted_quartiles(nonvoters):
    (grouping,) = build_groupings(nonvoters, ["age"])
    assert grouping.labels == ("22–33", "34–50", "51–63", "64 or more")


def test_a_demographic_may_be_named_as_the_card_names_it(nonvoters):
    assert [one.name for one in build_groupings(nonvoters, ["education", "income_cat"])] == ["educ", "income_cat"]


def test_an_unknown_demographic_is_named_with_the_nearest(survey):
    with pytest.raises(SurveyError, match=r"'sexx'.*Did you mean 'sex'"):
        build_groupings(survey, ["sexx"])


def labels_of(profiles, *names):
    (grouping,) = profiles.groupings
    return [grouping.labels[profiles.members[profiles.of_persona[name], 0]] for name in names]


def test_a_twin_has_its_respondents_groups_whatever_its_card_says(survey):
    personas = [Persona("a", {"sex": "m"}), Persona("b", {"sex": "M", "age": 45}), Persona("z", {"sex": "M"})]
    profiles = build_profiles(survey, build_groupings(survey, ["sex"]), personas)
    assert labels_of(profiles, "a", "b", "z") == ["f", "m", "m"]
    assert profiles.twins == {"a": 0, "b": 1}
    assert profiles.notes == ("2 of 3 personas are taken as twins of respondents by their id",)


def test_ids_that_two_files_number_alike_make_no_twins(survey):
    # Their ages are others than the respondents'; the sex agrees by chance.
    personas = [Persona("a", {"sex": "f", "age": 70}), Persona("b", {"sex": "f"}), Persona("c", {"sex": "m"})]
    profiles = build_profiles(survey, build_groupings(survey, ["sex"]), personas)
    assert labels_of(profiles, "a", "b", "c") == ["f", "f", "m"]
    assert profiles.twins == {}
    assert profiles.notes == (
        "3 of 3 personas have the id of a respondent, but 2 of their cards contradict the respondent: none is a twin",
    )


def test_personas_without_a_card_are_twins_by_their_id(survey):
    personas = [Persona(name) for name in "abcd"]
    profiles = build_profiles(survey, build_groupings(survey, ["sex"]), personas)
    assert labels_of(profiles, *"abcd") == ["f", "m", "m", "f"]


def test_a_cell_that_means_not_asked_is_in_no_band(tmp_path, book):
    book["not_asked"] = ["", "99", "-1"]
    del book["demographics"]["age"]["bands"]
    for column in ("q1", "q2", "q3_1", "q3_2"):
        book["items"][column]["unused"] = list(map(int, book["items"][column]["options"]))
    path = tmp_path / "data.csv"
    ages = [20, 30, 40, 50, 99, -1, 99, ""]
    rows = [[f"r{row}", 1, age, "fm"[row % 2], *[""] * 4] for row, age in enumerate(ages)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], *rows])
    survey = load_survey(str(path), parse_codebook(book)[0])
    (grouping,) = build_groupings(survey, ["age"])
    assert grouping.starts == (20, 30, 40)
    assert groups_of(survey, grouping).tolist() == [0, 1, 2, 2, -1, -1, -1, -1]
    profiles = build_profiles(survey, [grouping], [Persona("z", {"age": 20})])
    assert [profiles.members[place, 0] for place in profiles.of_respondent] == [0, 1, 2, 2, -1, -1, -1, -1]


def test_personas_of_no_group_are_counted(survey):
    profiles = build_profiles(
        survey, build_groupings(survey, ["sex"]), [Persona("y", {"sex": "m"}), Persona("z", {"sex": "unknown"})]
    )
    assert profiles.notes == ("1 of 2 personas are in no group of sex",)


def test_a_demographic_that_no_persona_has_is_refused(survey):
    with pytest.raises(SurveyError, match="No persona of the run is in a group of 'sex'"):
        build_profiles(survey, build_groupings(survey, ["sex"]), [Persona("z", {"job": "nurse"})])


def test_items_meet_by_id_and_keep_the_runs_order_of_options(survey):
    items = list(codebook_items(survey.codebook))
    items[0] = replace(items[0], options=tuple(reversed(items[0].options)), codes=tuple(reversed(items[0].codes)))
    found = align(survey.codebook, items, survey.answers)
    assert [one.question.item_id for one in found.items] == ["q1", "q2", "q3_1", "q3_2"]
    assert found.items[0].order == (2, 1, 0)


def test_other_codes_or_labels_are_named_item_by_item(survey):
    items = [
        Item("q1", "survey", "?", "agreement", ("Agree", "Disagree"), (1, 2)),
        Item("q2", "survey", "?", "yesno", ("No", "Yes"), (1, 2)),
    ]
    with pytest.raises(SurveyError) as caught:
        align(survey.codebook, items, survey.answers)
    assert "'q1': the run's item has the codes [1, 2], the codebook [1, 2, 3]" in caught.value.message
    assert "'q2': the code 1 is 'No' in the run and 'Yes' in the codebook" in caught.value.message


def test_nothing_in_common_is_refused(survey):
    with pytest.raises(SurveyError, match="share no closed item"):
        align(survey.codebook, [Item("x", "d", "?", "likert", ("a", "b"))], survey.answers)


def test_what_only_one_side_has_is_listed(survey):
    items = [*codebook_items(survey.codebook)[:1], Item("x", "d", "?", "open")]
    found = align(survey.codebook, items, survey.answers)
    assert (found.only_human, found.only_run) == (("q2", "q3_1", "q3_2"), ("x",))
