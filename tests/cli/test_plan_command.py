"""pytest tests/cli/test_plan_command.py"""

import json

import pytest
from click.testing import CliRunner

from polypersona.cli.plan import make_plan
from polypersona.cli.stages import plan_command
from polypersona.ledger import Box, Ledger
from polypersona.models.shapes import load_shape
from polypersona.recipe import build_recipe, load_recipe
from polypersona.scheduling.inventory import load_inventory
from polypersona.scheduling.machines import GIB
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.packing import share_of
from polypersona.scheduling.training_pace import FILE, TrainingPace, pace_parts, remember_pace
from polypersona.scheduling.training_plan import plan_training
from polypersona.storage import RunDirectory, update_run
from polypersona.training.job import content_of

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


def test_a_sweep_has_hours_and_a_cost_of_its_own(recipe, cluster):
    sweep = ("--inventory", cluster, "--set", "cluster.prices={GPU: 3}", "--set", "finetune.sweep={rank: [8, 16]}")
    assert "polypersona finetune keeps its pace" in " ".join(plan(recipe, *sweep).output.split())
    shown = json.loads(plan(recipe, *sweep, "--json").output)
    assert shown["training_estimate"]["hours"] is None
    loaded = load_recipe(recipe)
    share = share_of(load_inventory(cluster), 2)
    for one, pace in zip(shown["adapters"], (1000.0, 500.0), strict=True):
        settings = loaded.finetune.model_copy(update={"rank": one["rank"]})
        alone = loaded.model_copy(update={"finetune": settings})
        decided = plan_training(alone, share, shape=load_shape(loaded.model.base))
        assert decided.as_json() == one["plan"]
        remember_pace(pace_parts(alone, decided, hardware_of(share)), TrainingPace(pace, 100.0, "2026-01-02"))
    estimate = json.loads(plan(recipe, *sweep, "--json").output)["training_estimate"]
    rows = round(3568 * 0.8) * 3
    assert estimate["rows"] == 2 * rows
    assert estimate["hours"] == pytest.approx(rows * 100 / 500 / 3600)  # of the slower: the other ends before it
    assert estimate["cost"] == pytest.approx(estimate["hours"] * 2 * 3)
    assert "training hours" in plan(recipe, *sweep).output


def test_the_precision_that_a_resume_would_keep_is_shown(recipe, cluster, tmp_path):
    fresh = json.loads(plan(recipe, "--inventory", cluster, "--json").output)
    assert (fresh["train"]["dtype"]["value"], fresh["train"]["quantization"]["value"]) == ("bf16", "none")
    assert (fresh["generate"]["dtype"]["value"], fresh["generate"]["slots"]["value"]) == ("bf16", 128)
    run = RunDirectory.at(tmp_path / "runs" / "planned")
    frozen = {
        "engine": "packed", "dtype": "fp32", "quantization": "nf4", "slots": 7, "cache_bytes": GIB, "threads": 1,
        "shard_personas": 4,
    }  # fmt: skip
    settled = {"finetune": {"model.dtype": "fp32", "model.quantization": "int8"}}
    ledger = Ledger(4).extend(Box(40, ("healthcare.likert.01", "healthcare.open.01")))
    update_run(run, {"plan": settled, "fingerprint": "f00d", "frozen": frozen, "ledger": ledger.as_json()})
    why = "frozen at the run's first start"
    shown = json.loads(plan(recipe, "--inventory", cluster, "--json").output)
    assert shown["train"]["dtype"] == {"value": "fp32", "reason": why}
    assert shown["train"]["quantization"] == {"value": "int8", "reason": why}
    assert shown["generate"]["dtype"]["value"] == "bf16"  # nothing is committed: a start would decide anew
    run.write("responses/shard-00000-f00d.parquet", b"committed")
    shown = json.loads(plan(recipe, "--inventory", cluster, "--json").output)["generate"]
    assert [shown[name] for name in ("dtype", "quantization", "slots")] == [
        {"value": value, "reason": why} for value in ("fp32", "nf4", 7)
    ]
    assert " ".join(plan(recipe, "--inventory", cluster).output.split()).count(why) >= 5


def test_an_adapter_that_is_there_takes_no_hours(recipe, cluster, tmp_path):
    run = RunDirectory.at(tmp_path / "runs" / "planned")
    run.write_json("adapter/training.json", {"content": content_of(load_recipe(recipe))})
    assert "training finished, bf16, none adapter/ is there" in " ".join(
        plan(recipe, "--inventory", cluster).output.split()
    )
    shown = json.loads(plan(recipe, "--inventory", cluster, "--json").output)
    assert shown["training_estimate"]["hours"] == 0
    changed = plan(recipe, "--inventory", cluster, "--set", "finetune.rank=4").output
    assert "training workers" in changed


def test_rows_of_a_source_are_not_invented(recipe, cluster):
    said = plan(recipe, "--inventory", cluster, "--json", "--set", "dataset.source=nowhere.jsonl").output
    assert json.loads(said)["training_estimate"]["reason"] == "the dataset stage makes its rows first"


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
    monkeypatch.setattr("polypersona.cli.plan_training.model_hash", lambda *_: pytest.fail("the weights were read"))
    asked = build_recipe({"name": "x", "out": str(tmp_path), "panel": {"size": 8}})
    assert make_plan(asked).plan.train.micro_batch.value >= 1
    (tmp_path / "cache" / "polypersona").mkdir(parents=True, exist_ok=True)
    for damaged in ("{", '{"format": 1, "micro_batches": {"a": {"micro_batch": 4}}}'):
        (tmp_path / "cache" / "polypersona" / "micro_batches.json").write_text(damaged)
        [note] = [one for one in make_plan(asked).plan.notes if "micro_batches.json is damaged" in one]
        assert note.endswith("Delete it, or leave it: the next training keeps it aside and begins a new one.")
        assert (tmp_path / "cache" / "polypersona" / "micro_batches.json").read_text() == damaged
