"""pytest tests/test_benchmark.py"""

import json
from dataclasses import replace

import pytest

from polypersona import benchmark
from polypersona.benchmark import as_it_is_now, run, workload_parts
from polypersona.engines.base import EngineSettings
from polypersona.engines.settings import Weights
from polypersona.errors import EngineError, InfeasiblePlanError, RunFailedError, StorageError
from polypersona.fingerprint import diff
from polypersona.measurement import Request, measure
from polypersona.population import load_population
from polypersona.recipe import build_recipe
from polypersona.scheduling.calibration import load_calibrations
from polypersona.scheduling.generation_plan import freeze_plan, plan_generation
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node
from polypersona.storage import RunDirectory

ITEMS = ["healthcare.likert.01", "healthcare.open.01"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "local")


def make_recipe(folder, *, panel=None, cluster=None, model=None, **generate):
    return build_recipe(
        {
            "name": "bench",
            "out": str(folder / "runs"),
            "panel": {"source": "sampled", "size": 24, **(panel or {})},
            "instrument": {"items": ITEMS},
            "generate": {"engine": "fake", "shard_personas": 4, **generate},
            "model": {"adapter": "none", **(model or {})},
            "cluster": {"limits": {"CPU": 1, "GPU": 0}, **(cluster or {})},
        }
    )


def write_panel(folder, **attributes):
    path = folder / "panel.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{place}", **attributes}) + "\n" for place in range(24)))
    return {"source": str(path), "size": None}


def request(recipe, *, seconds=0.3, slots=8, max_personas=4, cells=None):
    population = load_population(recipe, RunDirectory.at(recipe.location))
    [personas] = benchmark._draw_sample(recipe, population, Weights(), 1)
    settings = EngineSettings(engine="fake", seed=recipe.seed, slots=slots)
    return Request(settings, personas[:cells], max_personas, 1, is_interview=False, seconds=seconds, environment={})


def test_a_record_is_kept_of_actors_side_by_side_and_the_run_is_not_touched(tmp_path):
    panel = write_panel(tmp_path, fake_delay_s=0.02)
    recipe = make_recipe(tmp_path, panel=panel, cluster={"limits": {"CPU": 2}})
    summary = run(recipe, seconds=0.5)
    [record] = load_calibrations().values()
    assert summary["file"] == str(tmp_path / "cache" / "polypersona" / "calibration.json")
    figures = record.figures
    assert figures.actors == 2
    # A persona takes 20 ms, whatever the machine: two rows each.
    assert 20 < figures.rows_per_s <= 100
    assert 2 * 0.5 <= figures.seconds < 2 * 3
    assert summary["rows_per_s"] == figures.rows_per_s
    assert figures.prompt_tokens > figures.new_tokens > 0
    assert 0 < figures.peak_rss_bytes < 2 * GIB
    assert figures.peak_device_bytes is None
    assert record.parts["generate.engine"] == "fake"
    assert not (tmp_path / "runs").exists()


def test_the_endpoint_is_not_measured(tmp_path):
    endpoint = {"url": "https://models.invalid/v1", "model": "m"}
    with pytest.raises(EngineError, match="endpoint cannot be measured"):
        run(make_recipe(tmp_path, engine="endpoint", endpoint=endpoint))


def test_a_damaged_calibration_file_is_named_before_the_work(tmp_path):
    path = tmp_path / "cache" / "polypersona" / "calibration.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        run(make_recipe(tmp_path, panel={"source": "nowhere.jsonl", "size": None}))
    assert path.read_text() == "{"


def test_a_plan_for_gpus_is_not_measured_without_one(tmp_path, monkeypatch):
    gpu = Inventory((Node(4, 64 * GIB, (Gpu("A100", 80 * GIB, 8.0),), processor="a"),))
    monkeypatch.setattr(benchmark, "read_inventory", lambda _limits: gpu)
    monkeypatch.setattr(benchmark, "local_inventory", lambda: Inventory((Node(4, 64 * GIB, processor="a"),)))
    with pytest.raises(InfeasiblePlanError, match="needs a GPU, and this machine offers none"):
        run(make_recipe(tmp_path, engine="packed"))


def test_a_process_that_dies_is_named(tmp_path):
    with pytest.raises(RunFailedError, match="died while it was measured"):
        run(make_recipe(tmp_path, panel=write_panel(tmp_path, fake_failure="crash")), seconds=0.2)
    assert load_calibrations() == {}


