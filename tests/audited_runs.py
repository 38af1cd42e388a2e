"""Small runs, made by a shard actor in this process with the fake engine, and ways to damage them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from polypersona.answering import Task
from polypersona.engines.base import EngineSettings
from polypersona.engines.settings import Weights
from polypersona.events import EventLog
from polypersona.ledger import Asked, Box, Ledger
from polypersona.population import Population
from polypersona.records import Item, Persona
from polypersona.shard_actor import Job, ShardActor
from polypersona.shardfile import read_shard, render_shard
from polypersona.storage import RunDirectory, update_run

FINGERPRINT = "ab"
ITEMS = (
    Item("x.likert.01", "x", "Is it good?", "likert", ("Bad", "Fair", "Good")),
    Item("x.open.01", "x", "Why?", "open"),
)
FIRST, SECOND = "responses/shard-00000-ab.parquet", "responses/shard-00001-ab.parquet"
HELD = "quarantine/shard-00000-ab.parquet"
RETRIED = "quarantine/shard-00000-r1-ab.parquet"


def make_job(
    run: RunDirectory,
    size: int = 6,
    failing: Collection[int] = (),
    *,
    shard_personas: int = 2,
    boxes: Sequence[Box] | None = None,
    asked: Asked | None = None,
    session: str = "one",
    round: int = 0,
) -> Job:
    """Plan a run of `size` personas, two items each, and return what an actor is given."""
    personas = tuple(
        Persona(f"p{place}", {"fake_failure": "error"} if place in failing else {}) for place in range(size)
    )
    population = Population(personas, ITEMS, asked)
    ledger = Ledger(shard_personas)
    for box in boxes or [Box(size, population.item_keys)]:
        ledger = ledger.extend(box, asked=asked)
    on = "panel" if asked is None else "test"
    plan = {"fingerprint": FINGERPRINT, "ledger": ledger.as_json(asked), "recipe": {"generate": {"on": on}}}
    update_run(run, plan)
    return Job(
        run=run,
        fingerprint=FINGERPRINT,
        ledger=ledger,
        settings=EngineSettings(engine="fake", seed=7),
        weights=Weights(),
        task=Task(seed=7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=2),
        session=session,
        pending=np.arange(ledger.num_shards),
        load_population=lambda: population,
        round=round,
    )


def answer(job: Job, shards: Collection[int] | None = None) -> None:
    """Have an actor answer the shards of a job, or some of them."""
    actor = ShardActor(job)
    for number in range(job.ledger.num_shards) if shards is None else shards:
        assert actor({"id": [number]})["failure"].to_pylist() == [b""]


def make_run(
    place: Path | str,
    size: int = 6,
    failing: Collection[int] = (),
    shards: Collection[int] | None = None,
    **options: object,
) -> RunDirectory:
    """Write a run in shards of two personas with the events of its driver, and return its directory."""
    run = RunDirectory.at(place / "run" if isinstance(place, Path) else place)
    job = make_job(run, size, failing, **options)  # type: ignore[arg-type]
    start(run, session=job.session, shards=job.ledger.num_shards)
    answer(job, shards)
    return run


def start(run: RunDirectory, session: str = "one", **facts: object) -> EventLog:
    """Write the event of a driver's start, and return the driver's log."""
    log = EventLog(run, "driver")
    log.write("start", session=session, actors={"value": 2, "reason": "two CPU cores"}, **facts)
    return log


def rewrite(run: RunDirectory, name: str, change: Callable[[pa.Table], pa.Table], **footer: int) -> None:
    """Replace a shard's rows by `change(table)`, with a footer that fits the new rows but for what is given."""
    table, old = read_shard(run.read(name), name)
    changed = change(table)
    num_rows = changed.num_rows
    fitting = replace(old, planned=num_rows, committed=num_rows, quarantined=0)
    run.write(name, render_shard(changed, replace(fitting, **footer)))  # type: ignore[arg-type]


def with_value(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    """Return the table with another value in one row, in the column's own type."""
    place = table.schema.get_field_index(name)
    kind = table.schema.field(name).type
    values = table.column(name).to_pylist()
    values[row] = value
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = pa.array(values, plain)
    return table.set_column(
        place, table.schema.field(name), column.dictionary_encode().cast(kind) if plain is not kind else column
    )


def forget_events(run: RunDirectory) -> None:
    """Delete all events."""
    for name in run.names("events"):
        run.delete(name)
