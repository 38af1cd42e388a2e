"""The stage bench: reads a recipe and what its run has, measures this machine, writes a record for `plan`.

As many actors as a run would have on this machine answer side by side, each in a process of its own, without Ray: the
recipe's engine with the plan's precision, quantisation, slots and threads, whole personas of the recipe's panel drawn
with its seed, all their items. The run directory is only read.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polypersona.answering import Task, build_cells
from polypersona.content import content_parts, extend_ledger
from polypersona.engines.adapter_files import copy_folder
from polypersona.engines.settings import (
    ADAPTER,
    ADAPTER_CONFIG,
    Weights,
    build_settings,
    locate_weights,
    refuse_unsupported,
)
from polypersona.errors import EngineError, InfeasiblePlanError, RunFailedError
from polypersona.fingerprint import digest_of
from polypersona.ledger import Ledger, committed_shards
from polypersona.location import mask_secrets
from polypersona.measurement import Measured, Request, measure
from polypersona.population import Population, item_hashes, load_population, refuse_idle_panel
from polypersona.recipe import Recipe
from polypersona.records import seed_from
from polypersona.response_table import AskedCell
from polypersona.roster import has_several
from polypersona.scheduling.calibration import Calibration, Figures, load_calibrations, save_calibration
from polypersona.scheduling.estimate import devices_of
from polypersona.scheduling.generation_plan import GeneratePlan, freeze_plan, plan_generation
from polypersona.scheduling.inventory import WORKER_ENVIRONMENT, local_inventory, read_inventory
from polypersona.scheduling.machines import limit_inventory
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.storage import RunDirectory, load_run
from polypersona.training.artifacts import library_versions

MEASURE_S = 20.0
# What one process is given; an engine that is through asks them again.
MAX_CELLS, MAX_PERSONAS = 20_000, 4_000
# Below this share of a processor, the record says that the machine was busy.
BUSY_SHARE = 0.8
# Parts of a run's content that say which answers come out, not how long they take.
_NO_MATTER = ("seed", "model.adapter", "cells of the test split", "schema version")


def run(
    recipe: Recipe, seconds: float = MEASURE_S, announce: Callable[[str], object] = lambda _text: None
) -> dict[str, Any]:
    """Measure the recipe's generation on this machine and keep the record for `plan`.

    Args:
        recipe: what is asked, and of whom.
        seconds: how long to measure, after a warm-up that fills the slots once.
        announce: gets one sentence when the measurement begins, after all that can be refused.

    Returns:
        A summary: `hardware`, `date`, the counts and rates of `calibration.Figures`, `file`, and `warnings` where
        something limits what the record says.

    Raises:
        EngineError: the endpoint engine, which would cost money and measure somebody else's machine.
        InfeasiblePlanError: the plan is for GPUs, and this machine has none.
        StorageError: no test split yet, or the calibration file is damaged.
        RunFailedError: the engine fails.
    """
    _refuse_endpoint(recipe)
    refuse_unsupported(recipe)
    refuse_idle_panel(recipe)
    load_calibrations()  # a damaged file is named before the work
    directory = RunDirectory.at(recipe.location)
    population = load_population(recipe, directory)
    recipe, notes = as_it_is_now(recipe, directory)
    weights = locate_weights(recipe, directory)
    num_shards = extend_ledger(Ledger(recipe.generate.shard_personas), recipe, population).num_shards
    plan = plan_generation(recipe, read_inventory(recipe.cluster.limits), num_shards, weights.model_bytes)
    frozen = frozen_values(recipe, plan, directory)
    hardware, places = _places_here(recipe, plan)
    places = places[: plan.actors.value]
    with tempfile.TemporaryDirectory() as scratch:
        settings = build_settings(recipe, frozen, weights)
        if weights.adapter_run is not None:
            settings = replace(settings, adapter=str(copy_folder(weights.adapter_run, ADAPTER, Path(scratch))))
        requests = [
            Request(
                settings,
                personas,
                max_personas=frozen["shard_personas"],
                max_attempts=recipe.generate.max_attempts,
                is_interview=recipe.generate.context == "previous",
                seconds=seconds,
                environment=_environment(place, plan),
            )
            for place, personas in zip(places, _draw_sample(recipe, population, weights, len(places)), strict=True)
        ]
        announce(f"Measuring {len(places)} at once for {seconds:g} s, after start-up and a warm-up.")
        measured = _measure_side_by_side(requests)
    calibration = Calibration(
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware,
        parts=workload_parts(recipe, frozen, weights, population, hardware),
        figures=_add_up(measured),
        versions=library_versions(),
        notes=(*notes, *_notes(measured), *_busy_note(recipe, plan, measured)),
    )
    summary = {"hardware": calibration.hardware, "date": calibration.date, "file": save_calibration(calibration)}
    figures = {**asdict(calibration.figures), **calibration.figures.rates()}
    return {**summary, **figures, "warnings": [*weights.warnings, *calibration.notes]}


def as_it_is_now(recipe: Recipe, directory: RunDirectory) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the adapter that is there: none where the run's own is still to be tuned, and a note."""
    is_missing = recipe.generate.engine in MODEL_ENGINES and recipe.model.adapter == "run"
    is_several = has_several(recipe)
    if not is_missing or (directory.exists(ADAPTER_CONFIG) and not is_several):
        return recipe, ()
    alone = recipe.model.model_copy(update={"adapter": "none"})
    note = "one base model, in place of the run's several adapters"
    note = note if is_several else "the base model without the adapter, which is not tuned yet"
    return recipe.model_copy(update={"model": alone}), (note,)


