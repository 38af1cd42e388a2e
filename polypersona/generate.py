"""The stage generate: reads the panel and instrument (or the test split) and the adapter, writes the responses.

shard numbers → a pool of actors, each holding an engine → one Parquet file a shard. A shard's file appears
whole under its own name and is its commit, so a restart answers what is not there yet and nothing twice. The first
commit fixes the content in run.json: a recipe that would change it is refused, one that asks for more gets a
further layer of shards, one that changes speed goes on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypersona import driver
from polypersona.adapter_choice import choose_adapters, frozen_choice
from polypersona.attempts import FOLDER as ATTEMPTS
from polypersona.content import content_parts, extend_ledger, fingerprint_of, kept_parts, refuse_changes
from polypersona.engines.settings import Weights, base_shape, locate_weights, refuse_unsupported
from polypersona.errors import PolypersonaError, RunFailedError
from polypersona.ledger import Ledger, committed_shards, ledger_from, shard_name
from polypersona.population import (
    Population,
    item_hashes,
    load_population,
    panel_digests,
    refuse_idle_panel,
    refuse_misread_options,
)
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.rounds import delete_leftovers
from polypersona.scheduling.generation_plan import freeze_plan, plan_generation
from polypersona.scheduling.inventory import start_ray
from polypersona.shard_actor import library_versions
from polypersona.storage import RunDirectory, load_run, update_run

_log = logging.getLogger(__name__)


def run(recipe: Recipe, population: Population | None = None, weights: Weights | None = None) -> dict[str, Any]:
    """Answer every cell that is not answered yet.

    Args:
        recipe: where and how.
        population: who is asked what; the recipe's own unless given.
        weights: what answers; the recipe's own unless given.

    Returns:
        A summary: `run`, `fingerprint`, `shards`, `planned`, `committed`, `quarantined`, `answered` (by this call),
        `seconds`, `skipped` (whether there was nothing to do), and `warnings` where there are any.

    Raises:
        QuestionbankError: written answers could not be told apart.
        RecipeError: a key of panel or instrument that would do nothing.
        RecipeChangedError: the recipe would change the content of the run; nothing is touched.
        RunStoppedError: `generate.max_hours` were over; what is committed is kept, and run.json says `stopped`.
        TooManyQuarantinedError: finished, with more quarantined than `generate.max_quarantined`.
        RunFailedError: no cell was answered, the first shards had no answer, or a shard was left out.
    """
    begin = time.monotonic()
    refuse_unsupported(recipe)
    refuse_idle_panel(recipe)
    directory = RunDirectory.at(recipe.location)
    stored = load_run(directory)
    is_first = not committed_shards(directory, stored.get("fingerprint", "none yet"))
    if population is None:
        population = load_population(recipe, directory)
        if is_first:
            refuse_misread_options(recipe, population.items)
    weights = weights or locate_weights(recipe, directory)
    weights = choose_adapters(recipe, weights, population, {} if is_first else stored["frozen"])
    started = _start(recipe, stored, directory, population, weights, is_first=is_first)
    pending = sorted(set(range(started.ledger.num_shards)) - committed_shards(directory, started.fingerprint))
    if pending:
        driver.refuse_smaller(started.ledger, pending, population, directory)
        update_run(directory, started.record)
        _clear_away(directory, started)
        _answer_pending(recipe, started, directory, population, weights, pending)
        _refuse_gaps(directory, started)
    reasons = driver.quarantine_reasons(directory, started.fingerprint)
    quarantined = sum(count for _, count in reasons)
    summary = _summary(directory, started, pending, population, quarantined, time.monotonic() - begin)
    if weights.warnings:
        summary["warnings"] = list(weights.warnings)
    recorded = stored.get("stages", {}).get("generate", {})
    is_recorded = (recorded.get("state"), recorded.get("planned")) == ("finished", summary["planned"])
    if pending or not is_recorded:  # the latter where the driver was killed after its last commit
        update_run(directory, {"stages": {"generate": {"state": "finished", **summary}}})
    driver.judge(recipe, directory, summary["planned"], summary["committed"], reasons)
    return summary


@dataclass(frozen=True)
class Start:
    """What a start has settled: the run's frozen values, its fingerprint and ledger, and what run.json gets."""

    frozen: dict[str, Any]
    fingerprint: str
    ledger: Ledger
    record: dict[str, Any]


