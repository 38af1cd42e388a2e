"""The stage generate: reads the panel and instrument (or the test split) and the adapter, writes the responses.

`ray.data.range(shards)` → a pool of actors, each holding an engine → one Parquet file a shard. A shard's file appears
whole under its own name and is its commit, so a restart answers what is not there yet and nothing twice. The first
start fixes the content in run.json: a recipe that would change it is refused, one that asks for more gets a
further layer of shards, one that changes speed goes on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from polypersona.answering import ShardRows, Task, answer_cells, build_cells, build_rows, quarantine_all
from polypersona.content import content_parts, extend_ledger, fingerprint_of, refuse_changes
from polypersona.engines.base import Engine, EngineSettings
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import (
    ADAPTER,
    Weights,
    build_settings,
    copy_folder,
    locate_weights,
    refuse_unsupported,
)
from polypersona.errors import PolypersonaError, RecipeChangedError, RunFailedError, TooManyQuarantinedError
from polypersona.events import EventLog
from polypersona.ledger import (
    QUARANTINE,
    RESPONSES,
    AttemptCounter,
    Ledger,
    Shard,
    committed_shards,
    ledger_from,
    shard_name,
)
from polypersona.population import Population, item_hashes, load_population, panel_digests
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.policy import GeneratePlan, plan_generation
from polypersona.shardfile import Footer, build_quarantine_table, build_table, read_shard, render_shard
from polypersona.storage import RunDirectory, load_run, update_run

# Ray Data plans one read task a block; more blocks than this cost more than they give.
MAX_BLOCKS = 4096


@dataclass(frozen=True)
class Job:
    """Everything an actor needs. Picklable; the population travels once, through the object store."""

    run: RunDirectory
    fingerprint: str
    ledger: Ledger
    settings: EngineSettings
    weights: Weights
    task: Task
    session: str
    pending: Any  # shard numbers, an integer array
    population: Any  # an object reference


def run(recipe: Recipe) -> dict[str, Any]:
    """Answer every cell that is not answered yet.

    Returns:
        A summary: `run`, `fingerprint`, `shards`, `planned`, `committed`, `quarantined`, `answered` (by this call),
        `seconds`, `skipped` (whether there was nothing to do).

    Raises:
        RecipeChangedError: the recipe would change the content of the run; nothing is touched.
        TooManyQuarantinedError: finished, with more quarantined than `generate.max_quarantined`.
        RunFailedError: no cell was answered.
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
    summary = _summary(directory, started, pending, population, time.monotonic() - begin)
    update_run(directory, {"stages": {"generate": summary}}) if pending else None
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
    is_first = "ledger" not in stored
    frozen, plan = stored.get("frozen", {}), stored.get("plan", {})
    if is_first:
        decided = plan_generation(recipe, start_ray(recipe.cluster.limits), weight_bytes=weights.model_bytes)
        frozen, plan = _freeze(recipe, decided), {**plan, "generate": asdict(decided)}
    parts = content_parts(recipe, frozen, weights, population)
    if is_first:
        panel = panel_digests(population.personas, [len(population.personas)])[len(population.personas)]
        fingerprint = fingerprint_of(parts, item_hashes(population), panel)
        ledger = Ledger(frozen["shard_personas"])
    else:
        refuse_changes(directory.path(), stored, parts, recipe, population)
        fingerprint, ledger = stored["fingerprint"], ledger_from(stored["ledger"])
    ledger = extend_ledger(ledger, recipe, population)
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "fingerprint": fingerprint,
        "fingerprint_parts": parts,
        "items": item_hashes(population),
        "frozen": frozen,
        "plan": plan,
        "ledger": ledger.as_json(),
        "versions": _versions(),
    }
    return Start(frozen, fingerprint, ledger, record)


def _freeze(recipe: Recipe, plan: GeneratePlan) -> dict[str, Any]:
    return {
        "engine": recipe.generate.engine,
        "dtype": plan.dtype.value,
        "quantization": plan.quantization.value,
        "slots": plan.slots.value,
        "threads": plan.threads.value,
        "shard_personas": recipe.generate.shard_personas,
    }


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
        ),
        session=session,
        pending=np.array(pending, dtype=np.int64),
        population=ray.put(population),
    )
    log = EventLog(directory, "driver")
    log.write(
        "start", session=session, fingerprint=started.fingerprint, shards=len(pending), actors=asdict(plan.actors)
    )
    asked = population.asked
    done = started.ledger.num_cells - sum(started.ledger.num_shard_cells(number, asked) for number in pending)
    with Progress("generate", started.ledger.num_cells, "responses", done=done) as progress:
        for stats in _map_shards(job, plan):
            progress.advance(int(stats["rows"] + stats["quarantined"]))
            log.write("shard", **stats)
    log.write("end", session=session)