def frozen_values(recipe: Recipe, plan: GeneratePlan, directory: RunDirectory) -> dict[str, Any]:
    """Return what a start of generate would use: the run's frozen values once it has a shard, else the plan's."""
    begun = begun_with(directory)
    return freeze_plan(recipe, plan) if begun is None else begun


def begun_with(directory: RunDirectory) -> dict[str, Any] | None:
    """Return what a run's first start of generate has frozen; None before it has a shard."""
    stored = load_run(directory)
    has_begun = committed_shards(directory, stored.get("fingerprint", "none yet"))
    return dict(stored["frozen"]) if has_begun else None


def workload_parts(
    recipe: Recipe, frozen: Mapping[str, Any], weights: Weights, population: Population, hardware: str
) -> dict[str, Any]:
    """Return what a pace depends on: hardware, engine, weights, and everything that is asked except of whom.

    The panel counts by its source, so that one that only grows keeps its record.
    """
    content = content_parts(recipe, frozen, weights, population)
    parts = {key: value for key, value in content.items() if key not in _NO_MATTER}
    return {
        **parts,
        "hardware": hardware,
        "has adapter": bool(weights.adapter_hash),
        "cache_bytes": frozen.get("cache_bytes", 0),
        "shard_personas": frozen["shard_personas"],
        "items": digest_of(item_hashes(population)),
        "panel.source": mask_secrets(recipe.panel.source),
    }


def _refuse_endpoint(recipe: Recipe) -> None:
    if recipe.generate.engine == "endpoint":
        raise EngineError(
            "generate.engine: endpoint cannot be measured: its pace is the server's, and its answers cost money.",
            "Choose another engine for `polypersona bench`.",
        )


def _places_here(recipe: Recipe, plan: GeneratePlan) -> tuple[str, list[int]]:
    """Return the kind of hardware of this machine's first place for an actor, and all places of that kind."""
    here = limit_inventory(local_inventory(), recipe.cluster.limits)
    places = devices_of(recipe.generate.engine, plan, here)
    if not places:
        raise InfeasiblePlanError(
            f"The plan needs {'a GPU' if plan.gpus_per_actor else 'a CPU'}, and this machine offers none.",
            "Run `polypersona bench` on a machine of the kind that generates.",
        )
    return places[0], [number for number, place in enumerate(places) if place == places[0]]


