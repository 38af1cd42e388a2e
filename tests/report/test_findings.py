"""Bias battery, ratings and training curves on the page, from the files that other stages write."""

import pytest
from report.made_up import write_adapters, write_battery, write_ratings
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.report import stage
from polypersona.report.curves import MAX_CURVES, build_curves


@pytest.fixture
def run(tmp_path):
    return toy_recipe(tmp_path), write_run(toy_recipe(tmp_path), toy_personas(40), toy_items())


def report(recipe, run):
    stage.run(recipe)
    return run.read_json("report.json"), run.read("report.html").decode()


def test_a_bias_is_a_finding_and_a_broken_control_a_warning_about_it(run):
    recipe, directory = run
    write_battery(directory, broken_control=True)
    numbers, page = report(recipe, directory)
    biased, broken = numbers["bias"]["findings"]
    assert biased == "The form of a question changes its answers: acquiescence 0.210 [0.170, 0.250]."
    assert broken.startswith("Controls that should change nothing do: letters exchanged 0.090")
    assert ">control that is not zero<" in page
    assert "<caption>Acquiescence, by question</caption>" in page


def test_sound_controls_are_said_to_be_sound(run):
    recipe, directory = run
    write_battery(directory)
    numbers, page = report(recipe, directory)
    assert numbers["bias"]["findings"][1].startswith("The controls, misspelt questions, change nothing")
    assert ">control that is not zero<" not in page


def test_ratings_stand_with_intervals_alpha_and_detection(run, tmp_path):
    recipe, directory = run
    write_ratings(directory, tmp_path)
    numbers, page = report(recipe, directory)
    ratings = numbers["ratings"]
    assert ratings["raters"] == {"anna": 60, "bert": 60}
    gain = ratings["scales"][1]["gain"]
    assert gain["low"] > 0
    assert "raters see that the answers belong to their cards" in page
    assert {row["kind"] for row in ratings["told"]} == {"model", "shuffled", "human"}
    assert ratings["alpha_guess"]["n"] == 60
    assert "Krippendorff" in page


def test_new_ratings_make_a_new_report(run, tmp_path):
    recipe, directory = run
    assert report(recipe, directory)[0]["ratings"] is None
    write_ratings(directory, tmp_path)
    assert report(recipe, directory)[0]["ratings"] is not None


def test_adapters_of_a_sweep_stand_side_by_side_with_what_validation_measured(run):
    recipe, directory = run
    directory.delete("adapter/training.json")
    write_adapters(directory, ["finance", "healthcare"])
    numbers, page = report(recipe, directory)
    curves = numbers["curves"]
    assert [one["name"] for one in curves["adapters"]] == ["finance", "healthcare"]
    assert [chart["title"] for chart in curves["charts"]] == [
        "Validation loss by adapter", "Training loss by adapter", "Validation: BLEU by adapter",
    ]  # fmt: skip
    assert curves["adapters"][0]["metrics"] == {"eval_bleu": pytest.approx(0.086)}
    assert "Adapters side by side" in page


def test_one_adapter_has_both_losses_in_one_chart(run):
    numbers, _ = report(*run)
    (chart,) = numbers["curves"]["charts"]
    assert [label for label, _ in chart["lines"]] == ["training loss", "validation loss"]


def test_charts_show_the_best_of_many_adapters_and_the_table_all():
    trainings = {f"a{place}": {"log": [{"step": 1, "eval_loss": 9.0 - place}]} for place in range(MAX_CURVES + 2)}
    curves = build_curves(trainings)
    assert [name for name, _ in curves["charts"][0]["lines"]] == ["a6", "a5", "a4", "a3", "a2"]
    assert len(curves["adapters"]) == MAX_CURVES + 2
    assert curves["num_left_out"] == 2
