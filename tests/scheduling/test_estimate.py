"""pytest tests/scheduling/test_estimate.py"""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.recipe import build_recipe
from polypersona.scheduling.calibration import Calibration, Figures
from polypersona.scheduling.estimate import devices_of, estimate_generation
from polypersona.scheduling.generation_plan import plan_generation
from polypersona.scheduling.machines import GIB, Decision, Gpu, Inventory, Node

T4, A100 = Gpu("T4", 16 * GIB, 7.5), Gpu("A100", 80 * GIB, 8.0)
CPUS = Inventory((Node(4, 64 * GIB, processor="old"), Node(2, 64 * GIB, processor="new")))
GPUS = Inventory((Node(8, 64 * GIB, (A100, A100), processor="old"), Node(4, 16 * GIB, (T4,), processor="old")))


def record(hardware, rows_per_s, notes=()):
    figures = Figures(1, int(10 * rows_per_s), 10.0, 10.0, int(1000 * rows_per_s), int(600 * rows_per_s),
                      int(100 * rows_per_s), 36.0, GIB, None)  # fmt: skip
    return Calibration("2026-01-02", hardware, {}, figures, {}, notes)


def estimate(inventory, measured, cells=7200, engine="packed", prices=None, actors=None):
    recipe = build_recipe({"name": "x", "panel": {"size": 8}, "generate": {"engine": engine}})
    plan = plan_generation(recipe, inventory, 1000)
    plan = plan if actors is None else replace(plan, actors=Decision(actors, "asked"))
    devices = devices_of(engine, plan, inventory)
    return estimate_generation(plan, inventory, devices, measured, cells, prices or {})


def test_one_kind_of_hardware_multiplies():
    found = estimate(Inventory((Node(2, 64 * GIB, processor="old"),)), {"old": record("old", 10)})
    assert found.rows_per_s == 20
    assert found.hours == pytest.approx(7200 / 20 / 3600 + 36 / 3600)
    assert (found.prompt_tokens, found.new_tokens, found.reused_share) == (720_000, 72_000, 0.6)
    assert "measured by polypersona bench on 2026-01-02 on this hardware: old" in found.reason
    assert json.loads(json.dumps(found.as_json()))["cost"] is None


def test_full_places_of_two_kinds_add_up_and_free_ones_count_as_the_slowest():
    measured = {"old": record("old", 10), "new": record("new", 30)}
    assert estimate(CPUS, measured).rows_per_s == 4 * 10 + 2 * 30
    assert estimate(CPUS, measured, actors=3).rows_per_s == 3 * 10
    gpus = {"A100": record("A100", 300), "T4": record("T4", 50)}
    assert estimate(GPUS, gpus).rows_per_s == 650


@pytest.mark.parametrize(
    ("inventory", "measured", "says"),
    [
        (CPUS, {}, "run polypersona bench on old and on new"),
        (CPUS, {"old": record("old", 10)}, "run polypersona bench on new"),
        (GPUS, {"old": record("old", 10), "A100": record("A100", 9)}, "run polypersona bench on T4"),
        (Inventory((Node(2, 64 * GIB),)), {"": record("", 10)}, "does not name the processor"),
    ],
)
def test_what_was_not_measured_is_not_known(inventory, measured, says):
    found = estimate(inventory, measured)
    assert says in found.reason
    figures = {name: value for name, value in found.as_json().items() if not name.endswith("reason")}
    assert set(figures.values()) == {None}


def test_a_note_of_a_record_is_said():
    note = "the base model without the adapter"
    assert note in estimate(CPUS, {"old": record("old", 1, (note,)), "new": record("new", 1)}).reason


def test_cost_is_hours_times_the_prices_of_what_is_there():
    found = estimate(GPUS, {"A100": record("A100", 50), "T4": record("T4", 50)}, prices={"GPU": 2.0, "CPU": 0.5})
    assert found.cost == pytest.approx(found.hours * (3 * 2.0 + 12 * 0.5))
    assert "3 GPU × 2" in found.cost_reason
    assert "12 CPU × 0.5" in found.cost_reason


def test_engines_without_weights_run_on_cpus_and_vllm_takes_a_node():
    gpu_free = {"old": record("old", 5)}
    assert estimate(GPUS, gpu_free, engine="fake").rows_per_s == 12 * 5
    nodes = {"4 × old": record("4 × old", 7), "2 × new": record("2 × new", 3)}
    assert estimate(CPUS, nodes, engine="vllm").rows_per_s == 10


def test_a_finished_run_takes_no_time():
    assert estimate(CPUS, {"old": record("old", 1), "new": record("new", 1)}, cells=0).hours == 0


@given(st.integers(1, 10**9), st.integers(1, 8), st.integers(1, 1000))
def test_more_cells_take_longer_and_more_cpus_shorter(cells, cpus, pace):
    def hours(cells, cpus):
        return estimate(Inventory((Node(cpus, 512 * GIB, processor="a"),)), {"a": record("a", pace)}, cells).hours

    assert hours(cells + 1, cpus) > hours(cells, cpus) > hours(cells, cpus + 1)