def _draw_sample(
    recipe: Recipe, population: Population, weights: Weights, count: int
) -> list[tuple[tuple[AskedCell, ...], ...]]:
    """Return for each process the cells of whole personas, drawn with the recipe's seed; no two share a persona."""
    task = Task.of(recipe, weights.adapter_name)
    ledger = extend_ledger(Ledger(shard_personas=1), recipe, population)
    drawn = random.Random(seed_from(recipe.seed, "bench")).sample(
        range(ledger.num_shards), min(ledger.num_shards, count * MAX_PERSONAS)
    )
    samples = []
    for place in range(count):
        personas: list[tuple[AskedCell, ...]] = []
        num_cells = 0
        for number in drawn[place::count]:
            cells = tuple(build_cells(ledger.shard(number), ledger, population, task))
            num_cells += len(cells)
            if cells and (num_cells <= MAX_CELLS or not personas):
                personas.append(cells)
        samples.append(tuple(personas))
    return samples


def _environment(place: int, plan: GeneratePlan) -> dict[str, str]:
    """Return an actor's variables: one thread, and its own GPU or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(place + 1)]
    return {**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": devices[place] if plan.gpus_per_actor else ""}


def _measure_side_by_side(requests: Sequence[Request]) -> list[Measured]:
    """Return what each process measured, all of them at the same time."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(len(requests), mp_context=context) as pool:
            return list(pool.map(measure, requests))
    except BrokenProcessPool as error:
        raise RunFailedError(
            "A process died while it was measured, as it does when memory runs out.",
            "Lower generate.actors or generate.slots, or choose a smaller model.base.",
        ) from error


def _add_up(measured: Sequence[Measured]) -> Figures:
    """Return the figures of all processes: counts added, memory and start-up the largest."""
    found = [one.figures for one in measured]

    def most(name: str) -> Any:
        values = [getattr(figures, name) for figures in found]
        return None if None in values else max(values)

    cpu_s = [figures.cpu_s for figures in found if figures.cpu_s is not None]
    return Figures(
        actors=len(found),
        rows=sum(figures.rows for figures in found),
        seconds=sum(figures.seconds for figures in found),
        cpu_s=sum(cpu_s) if len(cpu_s) == len(found) else None,
        prompt_tokens=sum(figures.prompt_tokens for figures in found),
        reused_prompt_tokens=sum(figures.reused_prompt_tokens for figures in found),
        new_tokens=sum(figures.new_tokens for figures in found),
        start_up_s=most("start_up_s"),
        peak_rss_bytes=most("peak_rss_bytes"),
        peak_device_bytes=most("peak_device_bytes"),
    )


def _notes(measured: Sequence[Measured]) -> list[str]:
    """Return what limits the figures."""
    notes = []
    if not all(one.is_full for one in measured):
        notes.append("the slots were not all filled in the time given, so a run is faster")
    if failed := sum(one.failed for one in measured):
        reason = next(one.reason for one in measured if one.failed)
        notes.append(f"{failed:,} of {sum(one.figures.rows for one in measured):,} cells failed, the first: {reason}")
    if (passes := max(one.passes for one in measured)) >= 2:
        notes.append(f"the sample was asked {passes:.0f} times over")
    return notes


def _busy_note(recipe: Recipe, plan: GeneratePlan, measured: Sequence[Measured]) -> list[str]:
    """Return whether other work took the processors: an actor on a CPU computes all the time."""
    figures = _add_up(measured)
    if plan.gpus_per_actor or recipe.generate.engine not in MODEL_ENGINES or figures.cpu_s is None:
        return []
    share = figures.cpu_s / (figures.seconds * plan.threads.value)
    if share >= BUSY_SHARE:
        return []
    return [f"other work took the processors, an actor got {100 * share:.0f} % of one: a free machine is faster"]