def test_an_engine_that_raises_or_answers_nothing_is_named(tmp_path):
    for failure, says in (("raise", "engine failed while it was measured"), ("error", "answered none of")):
        asked = request(make_recipe(tmp_path, panel=write_panel(tmp_path, fake_failure=failure)))
        with pytest.raises(RunFailedError, match=says):
            measure(asked)


def test_calls_hold_whole_personas_and_no_more_than_a_shard(tmp_path, monkeypatch):
    sizes = []

    class Engine:
        name, reproduces = "fake", "bytes"

        def answer(self, groups):
            sizes.append([len(group.cells) for group in groups])
            return inner.answer(groups)

        def close(self):
            sizes.append("closed")

    asked = request(make_recipe(tmp_path), slots=6, seconds=0.2)
    inner = benchmark.measure.__globals__["load_engine"](asked.settings)
    monkeypatch.setattr("polypersona.measurement.load_engine", lambda _settings: Engine())
    measured = measure(asked)
    assert sizes.pop() == "closed"
    assert sizes[:2] == [[2], [2, 2, 2]]  # one persona, then as many as fill six slots
    assert {len(size) for size in sizes[2:]} == {4}
    assert measured.is_full
    assert measured.figures.rows == sum(map(sum, sizes[2:]))


def test_slots_that_the_time_does_not_fill_are_said(tmp_path):
    slow = make_recipe(tmp_path, panel=write_panel(tmp_path, fake_delay_s=0.15))
    measured = measure(request(slow, seconds=0.1, slots=100, max_personas=24))
    assert not measured.is_full
    assert "the slots were not all filled" in benchmark._notes([measured])[0]


def test_samples_share_no_persona_and_follow_the_seed(tmp_path):
    recipe = make_recipe(tmp_path)
    population = load_population(recipe, RunDirectory.at(recipe.location))

    def draw(recipe, count):
        samples = benchmark._draw_sample(recipe, population, Weights(), count)
        return [[cells[0].persona.persona_id for cells in sample] for sample in samples]

    first, second = draw(recipe, 2)
    assert len({*first, *second}) == 24
    assert draw(recipe, 2) == [first, second]
    assert draw(recipe.model_copy(update={"seed": 8}), 2) != [first, second]


def test_a_record_holds_for_more_personas_and_draws_and_for_nothing_else(tmp_path):
    def parts(recipe, **weights):
        population = load_population(recipe, RunDirectory.at(recipe.location))
        plan = plan_generation(recipe, Inventory((Node(2, 64 * GIB),)))
        settled = replace(Weights("m", "hash", 1), **weights)
        return workload_parts(recipe, freeze_plan(recipe, plan), settled, population, "a CPU")

    base = parts(make_recipe(tmp_path, engine="packed"))
    assert parts(make_recipe(tmp_path, engine="packed", panel={"size": 99}, draws=3, waves=2)) == base
    assert parts(make_recipe(tmp_path, engine="packed").model_copy(update={"seed": 9})) == base
    for changed in (
        parts(make_recipe(tmp_path, engine="packed", model={"dtype": "bf16"})),
        parts(make_recipe(tmp_path, engine="packed", model={"quantization": "nf4"})),
        parts(make_recipe(tmp_path, engine="packed", slots=7)),
        parts(make_recipe(tmp_path, engine="packed", closed="text")),
        parts(make_recipe(tmp_path, engine="packed", rationale=True)),
        parts(make_recipe(tmp_path, engine="packed", context="previous")),
        parts(make_recipe(tmp_path, engine="packed"), model_hash="another"),
        parts(make_recipe(tmp_path, engine="packed"), adapter_hash="an adapter"),
        parts(make_recipe(tmp_path)),
    ):
        assert diff(base, changed)


def test_an_adapter_that_is_not_tuned_yet_is_left_out_and_said(tmp_path):
    recipe = make_recipe(tmp_path, engine="packed", model={"adapter": "run"})
    changed, [note] = as_it_is_now(recipe, RunDirectory.at(recipe.location))
    assert changed.model.adapter == "none"
    assert "without the adapter" in note
    RunDirectory.at(recipe.location).write("adapter/adapter_config.json", b"{}")
    assert as_it_is_now(recipe, RunDirectory.at(recipe.location)) == (recipe, ())
