"""A user's mistake ends with exit code 2, one sentence that names the place, a remedy, and no file touched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toy_models import make_toy_model

from polypersona.cli.main import main

PROGRAM = Path(sys.executable).with_name("polypersona")
RECIPE = {
    "name": "toy",
    "out": "runs",
    "panel": {"source": "sampled", "size": 20},
    "dataset": {"records": 40},
    "model": {"adapter": "none"},
    "generate": {"engine": "fake"},
    "evaluate": {"reference": "none"},
}
ITEM = {
    "id": "tea.likert.01",
    "stem": "I like tea.",
    "options": ["No", "Perhaps", "Yes"],
    "scale": "ordered",
    "reverse": False,
    "construct": "tea",
    "source": "own wording",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with a good recipe, a good panel and a good bank in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PP_UNSET", raising=False)
    write_recipe(tmp_path)
    write_bank(tmp_path)
    (tmp_path / "panel.csv").write_text("id,age,gender\np1,34,female\np2,51,male\n")
    return tmp_path


def write_recipe(place, **sections):
    content = {**RECIPE, **{key: {**RECIPE.get(key, {}), **value} for key, value in sections.items()}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def write_bank(place, **changes):
    item = {key: value for key, value in {**ITEM, **changes}.items() if value is not None}
    bank = {"domain": "tea", "title": "Tea", "version": 1, "items": {"likert": [item]}}
    (place / "tea.json").write_text(json.dumps(bank))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["polypersona", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refuse(place, monkeypatch, capsys, arguments, fragments):
    """Run the program; assert that it refuses with these words and leaves everything as it was."""
    before = files_of(place)
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2, err
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
    assert len(errors) == 1, err
    assert lines[errors[0]].endswith((".", "?")), err
    if not err.startswith("Usage: "):  # the parser's own message shows the usage instead of a hint
        assert errors[0] == len(lines) - 2, err
        assert lines[-1].endswith("."), err
    for fragment in fragments:
        assert fragment in err
    assert files_of(place) == before


def broken_bank(place):
    (place / "tea.json").write_text('{"domain": "tea",\n "items": }')


def bank_without_stem(place):
    write_bank(place, stem=None)


def bank_without_options(place):
    write_bank(place, options=None)


def empty_bank(place):
    (place / "bank").mkdir()


def codebook_with_signs(place):
    options = {"1": "-2", "2": "0", "3": "2"}
    item = {"stem": "How much?", "response_type": "likert", "options": options, "ordinal": True}
    book = {"title": "Tea", "source": "own data", "license": "CC0", "respondent_id": "id", "items": {"tea": item}}
    (place / "codebook.json").write_text(json.dumps(book))


def panel(name, content):
    def write(place):
        (place / name).write_bytes(content)

    return write


def folder_without_weights(place):
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text('{"model_type": "llama"}')


def folder_without_config(place):
    (place / "model").mkdir()


def toy_model(place):
    make_toy_model("llama", place / "model")


def file_in_the_place_of_out(place):
    (place / "runs").write_text("no folder")


def recipe_text(text):
    def write(place):
        (place / "recipe.yaml").write_text(text)

    return write


def recipe_with(**sections):
    def write(place):
        write_recipe(place, **sections)

    return write


def nothing(place):
    pass


RUN = ["run", "recipe.yaml"]
BANK = [*RUN, "--set", "instrument.bank=tea.json"]
PACKED = [*RUN, "--from", "generate", "--to", "generate", "--set", "generate.engine=packed"]

# name → (what the user did before, the command, what the message must name)
MISTAKES = {
    "a recipe that does not exist": (nothing, ["run", "nowhere.yaml"], ["nowhere.yaml", "jobs/demo.yaml"]),
    "a folder as recipe": (nothing, ["run", "."], ["'.'"]),
    "broken YAML": (recipe_text("name: toy\npanel: {size: 3\n"), RUN, ["recipe.yaml, line 3", "not valid YAML"]),
    "a recipe without name": (recipe_text("panel: {size: 3}\n"), RUN, ["recipe.yaml", "'name' is missing"]),
    "an unknown recipe key": (
        recipe_with(generate={"temprature": 1}),
        RUN,
        ["recipe.yaml", "'generate.temprature'", "Did you mean 'temperature'?"],
    ),
    "an unknown section": (recipe_text("name: toy\npanel: {size: 3}\ngenerat: {}\n"), RUN, ["'generate'"]),
    "an override that is no value": (nothing, [*RUN, "--set", "generate.draws=none"], ["generate.draws", "'none'"]),
    "an override without a value": (nothing, [*RUN, "--set", "generate.draws"], ["KEY=VALUE"]),
    "a variable that is not set": (recipe_with(panel={"source": "${PP_UNSET}/a.csv"}), RUN, ["PP_UNSET"]),
    "an unknown engine": (recipe_with(generate={"engine": "pakced"}), RUN, ["generate.engine", "'packed'"]),
    "a quantisation that vLLM does not have": (
        recipe_with(generate={"engine": "vllm"}, model={"quantization": "nf4"}),
        RUN,
        ["model.quantization: nf4", "vllm"],
    ),
    "an option of another engine": (
        recipe_with(generate={"context": "previous"}),
        RUN,
        ["generate.context", "'previous'", "fake", "choose generate.engine: packed"],
    ),
    "an endpoint without its address": (
        recipe_with(generate={"engine": "endpoint"}),
        RUN,
        ["generate.endpoint.url is missing"],
    ),
    "calibration of what is not scored": (
        recipe_with(generate={"engine": "packed", "closed": "text", "calibration": "permute"}),
        RUN,
        ["generate.calibration", "generate.closed: text"],
    ),
    "an empty stop string": (recipe_with(generate={"stop": [""]}), RUN, ["generate.stop.0"]),
    "stages in the wrong order": (nothing, [*RUN, "--from", "report", "--to", "dataset"], ["--from report", "dataset"]),
    "an unknown stage": (nothing, [*RUN, "--from", "train"], ["'train'", "finetune"]),
    "a bank that does not exist": (nothing, [*RUN, "--set", "instrument.bank=nowhere.json"], ["nowhere.json"]),
    "a bank file that is no JSON": (broken_bank, BANK, ["tea.json", "line 2"]),
    "an item without its stem": (bank_without_stem, BANK, ["tea.json", "tea.likert.01", "stem"]),
    "an item without options": (bank_without_options, BANK, ["tea.json", "tea.likert.01", "options"]),
    "a bank without files": (empty_bank, [*RUN, "--set", "instrument.bank=bank"], ["bank"]),
    "checking a file that is no JSON": (broken_bank, ["bank", "check", "tea.json"], ["tea.json", "line 2"]),
    "options that a text would confuse": (
        codebook_with_signs,
        [
            "generate",
            "recipe.yaml",
            "--set",
            "instrument.bank=codebook.json",
            "--set",
            "generate.closed=text",
            "--set",
            "generate.engine=packed",
        ],
        ["'tea'", "'2'", "told apart", "generate.closed: score"],
    ),
    "a domain that is none": (
        nothing,
        [*RUN, "--set", "instrument.domains=[helthcare]"],
        ["'helthcare'", "healthcare"],
    ),
    "an item that is none": (nothing, [*RUN, "--set", "instrument.items=[finance.likert.99]"], ["finance.likert.99"]),
    "a panel that does not exist": (nothing, [*RUN, "--set", "panel={source: nowhere.csv}"], ["nowhere.csv"]),
    "an empty panel file": (panel("a.csv", b""), [*RUN, "--set", "panel={source: a.csv}"], ["a.csv"]),
    "a panel of a header alone": (panel("a.csv", b"id,age\n"), [*RUN, "--set", "panel={source: a.csv}"], ["a.csv"]),
    "an empty list of personas": (panel("a.jsonl", b"\n\n"), [*RUN, "--set", "panel={source: a.jsonl}"], ["a.jsonl"]),
    "a panel that is no JSON": (panel("a.jsonl", b"{]\n"), [*RUN, "--set", "panel={source: a.jsonl}"], ["a.jsonl"]),
    "a panel that is no Parquet": (
        panel("a.parquet", b"PAR"),
        [*RUN, "--set", "panel={source: a.parquet}"],
        ["a.parquet"],
    ),
    "a column that is none": (
        nothing,
        [*RUN, "--set", "panel={source: panel.csv, mapping: {age: ages}}"],
        ["panel.csv", "'ages'", "age"],
    ),
    "more personas than there are": (
        nothing,
        [*RUN, "--set", "panel={source: panel.csv, size: 3}"],
        ["panel.csv", "3"],
    ),
    "a licence that is not accepted": (
        panel("hub.jsonl", b'{"persona": "A nurse who sings."}\n'),
        [*RUN, "--set", "panel={source: hub.jsonl}"],
        ["hub.jsonl", "CC-BY-NC-SA-4.0", "accept_license"],
    ),
    "a model that is neither folder nor id": (
        nothing,
        [*PACKED, "--set", "model.base=/nowhere/none"],
        ["/nowhere/none"],
    ),
    "a model folder without configuration": (
        folder_without_config,
        [*PACKED, "--set", "model.base=./model"],
        ["model", "config.json"],
    ),
    "a model folder without weights": (
        folder_without_weights,
        [*PACKED, "--set", "model.base=./model"],
        ["model", "safetensors"],
    ),
    "a misspelt model": (nothing, [*PACKED, "--set", "model.base=tinny"], ["'tinny'", "'tiny'"]),
    "a teacher that is none": (nothing, ["dataset", "recipe.yaml", "--set", "dataset.teacher=ruls"], ["ruls"]),
    "records that do not exist": (
        nothing,
        ["dataset", "recipe.yaml", "--set", "dataset.source=nowhere.json"],
        ["nowhere.json"],
    ),
    "an inventory that does not exist": (nothing, ["plan", "recipe.yaml", "--inventory", "a.json"], ["a.json"]),
    "an inventory that is no JSON": (
        panel("a.json", b"{"),
        ["plan", "recipe.yaml", "--inventory", "a.json"],
        ["a.json"],
    ),
    "a run that is none": (nothing, ["verify", "runs/toy"], ["runs/toy"]),
    "the status of a run that is none": (nothing, ["status", "runs/toy"], ["runs/toy"]),
    "tuning without a dataset": (
        toy_model,
        ["finetune", "recipe.yaml", "--set", "model={base: ./model, adapter: run}"],
        ["runs/toy/dataset/train.jsonl"],
    ),
    "an adapter that is not tuned yet": (
        toy_model,
        [*PACKED, "--set", "model={base: ./model, adapter: run}"],
        ["runs/toy/adapter", "finetune"],
    ),
    "an adapter that is none": (
        toy_model,
        [*PACKED, "--set", "model={base: ./model, adapter: /nowhere/none}"],
        ["/nowhere/none"],
    ),
    "a report without responses": (nothing, ["report", "recipe.yaml"], ["runs/toy"]),
    "scores without responses": (nothing, ["evaluate", "recipe.yaml"], ["runs/toy"]),
    "a test split that is not there": (nothing, ["generate", "recipe.yaml", "--set", "generate.on=test"], ["dataset"]),
    "a place that cannot be written": (
        file_in_the_place_of_out,
        ["dataset", "recipe.yaml"],
        ["runs/toy is no place for a run", "is a file"],
    ),
    "a place that cannot be written, before any Ray is started": (
        file_in_the_place_of_out,
        ["generate", "recipe.yaml"],
        ["runs/toy is no place for a run", "is a file"],
    ),
    "an address that is none": (
        nothing,
        ["dataset", "recipe.yaml", "--set", "out=nowhere://bucket"],
        ["nowhere://bucket"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_touches_nothing(mistake, place, monkeypatch, capsys):
    prepare, arguments, fragments = MISTAKES[mistake]
    prepare(place)
    refuse(place, monkeypatch, capsys, arguments, fragments)


def test_a_change_of_content_is_refused_and_the_dataset_kept(place, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "dataset", "recipe.yaml")[0] == 0
    refuse(
        place, monkeypatch, capsys, ["dataset", "recipe.yaml", "--set", "seed=8"], ["runs/toy/dataset", "seed: 7 → 8"]
    )
    code, out, _ = call(monkeypatch, capsys, "dataset", "recipe.yaml")
    assert (code, out[:23]) == (0, "dataset: nothing to do;")


def test_the_installed_program_says_the_same(place):
    write_recipe(place, generate={"temprature": 1})
    done = subprocess.run([PROGRAM, "run", "recipe.yaml"], cwd=place, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: recipe.yaml: 'generate.temprature' is no key of a recipe.")
    assert done.stderr.count("\n") == 2
    assert not (place / "runs").exists()
