"""pytest tests/cli/test_plan_command.py"""

import json

import pytest
from click.testing import CliRunner

from polypersona.cli.plan import make_plan
from polypersona.cli.stages import plan_command
from polypersona.recipe import build_recipe, load_recipe
from polypersona.scheduling.inventory import load_inventory
from polypersona.scheduling.machines import GIB
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.training_pace import FILE, TrainingPace, pace_parts, remember_pace
from polypersona.scheduling.training_plan import plan_training

RECIPE = """name: planned
out: OUT
panel: {source: sampled, size: 40}
instrument: {items: [healthcare.likert.01, healthcare.open.01]}
model: {base: mistralai/Mistral-7B-Instruct-v0.3}
generate: {shard_personas: 4}
"""
A10 = {"name": "A10", "memory_bytes": 24 * GIB, "capability": 8.6}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "planned.yaml"
    path.write_text(RECIPE.replace("OUT", str(tmp_path / "runs")))
    return str(path)


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"nodes": [{"cpus": 16, "memory_bytes": 128 * GIB, "gpus": [A10, A10]}]}))
    return path


def plan(*arguments):
    return CliRunner().invoke(plan_command, [str(argument) for argument in arguments])


def test_a_cluster_one_does_not_have_is_planned_for_a_model_that_is_not_here(recipe, cluster):
    said = " ".join(plan(recipe, "--inventory", cluster).output.split())
    assert "2 × A10" in said
    assert "training workers 2 2 GPUs (A10), a whole one each" in said
    assert "training quantization none the weights fit as they are" in said
    assert "checkpointing yes memory is what is short" in said
    assert "scoring tasks 16" in said
    shown = json.loads(plan(recipe, "--inventory", cluster, "--json").output)
    train = shown["train"]
    assert train["workers"]["value"] * train["micro_batch"]["value"] * train["accumulation"]["value"] == 16
    assert 14 * GIB < train["memory_bytes"] < 0.9 * 24 * GIB
    assert shown["evaluate"]["tasks"]["value"] == 16
    assert shown["training_estimate"]["hours"] is None
    assert "polypersona finetune keeps its pace" in shown["training_estimate"]["reason"]


def test_the_pace_of_an_earlier_training_gives_hours_and_a_cost(recipe, cluster):
    loaded = load_recipe(recipe)
    inventory = load_inventory(cluster)
    shown = json.loads(plan(recipe, "--inventory", cluster, "--json").output)["train"]
    from polypersona.models.shapes import load_shape

    decided = plan_training(loaded, inventory, shape=load_shape(loaded.model.base))
    assert decided.as_json() == shown
    remember_pace(pace_parts(loaded, decided, hardware_of(inventory)), TrainingPace(1000.0, 100.0, "2026-01-02"))
    priced = ("--inventory", cluster, "--set", "cluster.prices={GPU: 3}")
    estimate = json.loads(plan(recipe, *priced, "--json").output)["training_estimate"]
    rows = round(3568 * 0.8) * 3
    assert estimate["rows"] == rows
    assert estimate["hours"] == pytest.approx(rows * 100 / 1000 / 3600)
    assert estimate["cost"] == pytest.approx(estimate["hours"] * 2 * 3)
    assert "training hours" in plan(recipe, *priced).output
    for other in ("finetune.rank=4", "finetune.max_length=512", "model.base=microsoft/phi-2"):
        later = json.loads(plan(recipe, *priced, "--set", other, "--json").output)
        assert later["training_estimate"]["hours"] is None, other


def test_a_damaged_file_of_paces_keeps_nobody_from_planning(recipe, cluster, tmp_path):
    folder = tmp_path / "cache" / "polypersona"
    folder.mkdir(parents=True)
    (folder / FILE).write_text("{")
    said = json.loads(plan(recipe, "--inventory", cluster, "--json").output)["training_estimate"]
    assert "is damaged" in said["reason"]
    assert (folder / FILE).read_text() == "{"


def test_what_does_not_fit_is_named_with_the_nearest_plan(recipe, cluster):
    done = plan(recipe, "--inventory", cluster, "--set", "cluster.policy=fixed", "--set", "model.quantization=none")
    assert done.exception.exit_code == 2
    assert "memory is short" in done.exception.message
    assert "cluster.policy: adaptive" in done.exception.hint
    done = plan(recipe, "--inventory", cluster, "--set", "cluster.memory_gb=8")
    assert "policy: fit and memory_gb belong together" in str(done.exception)


def test_nothing_is_tuned_where_no_adapter_is_asked_for(recipe, cluster):
    said = plan(recipe, "--inventory", cluster, "--set", "model.adapter=none").output
    assert "nothing is tuned" in said
    assert "training workers" not in said


def test_weights_are_read_only_where_something_is_known_of_the_hardware(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("polypersona.cli.plan.model_hash", lambda *_: pytest.fail("the weights were read"))
    asked = build_recipe({"name": "x", "out": str(tmp_path), "panel": {"size": 8}})
    assert make_plan(asked).plan.train.micro_batch.value >= 1
    (tmp_path / "cache" / "polypersona").mkdir(parents=True, exist_ok=True)
    for damaged in ("{", '{"format": 1, "micro_batches": {"a": {"micro_batch": 4}}}'):
        (tmp_path / "cache" / "polypersona" / "micro_batches.json").write_text(damaged)
        [note] = [one for one in make_plan(asked).plan.notes if "micro_batches.json is damaged" in one]
        assert note.endswith("Delete it, or leave it: the next training keeps it aside and begins a new one.")
        assert (tmp_path / "cache" / "polypersona" / "micro_batches.json").read_text() == damaged
