"""pytest tests/cli/test_bench.py"""

import json

import pytest
from click.testing import CliRunner

from polypersona.cli.bench import bench_command
from polypersona.cli.main import cli
from polypersona.cli.stages import plan_command
from polypersona.recipe import load_recipe
from polypersona.storage import RunDirectory, update_run

RECIPE = """name: bench
out: OUT
panel: {source: sampled, size: 40}
instrument: {items: [healthcare.likert.01, healthcare.open.01]}
generate: {engine: fake, shard_personas: 4}
cluster: {limits: {CPU: 1, GPU: 0}}
"""
TINY = ("generate.engine=packed", "model.adapter=run", "model.dtype=fp32", "generate.slots=16")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    path = tmp_path / "bench.yaml"
    path.write_text(RECIPE.replace("OUT", str(tmp_path / "runs")))
    return str(path)


def plan(*arguments):
    done = CliRunner().invoke(plan_command, list(arguments))
    assert done.exit_code == 0, done.exception
    return " ".join(done.output.split())


def bench(*arguments):
    done = CliRunner().invoke(bench_command, [*arguments, "--seconds", "0.2"])
    assert done.exit_code == 0, done.exception
    return done


def test_the_plan_knows_the_pace_only_after_a_measurement_of_the_same(recipe, tmp_path):
    assert "rows a second, hours not known run polypersona bench on" in plan(recipe)
    done = bench(recipe, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["synthetic"] is True
    assert figures["actors"] == 1
    assert f"{figures['rows_per_s']:,.1f}" in done.stdout
    assert "peak memory on the GPU n/a" in " ".join(done.stdout.split())

    said = plan(recipe)
    assert f"rows a second {figures['rows_per_s']:,.1f} 1 actors; measured by polypersona bench on" in said
    assert "on this hardware" in said
    assert "80 cells still to answer" in said
    assert "160 cells still to answer" in plan(recipe, "--set", "generate.draws=2")
    for stale in (
        "generate.rationale=true",
        "instrument.show_options=letters",
        "instrument.max_items=1",
        "generate.engine=rules",
    ):
        assert "not known" in plan(recipe, "--set", stale), stale


@pytest.mark.slow
def test_the_embedded_model_is_measured_and_not_taken_for_another_precision(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYPERSONA_KERNELS", "off")  # nothing to compile into this test's cache folder
    options = [word for setting in TINY for word in ("--set", setting)]
    done = bench(recipe, *options, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] > 0
    assert figures["rows_per_cpu_s"] > 0
    assert 0.3 < figures["reused_share"] < 1
    assert figures["start_up_s"] > 0.1
    assert 100 << 20 < figures["peak_rss_bytes"] < 3 << 30
    assert "without the adapter" in done.stderr

    said = plan(recipe, *options)
    assert "measured by polypersona bench" in said
    assert "without the adapter" in said
    for changed in ("model.dtype=bf16", "model.quantization=int8", "generate.slots=15", "generate.closed=text"):
        assert "not known" in plan(recipe, *options, "--set", changed), changed


def test_prices_give_a_cost_once_hours_are_known(recipe):
    priced = (recipe, "--set", "cluster.prices={CPU: 3600}", "--json")
    assert json.loads(CliRunner().invoke(plan_command, list(priced)).output)["estimate"]["cost"] is None
    bench(recipe)
    estimate = json.loads(CliRunner().invoke(plan_command, list(priced)).output)["estimate"]
    assert estimate["cost"] == pytest.approx(estimate["hours"] * 3600)
    assert "1 CPU × 3600" in plan(*priced[:-1])


def test_hours_are_for_the_cells_that_are_not_committed(recipe):
    bench(recipe)
    run = RunDirectory.at(load_recipe(recipe).location)
    layer = {
        "box": {"personas": 40, "items": ["healthcare.likert.01", "healthcare.open.01"], "waves": 1, "draws": 1},
        "first_persona": 0, "first_shard": 0, "num_shards": 10, "num_cells": 80,
    }  # fmt: skip
    shown = json.loads(CliRunner().invoke(plan_command, [recipe, "--json"]).output)
    generate = {name: shown["generate"][name]["value"] for name in ("dtype", "quantization", "slots", "threads")}
    frozen = {"engine": "fake", "cache_bytes": 0, "shard_personas": 4, **generate}
    update_run(run, {"fingerprint": "f00d", "ledger": {"shard_personas": 4, "layers": [layer]}, "frozen": frozen})
    for number in range(3):
        run.write(f"responses/shard-{number:05d}-f00d.parquet", b"")
    half = json.loads(CliRunner().invoke(plan_command, [recipe, "--json"]).output)
    assert (half["work"]["cells"], half["work"]["cells_left"], half["work"]["shards_left"]) == (80, 56, 7)
    assert half["estimate"]["new_tokens"] == pytest.approx(0.7 * shown["estimate"]["new_tokens"], rel=0.05)
    assert half["estimate"]["hours"] < shown["estimate"]["hours"]


def test_a_damaged_calibration_file_is_one_sentence_and_a_hint(recipe, tmp_path):
    bench(recipe)
    path = tmp_path / "cache" / "polypersona" / "calibration.json"
    path.write_text(path.read_text()[:-40])
    said = plan(recipe)  # a cache that is damaged keeps nobody from planning
    assert "not known" in said
    assert "is damaged" in said
    assert "Delete it" in said
    done = CliRunner().invoke(bench_command, [recipe])
    assert done.exit_code == 1
    assert done.output == ""
    assert done.exception.exit_code == 2
    assert "is damaged" in done.exception.message
    assert "Delete it" in done.exception.hint


def test_an_inventory_without_processors_gives_no_pace(recipe, tmp_path):
    bench(recipe)
    cluster = tmp_path / "cluster.json"
    cluster.write_text(json.dumps({"nodes": [{"cpus": 8, "memory_bytes": 1 << 35}]}))
    assert "does not name the processor" in plan(recipe, "--inventory", str(cluster))
    cluster.write_text(json.dumps({"nodes": [{"cpus": 8, "memory_bytes": 1 << 35, "processor": "another"}]}))
    assert "run polypersona bench on another" in plan(recipe, "--inventory", str(cluster))


def test_help_shows_an_example():
    done = CliRunner().invoke(cli, ["bench", "--help"])
    assert "Example: polypersona bench jobs/demo.yaml" in done.output
