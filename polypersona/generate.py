"""The stage generate: reads the panel and instrument (or the test split) and the adapter, writes the responses.

`ray.data.range(shards)` → a pool of actors, each holding an engine → one Parquet file a shard. A shard's file appears
whole under its own name and is its commit, so a restart answers what is not there yet and nothing twice. The first
commit fixes the content in run.json: a recipe that would change it is refused, one that asks for more gets a
further layer of shards, one that changes speed goes on.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from polypersona.answering import Task
from polypersona.content import content_parts, extend_ledger, fingerprint_of, refuse_changes
from polypersona.engines.settings import Weights, build_settings, locate_weights, refuse_unsupported
from polypersona.errors import RecipeChangedError, RunFailedError, TooManyQuarantinedError
from polypersona.events import EventLog
from polypersona.ledger import QUARANTINE, Ledger, committed_shards, ledger_from
from polypersona.population import Population, item_hashes, load_population, panel_digests
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.policy import freeze_plan, plan_generation
from polypersona.shard_actor import Job, library_versions
from polypersona.shard_pool import answer_shards
from polypersona.shardfile import read_shard
from polypersona.storage import RunDirectory, load_run, update_run


def run(recipe: Recipe) -> dict[str, Any]:
    """Answer every cell that is not answered yet.

    Returns:
        A summary: `run`, `fingerprint`, `shards`, `planned`, `committed`, `quarantined`, `answered` (by this call),
        `seconds`, `skipped` (whether there was nothing to do), and `warnings` where there are any.

    Raises:
        RecipeChangedError: the recipe would change the content of the run; nothing is touched.
        TooManyQuarantinedError: finished, with more quarantined than `generate.max_quarantined`.
        RunFailedError: no cell was answered, or a shard was left out.
    """
    begin = time.monotonic()
    refuse_unsupported(recipe)
    directory = RunDirectory.at(recipe.location)
    population = load_population(recipe, directory)
    weights = locate_weights(recipe, directory)
    stored = load_run(directory)
    started = _start(recipe, stored, directory, population, weights)
    pending = sorted(set(range(started.ledger.num_shards)) - committed_shards(directory, started.fingerprint))
    if pending:
        _refuse_smaller(started.ledger, pending, population, directory)
        update_run(directory, started.record)
        _answer_pending(recipe, started, directory, population, weights, pending)
        _refuse_gaps(directory, started)
    summary = _summary(directory, started, pending, population, time.monotonic() - begin)
    if weights.warnings:
        summary["warnings"] = list(weights.warnings)
    is_recorded = stored.get("stages", {}).get("generate", {}).get("planned") == summary["planned"]
    if pending or not is_recorded:  # the latter where the driver was killed after its last commit
        update_run(directory, {"stages": {"generate": {"state": "finished", **summary}}})
    _judge(recipe, directory, started, summary)
    return summary


@dataclass(frozen=True)
class Start:
    """What a start has settled: the run's frozen values, its fingerprint and ledger, and what run.json gets."""

    frozen: dict[str, Any]
    fingerprint: str
    ledger: Ledger
    record: dict[str, Any]


def _start(
    recipe: Recipe, stored: dict[str, Any], directory: RunDirectory, population: Population, weights: Weights
) -> Start:
    is_first = not committed_shards(directory, stored.get("fingerprint", "none yet"))
    frozen, plan = stored.get("frozen", {}), stored.get("plan", {})
    if is_first:
        decided = plan_generation(recipe, start_ray(recipe.cluster.limits), weight_bytes=weights.model_bytes)
        frozen, plan = freeze_plan(recipe, decided), {**plan, "generate": asdict(decided)}
    parts = content_parts(recipe, frozen, weights, population)
    if is_first:
        panel = panel_digests(population.personas, [len(population.personas)])[len(population.personas)]
        fingerprint = fingerprint_of(parts, item_hashes(population), panel)
        ledger, items = Ledger(frozen["shard_personas"]), {}
    else:
        refuse_changes(directory.path(), stored, parts, recipe, population)
        fingerprint, ledger = stored["fingerprint"], ledger_from(stored["ledger"])
        items = stored["content"]["items"]
    ledger = extend_ledger(ledger, recipe, population)
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "fingerprint": fingerprint,
        "content": {"parts": parts, "items": {**items, **item_hashes(population)}},
        "frozen": frozen,
        "plan": plan,
        "ledger": ledger.as_json(),
        "versions": library_versions(),
    }
    return Start(frozen, fingerprint, ledger, record)


def _refuse_smaller(ledger: Ledger, pending: list[int], population: Population, directory: RunDirectory) -> None:
    """Refuse a recipe that no longer holds personas or items which shards still to be answered need."""
    known = set(population.item_keys)
    for index in sorted({ledger.shard(number).layer for number in pending}):
        box = ledger.layers[index].box
        lost = [key for key in box.items if key not in known]
        if box.personas > len(population.personas) or lost:
            missing = f"item {lost[0]!r}" if lost else f"{box.personas:,} personas"
            raise RecipeChangedError(
                f"{directory.path()} has unanswered shards that need {missing}, which the recipe no longer asks for.",
                "Set the panel and instrument back until the run is finished.",
            )


def _answer_pending(
    recipe: Recipe,
    started: Start,
    directory: RunDirectory,
    population: Population,
    weights: Weights,
    pending: list[int],
) -> None:
    inventory = start_ray(recipe.cluster.limits)
    plan = plan_generation(recipe, inventory, len(pending), weights.model_bytes)
    session = uuid.uuid4().hex[:12]
    job = Job(
        run=directory,
        fingerprint=started.fingerprint,
        ledger=started.ledger,
        settings=build_settings(recipe, started.frozen, weights),
        weights=weights,
        task=Task(
            seed=recipe.seed,
            is_shuffled=recipe.generate.order == "random",
            shows_options=recipe.instrument.show_options != "none",
            adapter=weights.adapter_name,
            max_attempts=recipe.generate.max_attempts,
            is_interview=recipe.generate.context == "previous",
        ),
        session=session,
        pending=np.array(pending, dtype=np.int64),
        load_population=partial(ray.get, ray.put(population)),
    )
    log = EventLog(directory, "driver")
    log.write(
        "start", session=session, fingerprint=started.fingerprint, shards=len(pending), actors=asdict(plan.actors)
    )
    for warning in weights.warnings:
        log.write("warning", session=session, text=warning)
    asked = population.asked
    done = started.ledger.num_cells - sum(started.ledger.num_shard_cells(number, asked) for number in pending)
    with Progress("generate", started.ledger.num_cells, "responses", done=done) as progress:
        for part in _in_order(started.ledger, pending, population):
            for stats in answer_shards(replace(job, pending=np.array(part, dtype=np.int64)), plan):
                progress.advance(int(stats["rows"] + stats["quarantined"]))
    log.write("end", session=session, responses=progress.pace.done, seconds=round(progress.pace.elapsed_s, 3))


def _in_order(ledger: Ledger, pending: list[int], population: Population) -> list[list[int]]:
    """Return the pending shards in parts that are answered one after another.

    Where items have gates, a later layer may need the answers of an earlier one; else all shards are one part.
    """
    if not any(item.asked_if for item in population.items):
        return [pending]
    layers: dict[int, list[int]] = {}
    for number in pending:
        layers.setdefault(ledger.shard(number).layer, []).append(number)
    return [layers[index] for index in sorted(layers)]


def _refuse_gaps(directory: RunDirectory, started: Start) -> None:
    """Hold that what was to be answered is committed, whatever became of the rows of statistics on their way."""
    lost = set(range(started.ledger.num_shards)) - committed_shards(directory, started.fingerprint)
    if lost:
        raise RunFailedError(
            f"{len(lost)} of {started.ledger.num_shards} shards of {directory.path()} were not committed, the first "
            f"is {min(lost)}.",
            "Run the same command again.",
        )


def _summary(
    directory: RunDirectory, started: Start, pending: list[int], population: Population, seconds: float
) -> dict[str, Any]:
    planned = started.ledger.num_cells
    quarantined = sum(count for _, count in _quarantine_reasons(directory, started.fingerprint))
    return {
        "run": directory.path(),
        "fingerprint": started.fingerprint,
        "shards": started.ledger.num_shards,
        "planned": planned,
        "committed": planned - quarantined,
        "quarantined": quarantined,
        "answered": sum(started.ledger.num_shard_cells(number, population.asked) for number in pending),
        "seconds": round(seconds, 3),
        "skipped": not pending,
    }


def _quarantine_reasons(directory: RunDirectory, fingerprint: str) -> list[tuple[str, int]]:
    """Return the reasons of the quarantined rows, the commonest first."""
    reasons: Counter[str] = Counter()
    for name in directory.names(QUARANTINE, f"-{fingerprint}.parquet"):
        table, _ = read_shard(directory.read(name), directory.path(name))
        reasons.update(table.column("reason").to_pylist())
    return reasons.most_common()


def _judge(recipe: Recipe, directory: RunDirectory, started: Start, summary: dict[str, Any]) -> None:
    """Raise if the run has failed, or has more quarantined than the recipe allows."""
    if not summary["quarantined"]:
        return
    share = summary["quarantined"] / summary["planned"]
    reason, count = _quarantine_reasons(directory, started.fingerprint)[0]
    if not summary["committed"]:
        raise RunFailedError(
            f"None of {summary['planned']:,} cells was answered; the commonest reason ({count:,} cells): {reason}.",
            f"Mend that and delete {directory.path()}, or begin a new run.",
        )
    if share > recipe.generate.max_quarantined:
        raise TooManyQuarantinedError(
            f"{summary['quarantined']:,} of {summary['planned']:,} cells ({100 * share:.2f} %) are quarantined, more "
            f"than generate.max_quarantined ({100 * recipe.generate.max_quarantined:g} %); the commonest reason "
            f"({count:,} cells): {reason}.",
            f"Look at {directory.path(QUARANTINE)}, or raise generate.max_quarantined.",
        )
