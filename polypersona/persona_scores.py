"""The part of evaluate that looks at whole personas: response shards → sums of the statistics of `metrics.personas`.

A persona's rows lie in one shard, or, where a run grew, in several of the same block; a task reads whole blocks, so
that waves and items that were added later meet the earlier ones. Tasks return sums of integers, so any number of
shards, parts or nodes gives the same bytes, and no process holds more than one block's rows.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from polypersona.errors import PolypersonaError, StorageError
from polypersona.ledger import RESPONSES, Ledger, committed_shards, ledger_from, shard_name
from polypersona.metrics.base import IntArray
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.sums import Sums
from polypersona.parquet import read_parquet
from polypersona.records import Item
from polypersona.storage import RunDirectory

COLUMNS = ("persona_id", "item_id", "variant", "wave", "draw", "code", "text", "disposition")
PARTS_PER_CPU = 4
MAX_WAITING = 1024


@dataclass(frozen=True)
class PersonaJob:
    """What a task needs: where the shards are, what is measured, and the blocks of each part."""

    directory: RunDirectory
    metrics: PersonaMetrics
    items: Sequence[Item]
    parts: Sequence[Sequence[Sequence[str]]]


def score_personas(
    directory: RunDirectory, stored: dict[str, Any], metrics: PersonaMetrics, items: Sequence[Item], num_cpus: int
) -> Sums:
    """Measure the committed shards of a run, some blocks per task, and return the sums.

    Args:
        directory: of the run.
        stored: its run.json.
        metrics: what is measured.
        items: of the instrument, in the order of the metrics' own.
        num_cpus: how many tasks run at once. Ray has been started.

    Raises:
        StorageError: a shard cannot be read.
    """
    sums = metrics.empty()
    if not metrics.statistics:
        return sums
    fingerprint = str(stored["fingerprint"])
    blocks = blocks_of(ledger_from(stored["ledger"]), sorted(committed_shards(directory, fingerprint)), fingerprint)
    num_parts = max(1, min(len(blocks), PARTS_PER_CPU * num_cpus))
    parts = [blocks[first::num_parts] for first in range(num_parts)]
    # A list keeps Ray from putting the value itself in place of its reference.
    reference = [ray.put(PersonaJob(directory, metrics, items, parts))]
    found = ray.data.range(num_parts, override_num_blocks=num_parts).map_batches(
        measure_part,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"job": reference},
        compute=ray.data.TaskPoolStrategy(size=min(num_cpus, num_parts)),
    )
    for row in found.iter_rows():
        part: Sums | PolypersonaError = pickle.loads(row["result"])
        if isinstance(part, PolypersonaError):
            raise part
        sums.merge(part)
    return sums


def blocks_of(ledger: Ledger, committed: Sequence[int], fingerprint: str) -> list[list[str]]:
    """Return the files of committed shards, those of the same personas together."""
    blocks: dict[int, list[str]] = {}
    for number in committed:
        block = ledger.shard(number).begin // ledger.shard_personas
        blocks.setdefault(block, []).append(f"{RESPONSES}/{shard_name(number, fingerprint)}")
    return [blocks[block] for block in sorted(blocks)]


def measure_part(ids: pa.Table, job: Sequence[Any]) -> pa.Table:
    """Measure the blocks of some parts, in a Ray task; a named failure comes back as a value.

    Args:
        ids: column `id`, the numbers of the parts.
        job: a reference to a `PersonaJob`.
    """
    found: PersonaJob = ray.get(job[0])
    sums = found.metrics.empty()
    result: Sums | PolypersonaError = sums
    waiting: list[tuple[Sequence[str], IntArray]] = []
    try:
        for names in (names for part in ids["id"].to_pylist() for names in found.parts[part]):
            table = pa.concat_tables([_read(found.directory, name) for name in names])
            interviews = interviews_of(table, found.items)
            waiting.append((interviews.persona_ids, found.metrics.measure(interviews)))
            if sum(len(own) for own, _ in waiting) >= MAX_WAITING:
                found.metrics.add(sums, waiting)
                waiting.clear()
        found.metrics.add(sums, waiting)
    except PolypersonaError as error:
        result = error
    return pa.table({"result": pa.array([pickle.dumps(result)], pa.large_binary())})


def interviews_of(table: pa.Table, items: Sequence[Item]) -> Interviews:
    """Return the answers of a table's rows to the items themselves; changed forms of items are left out."""
    own = table.select(list(COLUMNS)).filter(pc.equal(table["variant"].cast(pa.string()), ""))
    return Interviews.of(own.to_pylist(), items)


def _read(directory: RunDirectory, name: str) -> pa.Table:
    try:
        table = read_parquet(io.BytesIO(directory.read(name)), COLUMNS)
    except pa.ArrowException as error:
        raise StorageError(
            f"{directory.path(name)} is no file of responses: {error}.", "Delete it and run generate again."
        ) from error
    # Shards have dictionaries of their own.
    return pa.table({column: table[column].cast(_plain_type(table[column].type)) for column in COLUMNS})


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
