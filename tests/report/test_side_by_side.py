"""Two runs in one report."""

import json
import re

import pytest
from click.testing import CliRunner
from toy_runs import toy_items, toy_personas, toy_recipe, toy_scores, write_run

from polypersona.cli.main import cli
from polypersona.errors import StorageError
from polypersona.report import stage
from polypersona.report.beside import run_names
from polypersona.storage import RunDirectory

PAIRED = {
    "metric": "bleu", "label": "BLEU", "group": "all", "n": 200, "personas": 20, "score": 0.2, "other": 0.15,
    "difference": 0.05, "low": 0.02, "high": 0.08, "effect": 0.4, "p": 0.01, "higher_is_better": True,
    "signature": "bleu",
}  # fmt: skip


def against(name, fingerprint="f00d"):
    facts = {"name": name, "fingerprint": fingerprint}
    return {"run": {"name": "toy", "fingerprint": "f00d"}, "against": facts, "caption": "Synthetic responses.",
            "num_cells": 200, "num_personas": 20, "overall": [PAIRED]}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(toy_recipe(folder), toy_personas(20), toy_items())
    blind = toy_recipe(folder, "blind", generate={"on": "test", "temperature": 0.2})
    second = write_run(blind, toy_personas(15), toy_items(), scores=toy_scores(toy_items(), ignores_cards=True))
    first.write_json("scores/against-blind.json", against("blind"))
    first.write_json("scores/against-gone.json", against("gone"))
    result = CliRunner().invoke(cli, ["report", first.path(), "--with", second.path()])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == first.path("report-with-blind.html")
    return first, second, first.read("report-with-blind.html").decode(), first.read_json("report-with-blind.json")


def test_two_runs_are_compared_in_one_report(runs):
    _, _, page, numbers = runs
    beside = numbers["beside"]
    assert beside["names"] == ["toy", "blind"]
    assert {row["key"]: row["values"] for row in beside["differences"]} == {"generate.temperature": [0.8, 0.2]}
    assert [row["name"] for row in beside["table_ii"]] == ["toy", "blind"]
    assert all(len(row["runs"]) == 2 for key in ("table_iii", "domains", "types") for row in beside[key])
    for figure in ("Figure 1.", "Figure 2.", "Figure 4.", "Figure 5."):
        assert figure in page[page.index('id="runs"') : page.index('id="scores"')]


def test_a_run_that_ignores_its_cards_is_told_from_one_whose_bleu_is_the_same(runs):
    toy, blind = runs[3]["beside"]["runs"]
    assert (toy["ignores_cards"], blind["ignores_cards"]) == (False, True)
    assert [row["score"] for row in runs[3]["beside"]["bleu"]] == [pytest.approx(0.171)] * 2


def test_paired_differences_are_those_of_the_runs_beside_it(runs):
    (pair,) = runs[3]["beside"]["paired"]
    assert pair["name"] == "blind"
    assert pair["rows"][0]["verdict"] == "clear"
    assert "on the 200 cells of 20 respondents" in runs[2]


def test_the_runs_own_report_is_not_touched(runs):
    first = runs[0]
    assert not first.exists("report.html")
    assert "report" not in first.read_json("run.json")["stages"]
    result = CliRunner().invoke(cli, ["report", first.path()])
    assert result.output.strip() == first.path("report.html")
    assert first.read_json("report.json")["beside"] is None
    assert first.read("report-with-blind.html").decode() == runs[2]


def test_ids_are_unique_with_several_runs(runs):
    ids = re.findall(r'\bid="([^"]*)"', runs[2])
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("others", "words"), [(["nothing"], "There is no run"), (["toy"], "named twice")])
def test_a_run_that_cannot_stand_beside_it_is_refused(runs, others, words):
    first = runs[0]
    places = [str(first.local_path().parent / name) for name in others]
    result = CliRunner().invoke(cli, ["report", first.path(), "--with", *places])
    assert isinstance(result.exception, SystemExit | StorageError)
    assert words in f"{result.output}{result.exception}"


def test_runs_of_one_name_are_told_apart():
    assert run_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_a_recipes_file_still_names_its_run(runs, tmp_path):
    recipe = runs[0].read_json("run.json")["recipe"]
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    found, directory = stage.find_run(str(path), ["generate.temperature=0.5"])
    assert directory == runs[0]
    assert found.generate.temperature == 0.5


def test_models_and_subgroups_stand_metric_by_metric_and_runs_without_scores_have_no_table_of_them(tmp_path):
    scores = toy_scores(toy_items())
    models = ["org/a_model-1B + finance", "org/b"]
    scores["by_model"] = [{**row, "group": model} for model in models for row in scores["overall"][:2]]
    scores["by_subgroup"] = [{**row, "group": f"gender={one}"} for one in ("f", "m") for row in scores["overall"][:2]]
    first = write_run(toy_recipe(tmp_path), toy_personas(12), toy_items(), scores=scores)
    others = [toy_recipe(tmp_path, name) for name in ("second", "third")]
    for other in others:
        write_run(other, toy_personas(12), toy_items()).delete("scores/scores.json")
    stage.run(toy_recipe(tmp_path), [others[0].location])
    page, numbers = first.read("report-with-second.html").decode(), first.read_json("report-with-second.json")
    metrics = [row["metric"] for row in scores["overall"][:2]]
    expected = [(metric, model) for metric in metrics for model in models]
    assert [(row["metric"], row["group"]) for row in numbers["by_model"]] == expected
    assert "<td>org/a_model-1B + finance</td>" in page
    assert page.index("<td>Gender: f</td>") < page.index("<td>Gender: m</td>")
    assert "Table II: performance on survey response generation, by run" in page
    assert [row["name"] for row in numbers["beside"]["table_ii"]] == ["toy", "second"]
    stage.run(others[0], [others[1].location])
    second = RunDirectory.at(others[0].location)
    assert "None of these runs has scores" in second.read("report-with-third.html").decode()
    assert second.read_json("report-with-third.json")["beside"]["table_ii"] == []
