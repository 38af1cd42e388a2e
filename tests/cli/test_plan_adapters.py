"""What `plan` says of several adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapter_runs import NUM_TRAIN, adapters_recipe, write_dataset
from toy_models import make_toy_model

from polypersona.cli.plan_adapters import AdapterPlans, adapter_rows, plan_adapters
from polypersona.cli.plan_training import load_training_rows
from polypersona.planned_training import Found, Planned
from polypersona.recipe import Recipe, build_recipe
from polypersona.roster import build_roster
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node
from polypersona.scheduling.training_pace import TrainingPace, pace_parts, remember_pace
from polypersona.storage import RunDirectory, update_run
from polypersona.training.job import content_of

LAPTOP = Inventory((Node(2, 8 * GIB),))
MACHINE = Inventory((Node(2, 6 * GIB, processor="AMD EPYC", physical_bytes=8 * GIB),))


@pytest.fixture(autouse=True)
def no_paces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")


def recipe(**finetune: Any) -> Recipe:
    return build_recipe({"name": "x", "panel": {"size": 3}, "finetune": {"preset": "tiny", **finetune}})


def sweep(out: Path, base: Path, **sections: Any) -> Recipe:
    """Four adapters of 32 rows each, which two epochs see twice: 64 rows of ten tokens."""
    axes = {"domains": [["finance"], ["healthcare"]], "rank": [2, 4]}
    found = adapters_recipe(out, base, {"sweep": axes}, **sections)
    write_dataset(RunDirectory.at(found.location))
    return found


def planned(asked: Recipe, inventory: Inventory) -> AdapterPlans:
    run = RunDirectory.at(asked.location)
    return plan_adapters(asked, inventory, run, load_training_rows(run))


def as_finetune_plans(asked: Recipe, inventory: Inventory) -> dict[str, Planned]:
    """Return what the stage itself would settle, by name."""
    from polypersona import finetune, sweep

    run, roster = RunDirectory.at(asked.location), build_roster(asked)
    waiting = [finetune._find(member, run, {}) for member in roster]
    assert all(isinstance(one, Found) and one.training is None for one in waiting)
    plans = [sweep._plan_beside(one, run, inventory, len(waiting), finetune._plan) for one in waiting]
    return {one.member.name: one for one in plans}


def remember(asked: Recipe, inventory: Inventory, paces: dict[str, float]) -> None:
    """Keep paces, in tokens a second, where the stage itself would; two domains differ in nothing a pace depends on."""
    for name, one in as_finetune_plans(asked, inventory).items():
        if name in paces:
            parts = pace_parts(one.member.recipe, one.plan, one.memory_parts["hardware"])
            remember_pace(parts, TrainingPace(paces[name], 10.0, "2026-01-02"))


def test_four_adapters_on_two_cores_are_two_turns_of_two(tmp_path: Path) -> None:
    asked = recipe(sweep={"domains": [["healthcare"], ["finance"]], "rank": [8, 16]})
    plans = plan_adapters(asked, LAPTOP, RunDirectory.at(tmp_path), None)
    turns = plans.turns
    assert [one.turn for one in turns] == [1, 1, 2, 2]
    assert [one.beside for one in turns] == [1, 1, 1, 1]
    assert {(one.plan.workers.value, one.plan.cpus_per_worker) for one in turns if one.plan} == {(1, 1.0)}
    name, value, why = adapter_rows(turns, plans.together)[0]
    assert name == "adapter finance-rank16"
    assert value.startswith("turn 1, 1 × 1 CPU")
    assert why == "finance; rank 16 on tiny; 1 more at the same time"
    assert turns[0].as_json()["plan"]["workers"]["value"] == 1
    assert "the dataset stage makes its rows first" in plans.together.reason


def test_the_longest_begins_first_and_gpus_are_whole(tmp_path: Path) -> None:
    gpus = Inventory((Node(8, 64 * GIB, (Gpu("A100", 80 * GIB, 8.0),) * 2),))
    adapters = [{"name": "short"}, {"name": "long", "epochs": 9}, {"name": "middle", "epochs": 5}]
    turns = plan_adapters(recipe(adapters=adapters), gpus, RunDirectory.at(tmp_path), None).turns
    assert [(one.name, one.turn, one.plan.gpus_per_worker) for one in turns if one.plan] == [
        ("long", 1, 1), ("middle", 1, 1), ("short", 2, 1),
    ]  # fmt: skip


def test_hours_are_those_of_the_packing_and_cost_is_for_them(tmp_path: Path, base: Path) -> None:
    asked = sweep(tmp_path, base, cluster={"prices": {"CPU": 3.0}})
    remember(asked, MACHINE, {"finance-rank2": 80.0, "finance-rank4": 160.0})
    plans = planned(asked, MACHINE)
    rows = 2 * NUM_TRAIN
    each = {one.name: one.estimate.hours for one in plans.turns}
    slow, fast = rows * 10 / 80 / 3600, rows * 10 / 160 / 3600
    expected = {"finance-rank2": slow, "finance-rank4": fast, "healthcare-rank2": slow, "healthcare-rank4": fast}
    assert each == {name: pytest.approx(hours) for name, hours in expected.items()}
    # finance-rank2 and -rank4 begin; healthcare-rank2 follows where the second ends, healthcare-rank4 where the first.
    assert [(one.name, one.begins_s) for one in plans.turns] == [
        ("finance-rank2", 0.0), ("finance-rank4", 0.0),
        ("healthcare-rank2", pytest.approx(3600 * fast)), ("healthcare-rank4", pytest.approx(3600 * slow)),
    ]  # fmt: skip
    together = plans.together
    assert together.hours == pytest.approx(fast + slow)
    assert together.hours < sum(hours or 0.0 for hours in each.values())
    assert (together.rows, together.tokens) == (4 * rows, 40 * rows)
    assert together.cost == pytest.approx(together.hours * 2 * 3)
    shown = {name: value for name, value, _ in adapter_rows(plans.turns, together)}
    assert shown["training hours"] == f"{fast + slow:.3g}"
    assert shown["adapter finance-rank2"].endswith(f", {slow:.3g} h")


def test_without_the_pace_of_each_the_hours_are_not_known_and_the_missing_are_named(tmp_path: Path, base: Path) -> None:
    asked = sweep(tmp_path, base)
    remember(asked, MACHINE, {"finance-rank2": 80.0})
    together = planned(asked, MACHINE).together
    assert (together.hours, together.cost) == (None, None)
    assert together.reason.startswith("of finance-rank4, healthcare-rank4: no training of this kind has ended")


def test_what_is_trained_already_takes_no_hours(tmp_path: Path, base: Path) -> None:
    asked = sweep(tmp_path, base)
    run, roster = RunDirectory.at(asked.location), build_roster(asked)
    for member in roster[:3]:
        run.write_json(f"{member.folder}/training.json", {"content": content_of(member.recipe)})
    last = roster[3]
    plans = planned(asked, MACHINE)
    assert [(one.name, one.turn) for one in plans.turns] == [*((one.name, 0) for one in roster[:3]), (last.name, 1)]
    alone = plans.turns[3].plan
    assert alone is not None
    assert alone.threads.value == 2  # nothing trains beside it
    assert adapter_rows(plans.turns, plans.together)[0][1:] == ("finished, fp32, none", f"finance; rank 2 on {base}")
    run.write_json(f"{last.folder}/training.json", {"content": content_of(last.recipe)})
    assert planned(asked, MACHINE).together.hours == 0
    other = asked.model_copy(update={"seed": 8})  # the stage would refuse it, and what it takes is still asked for
    assert [one.turn for one in planned(other, MACHINE).turns] == [1, 1, 2, 2]


def test_the_precision_that_the_run_is_frozen_to_is_shown(tmp_path: Path, base: Path) -> None:
    asked = sweep(tmp_path, base)
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"dtype": "auto", "quantization": "auto"})})
    assert {one.plan.dtype.value for one in planned(asked, MACHINE).turns if one.plan} == {"fp32"}
    frozen = {"finance-rank2": {"model.dtype": "bf16", "model.quantization": "nf4"}}
    update_run(RunDirectory.at(asked.location), {"plan": {"finetune": {"adapters": frozen}}})
    plans = planned(asked, MACHINE)
    rows = {name: (value, why) for name, value, why in adapter_rows(plans.turns, plans.together)}
    value, why = rows["adapter finance-rank2"]
    assert ", bf16, nf4" in value
    assert why.endswith("precision frozen at the run's first start")
    assert ", fp32, none" in rows["adapter finance-rank4"][0]
