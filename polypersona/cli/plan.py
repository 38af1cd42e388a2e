"""What `plan` prints: the work of a recipe, the plan for it, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypersona.benchmark import as_it_is_now, begun_with, frozen_values, workload_parts
from polypersona.cli.plan_adapters import AdapterTurn, adapter_rows, plan_adapters
from polypersona.cli.plan_training import (
    count_rows,
    estimate_adapter,
    find_shape,
    in_gib,
    known_rows,
    load_training_rows,
    nothing_asked,
    nothing_left,
    row_sizes,
    training_rows,
)
from polypersona.cli.tables import render_table
from polypersona.content import extend_ledger
from polypersona.engines.settings import base_bytes, locate_weights, refuse_unsupported
from polypersona.errors import ModelError, StorageError
from polypersona.ledger import Ledger, committed_shards, ledger_from
from polypersona.planned_training import frozen_plan, is_trained, settled_precision
from polypersona.population import Population, load_population, refuse_idle_panel
from polypersona.progress import render_seconds
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.records import Example
from polypersona.roster import Member, build_roster, has_several
from polypersona.scheduling.calibration import Calibration, load_calibrations
from polypersona.scheduling.estimate import (
    Estimate,
    TrainingEstimate,
    devices_of,
    estimate_generation,
)
from polypersona.scheduling.inventory import load_inventory, read_inventory
from polypersona.scheduling.machines import GIB, Inventory, limit_inventory
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.policy import Plan, build_plan
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.scheduling.record_file import key_of
from polypersona.scheduling.training_plan import RowSizes
from polypersona.storage import RunDirectory, load_run


@dataclass(frozen=True, slots=True)
class Outlook:
    """A plan, the work it is for, and what that is expected to take."""

    plan: Plan
    work: dict[str, Any]
    generation: Estimate
    training: TrainingEstimate
    adapters: tuple[AdapterTurn, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "work": self.work,
            "estimate": self.generation.as_json(),
            "training_estimate": self.training.as_json(),
            **({"adapters": [one.as_json() for one in self.adapters]} if self.adapters else {}),
            **self.plan.as_json(),
        }


def make_plan(recipe: Recipe, inventory_path: Path | None = None) -> Outlook:
    """Return the plan, the work it is for, and what that is expected to take; starts nothing.

    Raises:
        InfeasiblePlanError: nothing fits the inventory.
    """
    refuse_unsupported(recipe)
    refuse_idle_panel(recipe)
    limits = recipe.cluster.limits
    inventory = limit_inventory(load_inventory(inventory_path), limits) if inventory_path else read_inventory(limits)
    run = RunDirectory.at(recipe.location)
    population = _load_population(recipe, run)
    work = _measure_work(recipe, run, population)
    shape, notes = _find_shape(recipe)
    examples, stored, member = load_training_rows(run), load_run(run), _only_member(recipe)
    most, told = known_rows(recipe, inventory, shape) if member else (None, ())
    plan = build_plan(
        recipe,
        inventory,
        work.get("shards_left") or work.get("shards"),
        base_bytes(recipe),
        shape=shape,
        rows=_row_sizes(recipe, examples),
        most_micro_batch=most,
        trained_in=settled_precision(recipe, frozen_plan(stored, member)) if member else None,
        frozen=begun_with(run),
    )
    if _is_tuned(recipe) and member is None:
        adapters = plan_adapters(recipe, inventory, run, examples)
        turns, training, told = adapters.turns, adapters.together, adapters.notes
    else:
        turns, training = (), _estimate_training(recipe, run, plan, examples)
    plan = replace(plan, notes=tuple(dict.fromkeys((*notes, *told))))
    return Outlook(plan, work, _estimate(recipe, run, plan, population, work), training, turns)


def _find_shape(recipe: Recipe) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Return the base model's shape and notes; None where no model is loaded."""
    if not _is_tuned(recipe) and recipe.generate.engine not in MODEL_ENGINES:
        return None, ()
    return find_shape(recipe)


def _is_tuned(recipe: Recipe) -> bool:
    return recipe.model.adapter == "run"


def _only_member(recipe: Recipe) -> Member | None:
    """Return the recipe's only adapter; None where it tunes none, or several."""
    return build_roster(recipe)[0] if _is_tuned(recipe) and not has_several(recipe) else None


def _row_sizes(recipe: Recipe, examples: Sequence[Example] | None) -> RowSizes | None:
    """Return how long the rows of the dataset are; choices are laid out as those of one adapter only."""
    loss = finetune_settings(recipe.finetune).loss
    return row_sizes(recipe, examples) if loss != "options" or _only_member(recipe) else None


def _estimate_training(
    recipe: Recipe, run: RunDirectory, plan: Plan, examples: Sequence[Example] | None
) -> TrainingEstimate:
    """Return what tuning the only adapter is expected to take."""
    member = _only_member(recipe)
    if member is None:
        return nothing_asked(recipe.model.adapter)
    if is_trained(run, member):
        return nothing_left(f"{member.folder}/ is there")
    rows = count_rows(recipe, member.scope, examples)
    return estimate_adapter(recipe, plan.train, plan.inventory, rows, plan.inventory, recipe.cluster.prices)


def _load_population(recipe: Recipe, run: RunDirectory) -> Population | None:
    """Return who is asked what; None where the test split is not there yet."""
    if recipe.generate.on == "test" and not run.exists("dataset/test.jsonl"):
        return None
    return load_population(recipe, run)


def _measure_work(recipe: Recipe, run: RunDirectory, population: Population | None) -> dict[str, Any]:
    """Return how much there is to answer, and how much of it is not committed."""
    generate = recipe.generate
    if population is None:
        return {"on": generate.on}
    stored = load_run(run)
    committed = committed_shards(run, stored.get("fingerprint", "none yet"))
    begun = ledger_from(stored["ledger"]) if committed else Ledger(generate.shard_personas)
    ledger = extend_ledger(begun, recipe, population)
    left = [number for number in range(ledger.num_shards) if number not in committed]
    asked = population.asked
    num_left = sum(ledger.num_shard_cells(number, asked) for number in left) if committed else ledger.num_cells
    return {
        "on": generate.on,
        "personas": len(population.personas),
        "items": len(population.items),
        "waves": generate.waves,
        "draws": generate.draws,
        "cells": ledger.num_cells,
        "shards": ledger.num_shards,
        "cells_left": num_left,
        "shards_left": len(left),
    }


def _estimate(
    recipe: Recipe, run: RunDirectory, plan: Plan, population: Population | None, work: dict[str, Any]
) -> Estimate:
    """Return what the work is expected to take, from what was measured for exactly this."""
    engine = recipe.generate.engine
    if engine == "endpoint":
        return Estimate("the server of generate.endpoint decides")
    if population is None:
        return Estimate("the dataset stage makes the test split first")
    devices = devices_of(engine, plan.generate, plan.inventory)
    try:
        measured = _find_measured(recipe, run, plan, population, devices)
    except (StorageError, ModelError) as error:
        return Estimate(str(error))
    prices = recipe.cluster.prices
    return estimate_generation(plan.generate, plan.inventory, devices, measured, work["cells_left"], prices)


def _find_measured(
    recipe: Recipe, run: RunDirectory, plan: Plan, population: Population, devices: Sequence[str]
) -> dict[str, Calibration]:
    """Return the records that hold for this recipe, by kind of hardware."""
    records = load_calibrations()
    kinds = {record.hardware for record in records.values()} & set(devices)
    if not kinds:  # then no model need be read to be identified
        return {}
    recipe, _ = as_it_is_now(recipe, run)
    weights, frozen = locate_weights(recipe, run), frozen_values(recipe, plan.generate, run)
    keys = {kind: key_of(workload_parts(recipe, frozen, weights, population, kind)) for kind in kinds}
    return {kind: records[key] for kind, key in keys.items() if key in records}


def render_plan(outlook: Outlook) -> str:
    """Return the plan as a table for a terminal or a log."""
    from rich.table import Table

    table = Table(title="Plan", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "value", "why"):
        table.add_column(column, overflow="fold")
    plan, work, training, adapters = outlook.plan, outlook.work, outlook.training, outlook.adapters
    for row in (
        ("inventory", _describe(plan.inventory), plan.inventory.source),
        *[("note", "", note) for note in plan.notes],
        *(adapter_rows(adapters, training) if adapters else training_rows(plan.train, training)),
        *_rows(plan, work),
        *_estimate_rows(plan, work, outlook.generation),
        ("scoring tasks", str(plan.evaluate.tasks.value), plan.evaluate.tasks.reason),
    ):
        table.add_row(*row)
    return render_table(table, 110).rstrip()


def _rows(plan: Plan, work: dict[str, Any]) -> list[tuple[str, str, str]]:
    generate = plan.generate
    return [
        ("cells to answer", *_describe_work(work)),
        *[(f"actors on {one.name}", str(one.actors.value), one.actors.reason) for one in generate.pools],
        *[("left out", one.name, one.reason) for one in generate.left_out],
        ("precision", generate.dtype.value, generate.dtype.reason),
        ("quantization", generate.quantization.value, generate.quantization.reason),
        ("slots", str(generate.slots.value), generate.slots.reason),
        ("key-value cache", in_gib(generate.cache_bytes.value), generate.cache_bytes.reason),
        ("threads an actor", str(generate.threads.value), generate.threads.reason),
    ]


def _estimate_rows(plan: Plan, work: dict[str, Any], estimate: Estimate) -> list[tuple[str, str, str]]:
    """Return what generation is expected to take; nothing is said of what was not measured."""
    if estimate.rows_per_s is None or estimate.hours is None:
        return [("rows a second, hours", "not known", estimate.reason)]
    left = f"for {work['cells_left']:,} cells still to answer"
    reused = "" if estimate.reused_share is None else f", {100 * estimate.reused_share:.0f} % of them reused"
    taken = render_seconds(3600 * estimate.hours)
    rows = [
        ("rows a second", f"{estimate.rows_per_s:,.1f}", f"{plan.generate.actors.value} actors; {estimate.reason}"),
        ("prompt tokens", f"{estimate.prompt_tokens:,}", f"{left}{reused}"),
        ("new tokens", f"{estimate.new_tokens:,}", left),
        ("hours", f"{estimate.hours:.3g}", f"{left}, {taken} with {estimate.start_up_s:.0f} s of start-up"),
    ]
    return rows + ([("cost", f"{estimate.cost:.4g}", estimate.cost_reason)] if estimate.cost is not None else [])


def _describe(inventory: Inventory) -> str:
    parts = [f"{inventory.cpus:g} CPUs", f"{sum(node.memory_bytes for node in inventory.nodes) / GIB:.0f} GiB"]
    names = [gpu.name for gpu in inventory.gpus]
    return ", ".join(parts + [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)])


def _describe_work(work: dict[str, Any]) -> tuple[str, str]:
    if "cells" not in work:
        return "not known yet", "the test split, which the dataset stage makes"
    repeats = "".join(f" × {work[name]} {name}" for name in ("waves", "draws") if work[name] > 1)
    what = f"{work['personas']:,} personas × {work['items']:,} items{repeats}"
    return f"{work['cells']:,}", f"{what}, in {work['shards']:,} shards" if work["on"] == "panel" else "the test split"
