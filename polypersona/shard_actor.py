"""A member of the actor pool: holds an engine, answers shards, writes their files.

Takes shard numbers, gives counts; the rows go to the run directory only. A shard that fails is tried again, then
quarantined whole with its reason. Knows no Ray: the stage runs it, and hands it a way to get the population.
"""

from __future__ import annotations

import os
import pickle
import platform
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from polypersona import __version__
from polypersona.answering import (
    OUTCOME_COLUMNS,
    AskedCell,
    ShardRows,
    Task,
    answer_cells,
    build_cells,
    build_rows,
    collect_outcomes,
    quarantine_all,
)
from polypersona.attempts import AttemptCounter
from polypersona.engines.base import Engine, EngineSettings
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import ADAPTER, Weights, copy_folder
from polypersona.errors import PolypersonaError
from polypersona.events import EventLog
from polypersona.gates import Outcome
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, Shard, shard_name
from polypersona.population import Population
from polypersona.routing import missing_gates
from polypersona.shardfile import Footer, build_quarantine_table, build_table, file_hash, read_shard, render_shard
from polypersona.storage import RunDirectory


@dataclass(frozen=True)
class Job:
    """Everything an actor needs. Picklable; the population is loaded where it is needed."""

    run: RunDirectory
    fingerprint: str
    ledger: Ledger
    settings: EngineSettings
    weights: Weights
    task: Task
    session: str
    pending: Any  # shard numbers, an integer array
    load_population: Callable[[], Population]


class ShardActor:
    """A member of the pool: holds an engine, answers shards, writes their files.

    Args:
        job: what the run is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._population: Population = job.load_population()
        self._engine: Engine | None = None
        self._scratch = tempfile.TemporaryDirectory()
        writer = f"actor-{uuid.uuid4().hex[:8]}"
        self._log = EventLog(job.run, writer)
        self._attempts = AttemptCounter(job.run, job.fingerprint, job.session, job.task.max_attempts)
        self._log.write("start", session=job.session, host=platform.node(), versions=library_versions())

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Answer and commit one shard; `batch["id"]` is its place among the pending ones.

        A named failure comes back as a value, because Ray would bury it in what it says itself.
        """
        shard = self._job.ledger.shard(int(self._job.pending[int(batch["id"][0])]))
        begin = time.monotonic()
        counts, failure = {"rows": 0, "quarantined": 0}, b""
        try:
            counts = self._read_counts(shard) or self._commit(shard, self._answer(shard))
        except PolypersonaError as error:
            failure = pickle.dumps(error)
        row = {"shard": shard.number, **counts, "seconds": time.monotonic() - begin, "failure": failure}
        return pa.table({key: [value] for key, value in row.items()})

    def _answer(self, shard: Shard) -> ShardRows:
        """Return the shard's rows; after its last failed attempt, all of them quarantined."""
        task, cells = self._job.task, build_cells(shard, self._job.ledger, self._population, self._job.task)
        known = self._earlier_outcomes(shard, cells)
        while True:
            attempts = self._attempts.begin(shard.number)
            if self._attempts.is_exhausted(attempts):
                self._log.write("give up", shard=shard.number, failures=attempts.failures)
                return quarantine_all(shard, cells, attempts.failures, task)
            try:
                answers = answer_cells(self._load(), cells, task.max_attempts, known, is_interview=task.is_interview)
                return build_rows(shard, cells, answers, task)
            except PolypersonaError:  # a user's mistake, which no further attempt mends
                self._attempts.clear(shard.number)
                raise
            except Exception as error:  # noqa: BLE001 an engine may raise anything, and one shard must not end the run
                reason = f"{type(error).__name__}: {error}"
                self._attempts.fail(shard.number, reason)
                self._log.write("failure", shard=shard.number, reason=reason)
                self._unload()

    def _earlier_outcomes(self, shard: Shard, cells: Sequence[AskedCell]) -> dict[Hashable, dict[str, Outcome]]:
        """Return the answers to gates that earlier layers hold, from their committed files."""
        missing = missing_gates([asked.cell for asked in cells], [asked.interview for asked in cells])
        found: dict[Hashable, dict[str, Outcome]] = {}
        if not missing:
            return found
        run = self._job.run
        for number in self._job.ledger.earlier_shards(shard):
            name = shard_name(number, self._job.fingerprint)
            for path in (f"{RESPONSES}/{name}", f"{QUARANTINE}/{name}"):
                if path.startswith(RESPONSES) or run.exists(path):
                    table, _ = read_shard(run.read(path), run.path(path))
                    collect_outcomes(table.select(OUTCOME_COLUMNS).to_pylist(), missing, found)
        return found

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
