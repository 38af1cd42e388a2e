"""Survey microdata as training data: cards, references, splits by respondent, weights, what is left out."""

import csv
import json
import random
from collections import Counter

import pytest
from toy_survey import write_toy

from polypersona.dataset import run
from polypersona.errors import DatasetError, RecipeChangedError, SurveyError
from polypersona.examples import SPLITS, load_examples
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import SurveyRecipe
from polypersona.respondents import load_respondents
from polypersona.storage import RunDirectory
from polypersona.training.sampling import draw_epoch

ITEMS = ["Q3_1", "Q6", "Q16"]
ETIQUETTE = {
    "title": "Flying etiquette",
    "source": "fivethirtyeight/data, flying-etiquette-survey, CC BY 4.0; attribute FiveThirtyEight and SurveyMonkey",
    "license": "CC-BY-4.0",
    "respondent_id": "RespondentID",
    "not_asked": "empty cell",
    "demographics": {
        "Gender": {"label": "Gender", "values": ["Female", "Male"]},
        "Age": {"label": "Age", "values": ["18-29", "30-44", "45-60", "> 60"]},
    },
    "items": {
        "recline": {
            "stem": "Is it rude to recline your seat on a plane?",
            "response_type": "likert",
            "column": "Is itrude to recline your seat on a plane?",
            "options": {"1": "No, not rude at all", "2": "Yes, somewhat rude", "3": "Yes, very rude"},
        },
        "baby": {
            "stem": "In general, is it rude to bring a baby on a plane?",
            "response_type": "likert",
            "column": "In general, is itrude to bring a baby on a plane?",
            "options": {"1": "No, not at all rude", "2": "Yes, somewhat rude", "3": "Yes, very rude"},
        },
    },
}


def survey_recipe(out, source, codebook, **survey):
    dataset = {"source": str(source), "splits": [0.6, 0.2, 0.2], "survey": {"codebook": str(codebook), **survey}}
    return build_recipe({"name": "s", "out": str(out), "dataset": dataset, "generate": {"on": "test"}})


def rows_of(recipe):
    directory = RunDirectory.at(recipe.location)
    return {split: load_examples(directory, split) for split in SPLITS}


@pytest.fixture(scope="module")
def nonvoters(test_data, tmp_path_factory):
    """Three items of the real survey, two of them tuned on: recipe, rows by split, the stage's figures."""
    folder = test_data / "nonvoters"
    recipe = survey_recipe(
        tmp_path_factory.mktemp("nonvoters"), folder / "nonvoters_data.csv", folder / "codebook.json",
        items=ITEMS[:2], withheld=ITEMS[2:], attributes=["age", "race"], bands={"age": [18, 30, 45, 60]},
    )  # fmt: skip
    figures = run(recipe)
    return recipe, rows_of(recipe), figures


def test_real_respondents_are_divided_and_withheld_items_are_for_the_held_out_only(nonvoters):
    _, rows, figures = nonvoters
    ids = {split: {row.metadata["persona_id"] for row in rows[split]} for split in SPLITS}
    assert not ids["train"] & ids["test"]
    assert not ids["train"] & ids["validation"]
    assert len(ids["train"] | ids["validation"] | ids["test"]) == figures["personas"] > 5800
    assert {row.metadata["item_id"] for row in rows["train"]} == set(ITEMS[:2])
    assert {row.metadata["item_id"] for row in rows["test"]} == set(ITEMS)
    card = rows["train"][0].messages[1]["content"]
    assert card.startswith("Persona:\nage: ")
    assert set(rows["train"][0].metadata["persona"]["attributes"]) == {"age", "race"}
    ages = {row.metadata["persona"]["attributes"]["age"] for row in rows["test"]}
    assert ages == {"18–29", "30–44", "45–59", "60 or more"}


def test_weighted_answers_of_real_respondents_have_the_published_marginals(nonvoters):
    """Q3_1 and Q6 by FiveThirtyEight's weights: 43.66/28.93/14.84/12.57 and 3.85/25.96/45.26/24.92 per cent."""
    _, rows, _ = nonvoters
    published = {"Q3_1": [43.66, 28.93, 14.84, 12.57], "Q6": [3.85, 25.96, 45.26, 24.92]}
    for item, expected in published.items():
        found = Counter()
        for row in (row for split in SPLITS for row in rows[split] if row.metadata["item_id"] == item):
            found[row.metadata["code"]] += row.metadata["sampling_weight"]
        total = sum(found.values())
        assert [100 * found[code] / total for code in (1, 2, 3, 4)] == pytest.approx(expected, abs=0.01)


