"""A member of the actor pool: holds an engine, answers shards, commits them.

Takes shard numbers, gives counts; the rows go to the run directory only. A shard that fails is tried again, then what
makes it fail is searched for: the cells that fail alone are quarantined, and the rest is answered in one go, so that
what is committed follows from the shard and from those cells, not from the search. Knows no Ray: the stage runs it, and
hands it a way to get the population.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import platform
import tempfile
import time
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from polypersona import __version__
from polypersona.answering import Task, answer_cells, build_cells, build_rows
from polypersona.attempts import AttemptCounter, Attempts
from polypersona.engines.adapter_engines import AdapterEngines
from polypersona.engines.adapter_files import copy_folder
from polypersona.engines.adapter_table import AdapterEntry
from polypersona.engines.base import Engine, EngineSettings
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import ADAPTER, Weights
from polypersona.errors import PolypersonaError
from polypersona.events import EventLog
from polypersona.gates import Outcome
from polypersona.ledger import Ledger, Shard
from polypersona.merging import cells_to_retry, merge_rows
from polypersona.population import Population
from polypersona.response_table import AskedCell, ShardRows
from polypersona.shard_store import ShardStore
from polypersona.storage import RunDirectory
from polypersona.telemetry import NullRecorder, Recorder
from polypersona.units import Given, Units

_GC_THRESHOLDS = 1_000_000, 10, 10


def no_node() -> str:
    """Return that nothing is known of the node."""
    return ""


def always_alive(node: str) -> bool:
    """Return that the node is there."""
    return True


@dataclass(frozen=True)
class Job:
    """Everything an actor needs. Picklable; the population is loaded where it is needed.

    `round` is 0, or the number of the retry that asks again what is quarantined. No shard is begun after `deadline`, in
    seconds since the epoch. `most_held` of several adapters are in memory at once. `where` gives the node this process
    runs on, `is_alive` whether a node is still there.
    """

    run: RunDirectory
    fingerprint: str
    ledger: Ledger
    settings: EngineSettings
    weights: Weights
    task: Task
    session: str
    pending: Any  # shard numbers, an integer array
    load_population: Callable[[], Population]
    round: int = 0
    deadline: float | None = None
    where: Callable[[], str] = no_node
    is_alive: Callable[[str], bool] = always_alive
    open_recorder: Callable[[], Recorder] = NullRecorder
    most_held: int = 1


class ShardActor:
    """A member of the pool: holds an engine, answers shards, writes their files.

    Args:
        job: what the run is.
    """

    def __init__(self, job: Job) -> None:
        # A shard makes hundreds of thousands of objects that stay until it is committed: looking through them for
        # cycles at Python's own pace takes as long as making them.
        gc.set_threshold(*_GC_THRESHOLDS)
        self._job = job
        self._population: Population = job.load_population()
        self._is_routed = any(item.asked_if for item in self._population.items)
        self._engine: Engine | None = None
        self._engine_cpu_s = 0.0
        self._scratch = tempfile.TemporaryDirectory()
        self._log = EventLog(job.run, f"actor-{uuid.uuid4().hex[:8]}")
        self._store = ShardStore(job.run, job.fingerprint, job.ledger, self._log)
        self._recorder = job.open_recorder()
        self._attempts = AttemptCounter(
            job.run,
            job.fingerprint,
            job.session,
            job.task.max_attempts,
            job.round,
            job.where(),
            job.is_alive,
            self._note,
        )
        self._log.write("start", session=job.session, host=platform.node(), versions=library_versions())

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Answer and commit one shard; `batch["id"]` is its place among the pending ones.

        Gives `shard`, `rows`, `quarantined`, `seconds`, `is_skipped` (the deadline had passed) and `failure`. A named
        failure comes back as a value, because Ray would bury it in what it says itself.
        """
        shard = self._job.ledger.shard(int(self._job.pending[int(batch["id"][0])]))
        begin = time.monotonic()
        counts, failure = None, b""
        try:
            counts = self._read_counts(shard)
            if counts is None and not self._is_late():
                counts = self._retry(shard, begin) if self._job.round else self._commit(shard, begin)
        except PolypersonaError as error:
            failure = pickle.dumps(error)
        row = {
            "shard": shard.number,
            **(counts or {"rows": 0, "quarantined": 0}),
            "seconds": time.monotonic() - begin,
            "is_skipped": counts is None and not failure,
            "failure": failure,
        }
        return pa.table({key: [value] for key, value in row.items()})

    def _is_late(self) -> bool:
        return self._job.deadline is not None and time.time() >= self._job.deadline

    def _read_counts(self, shard: Shard) -> dict[str, int] | None:
        """Return the counts of a shard that is done already, by an actor that died before it could tell."""
        footer = self._store.footer(shard.number)
        if footer is None or footer.round < self._job.round:
            return None
        self._attempts.clear(shard.number)
        return {"rows": footer.committed, "quarantined": footer.quarantined}

    def _commit(self, shard: Shard, begin: float) -> dict[str, int]:
        """Answer a shard and commit it."""
        cells = build_cells(shard, self._job.ledger, self._population, self._job.task)
        rows = self._answer(shard, cells, self._store.known_outcomes(shard, cells))
        counts = self._store.commit(shard.number, rows, spent=self._spent())
        self._attempts.clear(shard.number)
        self._recorder.record_commit(rows.committed, rows.quarantined, time.monotonic() - begin)
        return counts

    def _retry(self, shard: Shard, begin: float) -> dict[str, int]:
        """Ask again what a committed shard has in quarantine, and replace its files."""
        is_interview = self._job.task.is_interview
        earlier, footer = self._store.read(shard.number)
        cells = build_cells(shard, self._job.ledger, self._population, self._job.task)
        failed = set(earlier.quarantined.column("assignment_id").to_pylist())
        asked = cells_to_retry(cells, failed, is_interview=is_interview)
        again = self._answer(shard, asked, self._store.known_outcomes(shard, asked, earlier))
        merged = merge_rows(cells, earlier, again, is_interview=is_interview)
        counts = self._store.commit(shard.number, merged, footer, self._job.round, self._spent())
        self._attempts.clear(shard.number)
        self._recorder.record_commit(again.committed, again.quarantined, time.monotonic() - begin)
        return counts

    def _answer(
        self, shard: Shard, cells: Sequence[AskedCell], known: Mapping[Hashable, Mapping[str, Outcome]]
    ) -> ShardRows:
        """Return the rows of some of the shard's cells, after as many attempts as it takes."""
        task, number = self._job.task, shard.number
        units = Units.of(cells, by_interview=task.is_interview or self._is_routed)
        while True:
            attempts = self._attempts.begin(number, units.count, is_loading=self._engine is None)
            if attempts.verdict:
                self._log.write("give up", shard=number, reason=attempts.verdict, isolated=len(attempts.poisoned))
                return build_rows(shard, cells, units.complete({}, attempts), task)
            try:
                answered = self._attempt(number, units, attempts, known)
                if answered is not None:
                    return build_rows(shard, cells, answered, task)
            except PolypersonaError:  # a user's mistake, which no further attempt mends
                self._attempts.clear(number)
                raise

    def _attempt(
        self, number: int, units: Units, attempts: Attempts, known: Mapping[Hashable, Mapping[str, Outcome]]
    ) -> list[Given] | None:
        """Ask what is to be asked next; None if that failed, or was but a probe, whose answers nobody keeps."""
        task = self._job.task
        try:
            engine = self._load(number)
        except PolypersonaError:
            raise
        except Exception as error:  # noqa: BLE001 a library may raise anything, and one shard must not end the run
            self._attempts.fail_loading(number, f"{type(error).__name__}: {error}")
            return None
        places = units.cells_of(attempts.asked(units.count))
        asked = [units.cells[place] for place in places]
        try:
            with self._recorder.busy(), self._counting():
                given = answer_cells(engine, asked, task.max_attempts, known, is_interview=task.is_interview)
        except PolypersonaError:
            raise
        except Exception as error:  # noqa: BLE001 an engine may raise anything, and one shard must not end the run
            self._attempts.fail(number, f"{type(error).__name__}: {error}", units.count)
            self._unload()
            return None
        if attempts.search is not None:
            self._attempts.answer(number, units.count)
            return None
        return units.complete(dict(zip(places, given, strict=True)), attempts) if attempts.poisoned else given

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the processor's time as the engine's."""
        begin = time.process_time()
        try:
            yield
        finally:
            self._engine_cpu_s += time.process_time() - begin

    def _spent(self) -> dict[str, float]:
        """Return the CPU-seconds of this process and those of its engine so far."""
        return {"cpu_s": round(time.process_time(), 4), "engine_cpu_s": round(self._engine_cpu_s, 4)}

    def _note(self, event: str, **facts: Any) -> None:
        self._log.write(event, **facts)
        if event == "failure":
            self._recorder.record_failure()

    def _load(self, number: int) -> Engine:
        if self._engine is None:
            settings, weights = self._job.settings, self._job.weights
            if weights.table is not None:
                self._engine = AdapterEngines(settings, weights.table, self._job.most_held, self._adapter_folder)
            elif weights.adapter_run is not None:
                self._engine = load_engine(replace(settings, adapter=self._copied(ADAPTER)))
            else:
                self._engine = load_engine(settings)
            self._attempts.loaded(number)
        return self._engine

    def _adapter_folder(self, entry: AdapterEntry) -> str:
        """Return the local folder of one of several adapters."""
        run = self._job.run
        return str(run.local_path(entry.folder)) if run.is_local else self._copied(entry.folder)

    def _copied(self, folder: str) -> str:
        """Return a local copy of a folder of the run."""
        target = Path(self._scratch.name)
        if not (target / folder).exists():
            copy_folder(self._job.run, folder, target)
        return str(target / folder)

    def _unload(self) -> None:
        """Drop the engine: after a failure nothing is known of its state."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def library_versions() -> dict[str, str]:
    """Return what a shard was made with; it does not decide content, but `verify` reports a mixture."""
    return {
        "polypersona": __version__,
        "python": platform.python_version(),
        "ray": version("ray"),
        "pyarrow": pa.__version__,
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }
