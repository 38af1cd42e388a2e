"""What `plan` prints: the work of a recipe, the plan for it, and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypersona.benchmark import as_it_is_now, frozen_values, workload_parts
from polypersona.cli.plan_adapters import AdapterTurn, adapter_rows, plan_adapters
from polypersona.cli.tables import render_table
from polypersona.content import extend_ledger
from polypersona.engines.settings import base_bytes, locate_weights, refuse_unsupported
from polypersona.errors import ModelError, StorageError
from polypersona.examples import load_examples
from polypersona.ledger import Ledger, committed_shards, ledger_from
from polypersona.models.location import is_hub_id, locate_model, model_hash
from polypersona.models.shapes import load_shape
from polypersona.planned_training import memory_parts
from polypersona.population import Population, load_population, refuse_idle_panel
from polypersona.progress import render_seconds
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.roster import has_several
from polypersona.scheduling.calibration import Calibration, load_calibrations
from polypersona.scheduling.estimate import (
    Estimate,
    TrainingEstimate,
    devices_of,
    estimate_generation,
    estimate_training,
)
from polypersona.scheduling.inventory import load_inventory, read_inventory
from polypersona.scheduling.machines import GIB, Inventory, limit_inventory
from polypersona.scheduling.micro_batches import hardware_of, has_record, known_micro_batch
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.policy import Plan, build_plan
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.scheduling.record_file import key_of
from polypersona.scheduling.training_pace import known_pace, pace_parts
from polypersona.scheduling.training_plan import RowSizes, TrainPlan
from polypersona.storage import RunDirectory, load_run
from polypersona.training.choices import bound_sizes, num_rows


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


TRAIN = "dataset/train.jsonl"


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
    try:
        most_micro_batch = _known_micro_batch(recipe, inventory, shape)
    except StorageError as error:
        most_micro_batch, notes = None, (*notes, str(error))
    plan = build_plan(
        recipe,
        inventory,
        work.get("shards_left") or work.get("shards"),
        base_bytes(recipe),
        shape=shape,
        rows=_row_sizes(recipe, run),
        most_micro_batch=most_micro_batch,
    )
    plan = replace(plan, notes=notes)
    adapters = plan_adapters(recipe, inventory) if _is_tuned(recipe) else ()
    estimate = _estimate(recipe, run, plan, population, work)
    return Outlook(plan, work, estimate, _estimate_training(recipe, run, plan), adapters)


def _find_shape(recipe: Recipe) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Return the base model's shape; None, and why, where it cannot be read here."""
    model = recipe.model
    if not _is_tuned(recipe) and recipe.generate.engine not in MODEL_ENGINES:
        return None, ()
    try:
        return load_shape(model.base, revision=model.revision, trust_remote_code=model.trust_remote_code), ()
    except ModelError as error:
        if not is_hub_id(locate_model(model.base)):
            raise
        return None, (f"memory is not planned, because the model's shape is not known here: {error}",)


def _is_tuned(recipe: Recipe) -> bool:
    return recipe.model.adapter == "run"


def _row_sizes(recipe: Recipe, run: RunDirectory) -> RowSizes | None:
    """Return how long the rows of the dataset are; None where it is not there yet."""
    loss = finetune_settings(recipe.finetune).loss
    if not run.exists(TRAIN) or (loss == "options" and (has_several(recipe) or not _is_tuned(recipe))):
        return None
    return bound_sizes(load_examples(run, "train"), loss, recipe.seed)


def _known_micro_batch(recipe: Recipe, inventory: Inventory, shape: ModelShape | None) -> int | None:
    """Return the most rows at once that this hardware was found to hold; None where nothing is known.

    Records are by the hash of the weights: it is taken only where this hardware has a record, and of no hub's model.

    Raises:
        StorageError: the file of records is damaged.
    """
    if shape is None or not _is_tuned(recipe) or has_several(recipe) or is_hub_id(locate_model(recipe.model.base)):
        return None
    if not has_record(hardware_of(inventory)):
        return None
    return known_micro_batch(memory_parts(recipe, model_hash(recipe.model.base, recipe.model.revision), inventory))


def _estimate_training(recipe: Recipe, run: RunDirectory, plan: Plan) -> TrainingEstimate:
    """Return what tuning the adapter is expected to take."""
    if not _is_tuned(recipe):
        return TrainingEstimate(f"model.adapter is {recipe.model.adapter}: nothing is tuned")
    if has_several(recipe):
        return TrainingEstimate("several adapters: their paces are kept one by one as they end")
    if run.exists(TRAIN):
        rows = num_rows(load_examples(run, "train"), finetune_settings(recipe.finetune).loss, recipe.seed)
    else:
        rows = round(recipe.dataset.records * recipe.dataset.splits[0])
    try:
        pace = known_pace(pace_parts(recipe, plan.train, hardware_of(plan.inventory)))
    except StorageError as error:
        return TrainingEstimate(str(error))
    epochs = finetune_settings(recipe.finetune).epochs
    return estimate_training(pace, rows * epochs, plan.inventory, recipe.cluster.prices)


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
    plan, work = outlook.plan, outlook.work
    for row in (
        ("inventory", _describe(plan.inventory), plan.inventory.source),
        *[("note", "", note) for note in plan.notes],
        *(adapter_rows(outlook.adapters) or _training_rows(plan.train, outlook.training)),
        *_rows(plan, work),
        *_estimate_rows(plan, work, outlook.generation),
        ("scoring tasks", str(plan.evaluate.tasks.value), plan.evaluate.tasks.reason),
    ):
        table.add_row(*row)
    return render_table(table, 110).rstrip()


def _training_rows(train: TrainPlan, estimate: TrainingEstimate) -> list[tuple[str, str, str]]:
    """Return how the adapter is tuned; one line alone where none is."""
    if estimate.reason.endswith("nothing is tuned"):
        return [("training", "none", estimate.reason)]
    least, most = train.least_workers, train.workers
    count = str(most.value) if least.value == most.value else f"{least.value} to {most.value}"
    where = ", ".join(f"{key}={value}" for key, value in train.selector.items())
    memory = "not known" if train.memory_bytes is None else _in_gib(train.memory_bytes)
    rows = [
        ("training workers", count, f"{most.reason}; {least.reason}"),
        *([("training nodes", where, "one kind of GPU: a step waits for its slowest worker")] if where else []),
        ("threads a worker", str(train.threads.value), train.threads.reason),
        (
            "global batch",
            f"{most.value} × {train.micro_batch.value} × {train.accumulation.value}",
            "workers × micro-batch × accumulation; the recipe's, whatever the workers",
        ),
        ("micro-batch", str(train.micro_batch.value), train.micro_batch.reason),
        ("training precision", train.dtype.value, train.dtype.reason),
        ("training quantization", train.quantization.value, train.quantization.reason),
        ("checkpointing", "yes" if train.checkpointing.value else "no", train.checkpointing.reason),
        ("optimizer", train.optimizer.value, train.optimizer.reason),
        ("attention", train.attention.value, train.attention.reason),
        ("memory a worker", memory, "expected at the fullest moment, of its GPU or of the node"),
    ]
    if estimate.hours is None or estimate.tokens is None:
        return [*rows, ("training hours", "not known", estimate.reason)]
    rows.append(
        ("training tokens", f"{estimate.tokens:,}", f"{estimate.rows:,} rows, {estimate.tokens_per_s:,.0f} a second")
    )
    rows.append(("training hours", f"{estimate.hours:.3g}", estimate.reason))
    return rows + (
        [("training cost", f"{estimate.cost:.4g}", estimate.cost_reason)] if estimate.cost is not None else []
    )


def _rows(plan: Plan, work: dict[str, Any]) -> list[tuple[str, str, str]]:
    generate = plan.generate
    return [
        ("cells to answer", *_describe_work(work)),
        *[(f"actors on {one.name}", str(one.actors.value), one.actors.reason) for one in generate.pools],
        *[("left out", one.name, one.reason) for one in generate.left_out],
        ("precision", generate.dtype.value, generate.dtype.reason),
        ("quantization", generate.quantization.value, generate.quantization.reason),
        ("slots", str(generate.slots.value), generate.slots.reason),
        ("key-value cache", _in_gib(generate.cache_bytes.value), generate.cache_bytes.reason),
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


def _in_gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size else "–"


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
