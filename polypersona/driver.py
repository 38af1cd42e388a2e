"""The driver's side of the pool: what the actors are given, in which order, when they are stopped, and how it ended.

Used by the stages that answer cells. Takes a recipe and what its run is frozen to; gives the end of the session, or a
named failure. The rows go from the actors to the run directory and never come here.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from polypersona.answering import Task
from polypersona.engines.settings import Weights, base_shape, build_settings
from polypersona.errors import (
    RecipeChangedError,
    RunFailedError,
    RunStoppedError,
    StorageError,
    TooManyQuarantinedError,
)
from polypersona.events import EventLog, read_events
from polypersona.ledger import QUARANTINE, Ledger
from polypersona.parquet import read_parquet
from polypersona.population import Population
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.rounds import current_quarantine
from polypersona.scheduling.generation_plan import GeneratePlan, plan_generation
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Decision, Inventory
from polypersona.scheduling.packing import choose_held
from polypersona.shard_actor import Job
from polypersona.shard_pool import answer_shards
from polypersona.storage import RunDirectory
from polypersona.telemetry import RayRecorder

# A session whose first so many shards (or one for each actor, if that is more) have not a single answer is stopped.
MIN_FAILING_SHARDS = 2


@dataclass(frozen=True)
class Session:
    """One driver's work on a run: what its actors get, and how many there are.

    Attributes:
        job: what an actor is given; its pending shards are those of the part that is being answered.
        plan: the decisions on the pool.
        parts: the shards, in groups that are answered one after another.
        log: the driver's events.
    """

    job: Job
    plan: GeneratePlan
    parts: tuple[tuple[int, ...], ...]
    log: EventLog

    @property
    def num_shards(self) -> int:
        """Shards of all parts."""
        return sum(map(len, self.parts))


def open_session(
    recipe: Recipe,
    directory: RunDirectory,
    population: Population,
    weights: Weights,
    frozen: Mapping[str, Any],
    fingerprint: str,
    ledger: Ledger,
    pending: Sequence[int],
    round: int = 0,
) -> Session:
    """Start Ray, plan the pool and return the session.

    Args:
        recipe: how to answer.
        directory: the run's.
        population: who is asked what.
        weights: what answers.
        frozen: what the run's first start has settled.
        fingerprint: the run's.
        ledger: the run's shards.
        pending: the shards to answer.
        round: the number of a retry; 0 is none.
    """
    inventory = start_ray(recipe.cluster.limits)
    held = _choose_held(weights, inventory, frozen)
    size = None if weights.model_bytes is None else weights.model_bytes * held.value
    shape = base_shape(recipe) if held.value == 1 else None
    plan = plan_generation(recipe, inventory, len(pending), size, frozen, shape)
    max_hours = recipe.generate.max_hours
    job = Job(
        run=directory,
        fingerprint=fingerprint,
        ledger=ledger,
        settings=build_settings(recipe, frozen, weights),
        weights=weights,
        task=Task.of(recipe, weights.adapter_name, weights.table),
        session=uuid.uuid4().hex[:12],
        pending=np.array(pending, dtype=np.int64),
        load_population=partial(ray.get, ray.put(population)),
        round=round,
        deadline=None if max_hours is None else time.time() + 3600 * max_hours,
        open_recorder=partial(RayRecorder, recipe.name, recipe.generate.engine),
        most_held=held.value,
    )
    log = EventLog(directory, "driver")
    facts: dict[str, Any] = {"round": round} if round else {}
    if weights.table is not None:
        facts |= {"adapters": weights.table.by_domain, "adapters_held": asdict(held)}
    kinds = [pool.name for pool in plan.pools]
    if before := other_kinds(directory, kinds):
        reason = f"{' and '.join(before)} answered so far, and now {' and '.join(kinds)}"
        log.write("reproducibility", session=job.session, declared="codes", reason=reason)
    log.write(
        "start",
        session=job.session,
        fingerprint=fingerprint,
        shards=len(pending),
        actors=asdict(plan.actors),
        pools=kinds,
        max_hours=max_hours,
        **facts,
    )
    for warning in weights.warnings:
        log.write("warning", session=job.session, text=warning)
    return Session(job, plan, _in_order(ledger, pending, population), log)


def other_kinds(directory: RunDirectory, kinds: Sequence[str]) -> list[str]:
    """Return the kinds of place that earlier sessions answered on, where one of `kinds` is new; else none.

    Kinds of GPU, and a CPU, round differently: their probabilities agree to a few digits and their bytes do not.
    """
    before = {
        str(name)
        for event in read_events(directory, "driver")
        if event["event"] == "start"
        for name in event.get("pools", ())
    }
    return sorted(before) if before and not before.issuperset(kinds) else []


def _choose_held(weights: Weights, inventory: Inventory, frozen: Mapping[str, Any]) -> Decision[int]:
    """Choose how many adapters an actor holds at once; the others are loaded when they are needed."""
    if weights.table is None:
        return Decision(1, "one adapter at most")
    return choose_held(inventory, len(weights.table.answering), weights.model_bytes, frozen.get("cache_bytes", 0))


def answer(
    session: Session, progress: Progress, count: Callable[[Mapping[str, Any]], int], *, stops_early: bool
) -> bool:
    """Have all shards of a session answered, and return whether it got to the end: False after its deadline.

    Args:
        session: whose shards.
        progress: is told of each shard.
        count: what a shard's row of statistics is worth to the progress.
        stops_early: give up where the first shards have not a single answer.

    Raises:
        RunFailedError: the first shards were quarantined whole.
    """
    num_late, end = 0, "interrupted"
    left, recorder = len(session.job.pending), session.job.open_recorder()
    recorder.record_pending(left)
    watch = _FirstShards(session) if stops_early else None
    try:
        with contextlib.closing(_stats(session)) as rows:  # to stop reading them stops the actors
            for stats in rows:
                if stats["is_skipped"]:
                    num_late += 1
                    continue
                progress.advance(count(stats))
                left -= 1
                recorder.record_pending(left)
                if watch is not None:
                    watch.look(stats)
        end = "stopped" if num_late else "finished"
    except Exception as error:
        end = f"failed: {type(error).__name__}"
        raise
    finally:
        facts = {"state": end, "done": progress.pace.done, "seconds": round(progress.pace.elapsed_s, 3)}
        with _unmasked(is_failing=end.startswith("failed")):
            session.log.write("end", session=session.job.session, **facts)
    return not num_late


def _unmasked(*, is_failing: bool) -> contextlib.AbstractContextManager[None]:
    """Let the first error be the one that is told: a full disk refuses the log of its own failure, too."""
    return contextlib.suppress(StorageError) if is_failing else contextlib.nullcontext()


def refuse_smaller(ledger: Ledger, pending: Sequence[int], population: Population, directory: RunDirectory) -> None:
    """Refuse a recipe that no longer holds personas or items which shards still to be answered need.

    Raises:
        RecipeChangedError: names what is missing.
    """
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


def quarantine_reasons(directory: RunDirectory, fingerprint: str) -> list[tuple[str, int]]:
    """Return the reasons of the quarantined rows, the commonest first."""
    fs, root = directory.filesystem()
    reasons: Counter[str] = Counter()
    for name in current_quarantine(directory, fingerprint).values():
        reasons.update(read_parquet(f"{root}/{name}", ["reason"], fs).column("reason").to_pylist())
    return reasons.most_common()


def judge(
    recipe: Recipe, directory: RunDirectory, planned: int, committed: int, reasons: Sequence[tuple[str, int]]
) -> None:
    """Hold that a run has answers, and no more quarantined than its recipe allows.

    Raises:
        RunFailedError: it has none.
        TooManyQuarantinedError: it has more.
    """
    if not reasons:
        return
    (reason, count), quarantined = reasons[0], sum(number for _, number in reasons)
    share, allowed = quarantined / planned, recipe.generate.max_quarantined
    if not committed:
        raise RunFailedError(
            f"None of {planned:,} cells was answered; the commonest reason ({count:,} cells): {reason}.",
            f"Mend that and run `polypersona retry {directory.path()}`, or begin a new run.",
        )
    if share > allowed:
        raise TooManyQuarantinedError(
            f"{quarantined:,} of {planned:,} cells ({100 * share:.2f} %) are quarantined, more than "
            f"generate.max_quarantined ({100 * allowed:g} %); the commonest reason ({count:,} cells): {reason}.",
            f"Look at {directory.path(QUARANTINE)}; `polypersona retry {directory.path()}` asks again, or raise "
            "generate.max_quarantined.",
        )


def stopped(recipe: Recipe, what: str, done: int, total: int, directory: RunDirectory) -> RunStoppedError:
    """Return the error of a session that has reached its deadline."""
    return RunStoppedError(
        f"{what} stopped after generate.max_hours ({recipe.generate.max_hours:g}); {done:,} of {total:,} shards of "
        f"{directory.path()} are done.",
        "Run the same command again to go on; each start has generate.max_hours of its own.",
    )


class _FirstShards:
    """Looks whether the first shards of a session have any answer."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._most = max(MIN_FAILING_SHARDS, session.plan.actors.value)
        self._num_failing = 0
        self._has_answers = False

    def look(self, stats: Mapping[str, Any]) -> None:
        self._has_answers = self._has_answers or stats["rows"] > 0
        if self._has_answers:
            return
        self._num_failing += 1
        if self._num_failing < self._most or self._num_failing >= self._session.num_shards:
            return
        job = self._session.job
        reason, count = quarantine_reasons(job.run, job.fingerprint)[0]
        raise RunFailedError(
            f"The first {self._num_failing} shards of {job.run.path()} have not a single answer; the commonest reason "
            f"({count:,} cells): {reason}.",
            f"Mend that, run the same command again for the rest, and `polypersona retry {job.run.path()}` for these.",
        )


def _stats(session: Session) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of statistics of all parts; those after a deadline are not begun."""
    for part in session.parts:
        job, is_late = replace(session.job, pending=np.array(part, dtype=np.int64)), False
        for stats in answer_shards(job, session.plan):
            is_late = is_late or stats["is_skipped"]
            yield stats
        if is_late:
            return


def _in_order(ledger: Ledger, pending: Sequence[int], population: Population) -> tuple[tuple[int, ...], ...]:
    """Return the pending shards in parts that are answered one after another.

    Where items have gates, a later layer may need the answers of an earlier one; else all shards are one part.
    """
    if not any(item.asked_if for item in population.items):
        return (tuple(pending),)
    layers: dict[int, list[int]] = {}
    for number in pending:
        layers.setdefault(ledger.shard(number).layer, []).append(number)
    return tuple(tuple(layers[index]) for index in sorted(layers))