def _map_shards(job: Job, plan: GeneratePlan) -> Iterator[dict[str, Any]]:
    """Yield one row of statistics per shard, as the shards are committed."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # a shard may take hours
    count = len(job.pending)
    stats = ray.data.range(count, override_num_blocks=min(count, MAX_BLOCKS)).map_batches(
        ShardActor,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=plan.actors.value),
        num_cpus=plan.cpus_per_actor,
        num_gpus=plan.gpus_per_actor,
    )
    try:
        for batch in stats.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except RayTaskError as error:
        raise _named(error) from error


class ShardActor:
    """A member of the pool: holds an engine, answers shards, writes their files.

    Args:
        job: what the run is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._population: Population = ray.get(job.population)
        self._engine: Engine | None = None
        self._scratch = tempfile.TemporaryDirectory()
        writer = f"actor-{uuid.uuid4().hex[:8]}"
        self._log = EventLog(job.run, writer)
        self._attempts = AttemptCounter(job.run, job.fingerprint, job.session, job.task.max_attempts)
        self._log.write("start", session=job.session, host=platform.node(), versions=_versions())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer and commit one shard; `batch["id"]` is its place among the pending ones."""
        shard = self._job.ledger.shard(int(self._job.pending[int(batch["id"][0])]))
        begin = time.monotonic()
        counts = self._read_counts(shard) or self._commit(shard, self._answer(shard))
        seconds = time.monotonic() - begin
        row = {"shard": shard.number, **counts, "seconds": seconds}
        return {key: np.array([value]) for key, value in row.items()}

    def _answer(self, shard: Shard) -> ShardRows:
        """Return the shard's rows; after its last failed attempt, all of them quarantined."""
        task, cells = self._job.task, build_cells(shard, self._job.ledger, self._population, self._job.task)
        while True:
            attempts = self._attempts.begin(shard.number)
            if self._attempts.is_exhausted(attempts):
                self._log.write("give up", shard=shard.number, failures=attempts.failures)
                return quarantine_all(shard, cells, attempts.failures, task)
            try:
                return build_rows(shard, cells, answer_cells(self._load(), cells, task.max_attempts), task)
            except PolypersonaError:  # a user's mistake, which no further attempt mends
                self._attempts.clear(shard.number)
                raise
            except Exception as error:  # noqa: BLE001 an engine may raise anything, and one shard must not end the run
                reason = f"{type(error).__name__}: {error}"
                self._attempts.fail(shard.number, reason)
                self._log.write("failure", shard=shard.number, reason=reason)
                self._unload()

    def _commit(self, shard: Shard, rows: ShardRows) -> dict[str, int]:
        """Write the shard's files, the quarantined rows first, and return the counts."""
        job, name = self._job, shard_name(shard.number, self._job.fingerprint)
        committed, quarantined = len(rows.committed), len(rows.quarantined)
        footer = Footer(job.fingerprint, shard.number, committed + quarantined, committed, quarantined)
        if rows.quarantined:
            job.run.write(f"{QUARANTINE}/{name}", render_shard(build_quarantine_table(rows.quarantined), footer))
        else:
            job.run.delete(f"{QUARANTINE}/{name}")  # what an attempt left that died before its commit
        data = render_shard(build_table(rows.committed), footer)
        job.run.write(f"{RESPONSES}/{name}", data)
        self._attempts.clear(shard.number)
        reasons = Counter(reason for _, reason in rows.quarantined)
        self._log.write(
            "commit",
            shard=shard.number,
            rows=committed,
            quarantined=quarantined,
            reasons=dict(reasons.most_common(5)),
            file_hash=file_hash(data),
        )
        return {"rows": committed, "quarantined": quarantined}

    def _read_counts(self, shard: Shard) -> dict[str, int] | None:
        """Return the counts of a shard that is committed already, by this actor before a restart."""
        name = f"{RESPONSES}/{shard_name(shard.number, self._job.fingerprint)}"
        if not self._job.run.exists(name):
            return None
        _, footer = read_shard(self._job.run.read(name), self._job.run.path(name))
        return {"rows": footer.committed, "quarantined": footer.quarantined}

    def _load(self) -> Engine:
        if self._engine is None:
            settings, weights = self._job.settings, self._job.weights
            if weights.adapter_run is not None:
                folder = copy_folder(weights.adapter_run, ADAPTER, Path(self._scratch.name))
                settings = replace(settings, adapter=str(folder))
            self._engine = load_engine(settings)
        return self._engine

    def _unload(self) -> None:
        """Drop the engine: after a failure nothing is known of its state."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def file_hash(data: bytes) -> str:
    """Return the hex digest of a file's bytes, as the commit events record it."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


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


def _named(error: RayTaskError) -> Exception:
    """Return the named error that an actor raised, or a failure that carries what it said."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PolypersonaError) and not isinstance(cause, RayTaskError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    last = str(error).strip().splitlines()[-1]
    return RunFailedError(f"An actor failed outside the engine: {last}.", "Run the same command again to go on.")


def _versions() -> dict[str, str]:
    from polypersona import __version__

    return {
        "polypersona": __version__,
        "python": platform.python_version(),
        "ray": ray.__version__,
        "pyarrow": pa.__version__,
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }
