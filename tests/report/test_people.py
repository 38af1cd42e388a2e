"""A run beside people, from `compare` to the page: words, alarms, and groups that are too small to be shown."""

import io
import json
import re

import pyarrow.parquet as pq
import pytest
from report.people_runs import compared_run

from polypersona.parquet import read_parquet
from polypersona.recipe import build_recipe
from polypersona.report import stage
from polypersona.report.human import demographic_names, mitigation_facts, short_labels
from polypersona.storage import load_run


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    run = compared_run(tmp_path_factory.mktemp("people"))
    recipe = build_recipe(load_run(run)["recipe"])
    stage.run(recipe, directory=run)
    return recipe, run, run.read("report.html").decode(), run.read_json("report.json")


def browsed(page):
    return json.loads(re.search(r'id="people-data">(.*?)</script>', page, re.DOTALL).group(1))


def test_a_collapse_of_variance_is_a_warning_and_is_marked(compared):
    _, _, page, numbers = compared
    assert numbers["human"]["collapsed"] == ["q1"]
    assert any(text.startswith("Variance collapse on 1 of") for text in numbers["warnings"])
    assert "variance collapse" in page
    assert any(text.startswith("How far the run is from people") for text in numbers["can_conclude"])


def test_a_group_of_three_people_is_nowhere_on_the_page(compared):
    _, _, page, numbers = compared
    labels = [row["group"] for group in numbers["human"]["groups"] for row in group["rows"]]
    assert labels == ["city", "village"]
    assert ["Area", "island"] not in browsed(page)["groups"]
    assert numbers["human"]["hidden_cells"] == 3
    assert "3 combinations of question and subgroup" in re.sub(r"\s+", " ", page)


def test_the_page_says_whose_the_human_data_are(compared):
    assert "Toy survey of people" in compared[2]
    assert "made up for tests, CC0" in compared[2]
    assert 'data-source="synthetic answers beside human data: made up for tests, CC0' in compared[2]


def test_the_browser_has_the_shares_of_people_and_run(compared):
    data = browsed(compared[2])
    q3 = [item[0] for item in data["items"]].index("q3")
    cell = next(cell for cell in data["cells"] if cell[:2] == [q3, data["groups"].index(["all", "all"])])
    assert cell[2:4] == [123, 123]
    for side in (0, 3):
        assert sum(option[side] for option in cell[5]) == pytest.approx(100, abs=0.01)


def test_a_comparison_of_other_responses_is_named(compared):
    recipe, run, _, _ = compared
    stored = run.read_json("scores/human.json")
    run.write_json("scores/human.json", {**stored, "fingerprint": "another"})
    stage.run(recipe, directory=run)
    assert any("rests on other responses" in text for text in run.read_json("report.json")["warnings"])
    run.write_json("scores/human.json", stored)


def test_a_comparison_of_fewer_responses_than_the_run_has_now_is_named(compared):
    recipe, run, _, numbers = compared
    assert numbers["human"]["is_stale"] is False
    stored = run.read_json("scores/human.json")
    run.write_json("scores/human.json", {**stored, "num_rows": stored["num_rows"] - 3})
    stage.run(recipe, directory=run)
    assert any("rests on other responses" in text for text in run.read_json("report.json")["warnings"])
    run.write_json("scores/human.json", stored)


def test_a_comparison_that_does_not_say_how_many_people_are_in_a_group_draws_none_and_says_so(compared):
    recipe, run, _, _ = compared
    stored = run.read("scores/human_regression.parquet")
    table = read_parquet(io.BytesIO(stored)).drop_columns(["group_human_n"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run.write("scores/human_regression.parquet", sink.getvalue())
    stage.run(recipe, directory=run)
    assert run.read_json("report.json")["human"]["coefficients"] is None
    assert "run compare again" in run.read("report.html").decode()
    run.write("scores/human_regression.parquet", stored)


def test_demographics_have_the_codebooks_labels_unless_they_are_long_or_the_same():
    long = "What is the highest level of school you have completed or degree you have received?"
    assert demographic_names({"labels": {"ppage": "Age in years", "educ_cat": long, "race": ""}}) == {
        "ppage": "Age in years",
        "educ_cat": "Educ cat",
        "race": "Race",
    }
    assert demographic_names({"labels": {"age_1": "Age", "age_2": "Age"}}) == {}
    assert demographic_names({}) == {}


def test_a_type_with_several_temperatures_has_the_least_and_the_greatest():
    found = mitigation_facts({"raked_by": ["ppage"], "temperatures": {"likert": [2.0, 1.5, 6.0]}}, {"ppage": "Age"})
    assert (found["raked_by"], found["temperatures"]) == (["Age"], {"likert": [1.5, 6.0]})
    assert mitigation_facts(None, {}) is None


def test_the_median_question_stands_beside_the_mean_of_variance_ratios(compared):
    text = next(one["text"] for one in compared[3]["human"]["findings"] if one["head"] == "Variance")
    assert text.startswith(
        "On the median question the synthetic answers have 1.00 of people's variance, on average 0.77"
    )


def test_questions_of_a_battery_are_told_apart_by_how_they_end():
    same = "How much do you agree or disagree with this? "
    labels = short_labels({"a": f"{same}Voting matters", "b": f"{same}Voting is hard", "c": "Do you vote?", "d": "d"})
    assert labels == {"a": "a: …matters", "b": "b: …is hard", "c": "c: Do you vote?", "d": "d"}
