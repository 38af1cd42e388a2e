"""The finetune stage on a real local Ray: trained once, loads anywhere, refuses other content."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_models import make_toy_model

from polypersona.chatml import RENDERER_VERSION
from polypersona.engines.base import Answer
from polypersona.errors import (
    DatasetError,
    InfeasiblePlanError,
    ModelError,
    RecipeChangedError,
    RecipeError,
    StorageError,
)
from polypersona.events import EventLog, read_events
from polypersona.examples import build_example, render_examples
from polypersona.fingerprint import diff
from polypersona.models.loading import load_model
from polypersona.recipe import Recipe, build_recipe
from polypersona.records import Item, Persona
from polypersona.scheduling.probe import probe_host
from polypersona.storage import RunDirectory, load_run

NUM_TRAIN, NUM_VALIDATION = 32, 6


def write_dataset(run: RunDirectory) -> None:
    item = Item("healthcare.likert.01", "healthcare", "How satisfied are you?", "likert", ("Disagree", "Satisfied"))
    rows = []
    for number in range(NUM_TRAIN + NUM_VALIDATION):
        persona = Persona(f"p{number}", {"age": 20 + number, "gender": "female", "area": "city"})
        label = item.options[number % 2]
        answer = Answer("", f"{label}. I am {20 + number}." * (1 + number % 3), "complete", label=label)
        rows.append(build_example(persona, item, answer, "labels"))
    run.write("dataset/train.jsonl", render_examples(rows[:NUM_TRAIN]))
    run.write("dataset/validation.jsonl", render_examples(rows[NUM_TRAIN:]))


def make_recipe(out: Path, base: Path | str, **finetune: Any) -> Recipe:
    settings = {"epochs": 2, "learning_rate": 5e-3, "rank": 4, "alpha": 8, "batch_size": 4, "accumulation": 2}
    return build_recipe(
        {
            "name": "toy",
            "out": str(out),
            "panel": {"size": 10},
            "model": {"base": str(base), "dtype": "fp32", "quantization": "none"},
            "finetune": {**settings, "max_length": 256, "workers": 1, **finetune},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Recipe, dict[str, Any]]:
    from polypersona import finetune

    out = tmp_path_factory.mktemp("runs")
    recipe = make_recipe(out, make_toy_model("llama", out / "base"))
    write_dataset(RunDirectory.at(recipe.location))
    return recipe, finetune.run(recipe)


@pytest.mark.ray
def test_a_training_writes_an_adapter_that_plain_peft_loads(trained: tuple[Recipe, dict[str, Any]]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe, summary = trained
    folder = Path(recipe.location) / "adapter"
    base = AutoModelForCausalLM.from_pretrained(recipe.model.base)
    loaded = PeftModel.from_pretrained(base, folder)
    assert summary["steps"] == 8
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == recipe.model.base
    assert load_model(recipe.model.base, dtype="fp32", adapter=str(folder)).config.model_type == "llama"
    assert any(parameter.abs().max() > 0 for name, parameter in loaded.named_parameters() if "lora_B" in name)


@pytest.mark.ray
def test_training_json_records_what_was_done(trained: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, _ = trained
    folder = Path(recipe.location) / "adapter"
    training = json.loads((folder / "training.json").read_text())
    assert training["synthetic"] is True
    assert (training["num_examples"], training["num_validation"], training["num_shortened"]) == (32, 6, 0)
    assert training["rendering"] == {"show_options": "labels", "renderer_version": RENDERER_VERSION}
    assert [entry["step"] for entry in training["log"]] == list(range(1, 9))
    assert [entry["epoch"] for entry in training["log"] if "eval_loss" in entry] == [1.0, 2.0]
    assert training["loss"] < training["log"][0]["loss"]
    assert "synthetic" in (folder / "README.md").read_text()
    assert "| prompts cut at the head | 0, to 256 tokens a row |" in (folder / "README.md").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    [attempt] = training["attempts"]
    [machine] = attempt["machines"]
    assert (attempt["step"], attempt["workers"], attempt["seconds"]) == (0, 1, training["seconds"])
    assert (machine["processor"], machine["nodes"], machine["workers"]) == (probe_host().processor, 1, 1)
    assert f"| hardware | 1 node ({probe_host().processor}, " in (folder / "README.md").read_text()
    assert not (Path(recipe.location) / "train").exists()
    assert load_run(RunDirectory.at(recipe.location))["stages"]["finetune"]["steps"] == 8


@pytest.mark.ray
def test_a_finished_run_is_not_trained_again(trained: tuple[Recipe, dict[str, Any]]) -> None:
    from polypersona import finetune

    recipe, summary = trained
    weights = Path(recipe.location) / "adapter" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    again = finetune.run(recipe)
    assert again["skipped"] is True
    assert again["adapter_hash"] == summary["adapter_hash"]
    assert weights.stat().st_mtime_ns == before


@pytest.mark.ray
def test_a_driver_killed_after_the_adapter_is_made_up_for(trained: tuple[Recipe, dict[str, Any]]) -> None:
    from polypersona import finetune

    recipe, summary = trained
    run = RunDirectory.at(recipe.location)
    stored = load_run(run)
    run.write_json("run.json", {**stored, "stages": {}})
    assert finetune.run(recipe)["skipped"] is True
    assert load_run(run)["stages"]["finetune"] == summary


@pytest.mark.ray
def test_a_change_of_content_is_refused_and_a_change_of_speed_is_not(trained: tuple[Recipe, dict[str, Any]]) -> None:
    from polypersona import finetune

    recipe, _ = trained
    out, base = Path(recipe.out), recipe.model.base
    with pytest.raises(RecipeChangedError, match=r"finetune\.learning_rate: 0\.005 → 0\.001"):
        finetune.run(make_recipe(out, base, learning_rate=1e-3))
    assert finetune.run(make_recipe(out, base, workers=2, max_failures=0))["skipped"] is True


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_end_with_the_adapter_of_one(trained: tuple[Recipe, dict[str, Any]], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from polypersona import finetune

    recipe, _ = trained
    # No dropout: its draws are each worker's own.
    alone = make_recipe(tmp_path / "one", recipe.model.base, dropout=0.0, epochs=1)
    paired = make_recipe(tmp_path / "two", recipe.model.base, dropout=0.0, epochs=1, workers=2)
    adapters = []
    for one in (alone, paired):
        write_dataset(RunDirectory.at(one.location))
        assert finetune.run(one)["world_size"] == one.finetune.workers
        training = RunDirectory.at(one.location).read_json("adapter/training.json")
        [machine] = training["attempts"][-1]["machines"]
        assert (machine["nodes"], machine["workers"]) == (1, one.finetune.workers)
        adapters.append(load_file(Path(one.location) / "adapter" / "adapter_model.safetensors"))
    assert max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0]) <= 1e-5


@pytest.mark.ray
def test_workers_that_do_not_divide_the_global_batch_are_refused(
    trained: tuple[Recipe, dict[str, Any]], tmp_path: Path
) -> None:
    from polypersona import finetune

    recipe = make_recipe(tmp_path, trained[0].model.base, workers=3)
    write_dataset(RunDirectory.at(recipe.location))
    with pytest.raises(InfeasiblePlanError, match="3 workers do not divide the global batch of 8"):
        finetune.run(recipe)


@pytest.mark.ray
def test_a_best_metric_that_no_validation_row_can_be_measured_for_is_refused_before_any_worker(
    trained: tuple[Recipe, dict[str, Any]], tmp_path: Path
) -> None:
    from polypersona import finetune

    unscored = make_recipe(tmp_path, trained[0].model.base, best_metric="bleu", validation_rows=0)
    run = RunDirectory.at(unscored.location)
    write_dataset(run)
    with pytest.raises(RecipeError, match=r"best_metric is 'bleu', but finetune\.validation_rows is 0"):
        finetune.run(unscored)
    run.write("dataset/validation.jsonl", b"")
    with pytest.raises(DatasetError, match="best_metric is 'loss', but no validation row is for an adapter of all"):
        finetune.run(make_recipe(tmp_path, trained[0].model.base, best_metric="loss", patience=1))
    assert not list(read_events(run))
    assert not (Path(run.location) / "train").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_training_ends_where_its_pace_cannot_be_remembered_and_an_event_says_why(
    trained: tuple[Recipe, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polypersona import finetune

    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = make_recipe(tmp_path, trained[0].model.base, epochs=5)
    write_dataset(RunDirectory.at(recipe.location))
    assert finetune.run(recipe)["steps"] == 20
    [told] = [one for one in read_events(RunDirectory.at(recipe.location)) if one["event"] == "pace_not_remembered"]
    assert "cannot be written" in told["error"]


@pytest.mark.ray
def test_damaged_records_of_earlier_trainings_are_kept_aside_and_stop_no_training(
    trained: tuple[Recipe, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polypersona import finetune

    folder = tmp_path / "cache" / "polypersona"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [folder / name for name in ("micro_batches.json", "training_paces.json")]
    for file in files:
        file.write_text("{")
    recipe = make_recipe(tmp_path, trained[0].model.base, epochs=5)
    run = RunDirectory.at(recipe.location)
    write_dataset(run)
    summary = finetune.run(recipe)
    assert summary["steps"] == 20
    kept = [f"{file}.damaged" for file in files]
    assert [one["kept_as"] for one in read_events(run) if one["event"] == "records_set_aside"] == kept
    assert [Path(path).read_text() for path in kept] == ["{", "{"]
    assert [kept[place] in warning for place, warning in enumerate(summary["warnings"])] == [True, True]
    [told] = [one for one in read_events(run) if one["event"] == "pace_remembered"]
    assert told["file"] == str(files[1])


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_micro_batch_that_cannot_be_remembered_is_an_event(
    is_damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polypersona import finetune

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    if is_damaged:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        RunDirectory.at(tmp_path / "polypersona").write("micro_batches.json", b"{")
    planned: Any = SimpleNamespace(memory_parts={"hardware": "T4"}, member=SimpleNamespace(name="run"))
    run = RunDirectory.at(tmp_path / "run")
    finetune._remember(planned, 4, "CUDA out of memory", EventLog(run, "finetune"))
    [told] = read_events(run)
    assert (told["event"], told["micro_batch"]) == ("micro_batch_not_remembered", 4)
    assert ("is damaged" if is_damaged else "home directory") in told["error"]


def test_without_a_dataset_or_a_model_nothing_starts(tmp_path: Path) -> None:
    from polypersona import finetune

    base = make_toy_model("llama", tmp_path / "base")
    with pytest.raises(StorageError, match=r"dataset/train\.jsonl"):
        finetune.run(make_recipe(tmp_path, base))
    recipe = make_recipe(tmp_path, tmp_path)
    write_dataset(RunDirectory.at(recipe.location))
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        finetune.run(recipe)
    assert not (tmp_path / "toy" / "adapter").exists()


def test_a_broken_validation_split_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    from polypersona.training.folder import load_validation

    run = RunDirectory.at(tmp_path)
    run.write("dataset/validation.jsonl", b"")
    assert load_validation(run) == []
    run.write("dataset/validation.jsonl", b"{\n")
    with pytest.raises(DatasetError, match=r"validation\.jsonl, line 1"):
        load_validation(run)


def test_an_adapter_follows_from_the_norm_that_gradients_are_scaled_down_to(tmp_path: Path) -> None:
    from polypersona.training.folder import training_content

    recipes = [make_recipe(tmp_path, "tiny"), make_recipe(tmp_path, "tiny", max_grad_norm=1)]
    run = RunDirectory.at(recipes[0].location)
    write_dataset(run)
    contents = [training_content(recipe, run) for recipe in recipes]
    assert diff(*contents) == ["finetune.max_grad_norm: 0.3 → 1.0"]


def test_a_recipe_that_brings_its_own_adapter_is_not_trained(tmp_path: Path) -> None:
    from polypersona import finetune

    recipe = make_recipe(tmp_path, "tiny")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": "none"})})
    assert finetune.run(recipe)["skipped"] is True