def test_what_training_draws_from_real_respondents_has_the_weighted_marginals(nonvoters):
    _, rows, _ = nonvoters
    mine = [row for row in rows["train"] if row.metadata["item_id"] == "Q3_1"]
    weights = [row.metadata["sampling_weight"] for row in mine]
    drawn = Counter(mine[place].metadata["code"] for place in draw_epoch(weights, random.Random(1)))
    exact, plain = Counter(), Counter()
    for row, weight in zip(mine, weights, strict=True):
        exact[row.metadata["code"]] += weight
        plain[row.metadata["code"]] += 1
    share = {code: drawn[code] / len(mine) - exact[code] / sum(weights) for code in exact}
    assert max(map(abs, share.values())) < 0.01
    assert abs(plain[1] / len(mine) - exact[1] / sum(weights)) > 0.015  # the weights matter


def test_the_card_names_source_and_licence_and_calls_nothing_synthetic(nonvoters):
    recipe, _, figures = nonvoters
    card = RunDirectory.at(recipe.location).read("dataset/card.md").decode()
    assert "CC BY 4.0; attribute FiveThirtyEight and Ipsos" in card
    assert "synthetic" not in card
    assert figures["human"]["source"].startswith("fivethirtyeight/data")


def test_refused_and_unasked_cells_are_no_rows_and_no_id_survives(tmp_path):
    source, codebook = write_toy(tmp_path)
    recipe = survey_recipe(tmp_path, source, codebook)
    run(recipe)
    with source.open(encoding="utf-8") as stream:
        people = list(csv.DictReader(stream))
    rows = [row for rows in rows_of(recipe).values() for row in rows]
    assert len(rows) == sum(one["q1"] != "-1" for one in people) + sum(one["q2"] != "" for one in people)
    assert {row.metadata["label"] for row in rows} == {"Agree", "Neither", "Disagree", "Yes", "No"}
    directory = RunDirectory.at(recipe.location)
    written = b"".join(directory.read(name) for name in directory.names("dataset") if not name.endswith("/"))
    assert b"secret-" not in written


def test_the_same_survey_gives_the_same_bytes_and_another_codebook_is_refused(tmp_path):
    source, codebook = write_toy(tmp_path)
    run(survey_recipe(tmp_path / "one", source, codebook))
    run(survey_recipe(tmp_path / "two", source, codebook))
    one, two = (RunDirectory.at(tmp_path / name / "s") for name in ("one", "two"))
    assert all(one.read(f"dataset/{split}.jsonl") == two.read(f"dataset/{split}.jsonl") for split in SPLITS)
    assert run(survey_recipe(tmp_path / "one", source, codebook))["skipped"]
    codebook.write_text(codebook.read_text(encoding="utf-8").replace("I trust people.", "People lie."), "utf-8")
    with pytest.raises(RecipeChangedError, match="codebook_hash"):
        run(survey_recipe(tmp_path / "one", source, codebook))


def test_a_second_survey_needs_a_codebook_only(test_data, tmp_path):
    """Flying etiquette: SurveyMonkey for FiveThirtyEight, CC BY 4.0."""
    codebook = tmp_path / "etiquette.json"
    codebook.write_text(json.dumps(ETIQUETTE), encoding="utf-8")
    recipe = survey_recipe(tmp_path, test_data / "polls" / "flying-etiquette.csv", codebook, withheld=["baby"])
    figures = run(recipe)
    rows = rows_of(recipe)
    assert figures["personas"] > 800
    assert {row.metadata["item_id"] for row in rows["train"]} == {"recline"}
    assert rows["train"][0].messages[2]["content"] in {"No, not rude at all.", "Yes, somewhat rude.", "Yes, very rude."}
    assert "SurveyMonkey" in RunDirectory.at(recipe.location).read("dataset/card.md").decode()


@pytest.mark.parametrize(
    ("survey", "said"),
    [
        ({"items": ["q9"]}, "'q9' is not in the codebook"),
        ({"items": ["q1"], "withheld": ["q1"]}, "both tuned on and withheld"),
        ({"attributes": ["ages"]}, "no demographic 'ages'"),
        ({"bands": {"sex": [1]}}, "'sex' is no number"),
    ],
)
def test_a_recipe_that_names_what_the_codebook_lacks_is_refused(tmp_path, survey, said):
    source, codebook = write_toy(tmp_path)
    with pytest.raises(SurveyError, match=said):
        load_respondents(str(source), SurveyRecipe(codebook=str(codebook), **survey))


def test_survey_options_without_a_survey_and_a_teacher_beside_one_are_refused(tmp_path):
    source, codebook = write_toy(tmp_path)
    panel = {"source": "sampled", "size": 20}
    idle = build_recipe({"name": "s", "out": str(tmp_path), "panel": panel, "dataset": {"survey": {"items": ["q1"]}}})
    with pytest.raises(DatasetError, match=r"without dataset\.survey\.codebook"):
        run(idle)
    taught = {"source": str(source), "teacher": "fake", "survey": {"codebook": str(codebook)}}
    with pytest.raises(DatasetError, match=r"dataset\.teacher has no meaning"):
        run(build_recipe({"name": "s", "out": str(tmp_path), "dataset": taught, "generate": {"on": "test"}}))