def _start(
    recipe: Recipe,
    stored: dict[str, Any],
    directory: RunDirectory,
    population: Population,
    weights: Weights,
    *,
    is_first: bool,
) -> Start:
    frozen, plan = stored.get("frozen", {}), stored.get("plan", {})
    if is_first:
        inventory = start_ray(recipe.cluster.limits)
        decided = plan_generation(recipe, inventory, weight_bytes=weights.model_bytes, shape=base_shape(recipe))
        frozen, plan = freeze_plan(recipe, decided), {**plan, "generate": asdict(decided)}
    frozen = {**frozen, **frozen_choice(weights, {} if is_first else frozen)}
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
        "content": {
            "parts": {**kept_parts(stored, is_first=is_first), **parts},
            "items": {**items, **item_hashes(population)},
        },
        "frozen": frozen,
        "plan": plan,
        "ledger": ledger.as_json(population.asked),
        "versions": library_versions(),
    }
    return Start(frozen, fingerprint, ledger, record)


def _clear_away(directory: RunDirectory, started: Start) -> None:
    """Delete what killed steps left of shards that are committed."""
    delete_leftovers(directory, started.fingerprint)
    done = committed_shards(directory, started.fingerprint)
    finished = {f"{ATTEMPTS}/{shard_name(number, started.fingerprint)}" for number in done}
    for name in directory.names(ATTEMPTS, ".json"):
        if f"{name.removesuffix('.json')}.parquet" in finished:
            directory.delete(name)


def _answer_pending(
    recipe: Recipe,
    started: Start,
    directory: RunDirectory,
    population: Population,
    weights: Weights,
    pending: list[int],
) -> None:
    _tell_of_larger(recipe, started.ledger, pending, directory)
    ledger = started.ledger
    session = driver.open_session(
        recipe, directory, population, weights, started.frozen, started.fingerprint, ledger, pending
    )
    done = _done_cells(ledger, pending, population)
    with (
        Progress("generate", ledger.num_cells, "responses", done=done) as progress,
        _recounted(progress, directory, started, population),
    ):
        is_over = driver.answer(session, progress, _num_responses, stops_early=True)
    if not is_over:
        num_done = len(committed_shards(directory, started.fingerprint))
        facts = {"state": "stopped", "planned": ledger.num_cells, "shards": ledger.num_shards, "shards_done": num_done}
        update_run(directory, {"stages": {"generate": facts}})
        raise driver.stopped(recipe, "generate", num_done, ledger.num_shards, directory)


def _tell_of_larger(recipe: Recipe, ledger: Ledger, pending: Sequence[int], directory: RunDirectory) -> None:
    """Say so where the run was begun with more waves or draws than the recipe asks for now: it is finished as begun."""
    boxes = [ledger.layers[index].box for index in {ledger.shard(number).layer for number in pending}]
    for name in ("waves", "draws"):
        begun, asked = max(getattr(box, name) for box in boxes), getattr(recipe.generate, name)
        if begun > asked:
            _log.warning(
                "%s was begun with generate.%s: %d and is finished as it was begun; %d is for a run of another name.",
                directory.path(), name, begun, asked,
            )  # fmt: skip


def _num_responses(stats: Mapping[str, Any]) -> int:
    return int(stats["rows"] + stats["quarantined"])


def _done_cells(ledger: Ledger, pending: Sequence[int], population: Population) -> int:
    return ledger.num_cells - sum(ledger.num_shard_cells(number, population.asked) for number in pending)


@contextlib.contextmanager
def _recounted(progress: Progress, directory: RunDirectory, started: Start, population: Population) -> Iterator[None]:
    """Count what is committed at the end, however it came: the actors' rows of statistics lag behind their commits."""
    try:
        yield
    finally:
        with contextlib.suppress(PolypersonaError):
            lost = set(range(started.ledger.num_shards)) - committed_shards(directory, started.fingerprint)
            progress.settle(_done_cells(started.ledger, sorted(lost), population))


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
    directory: RunDirectory,
    started: Start,
    pending: list[int],
    population: Population,
    quarantined: int,
    seconds: float,
) -> dict[str, Any]:
    planned = started.ledger.num_cells
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
