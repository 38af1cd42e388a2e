"""The part of evaluate that looks at whole personas: response shards → sums of the statistics of `metrics.personas`.

A persona's rows lie in one shard, or, where a run grew, in several of the same block; a task reads whole blocks, so
that waves and items that were added later meet the earlier ones. Tasks return sums of integers, so any number of
shards, parts or nodes gives the same bytes, and no process holds more than one block's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polypersona.evaluation.basis import read_columns
from polypersona.evaluation.parts import map_parts, share_out
from polypersona.ledger import RESPONSES, Ledger, committed_shards, ledger_from, shard_name
from polypersona.metrics.base import IntArray
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.sums import Sums
from polypersona.records import Item
from polypersona.storage import RunDirectory

COLUMNS = ("persona_id", "item_id", "variant", "wave", "draw", "code", "text", "disposition")
MAX_WAITING = 1024


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
    job = directory, metrics, items
    for part in map_parts(_measure, job, share_out(committed_blocks(directory, stored), num_cpus), num_cpus):
        sums.merge(part)
    return sums


def committed_blocks(directory: RunDirectory, stored: dict[str, Any]) -> list[list[str]]:
    """Return the files of a run's committed shards, those of the same personas together; `stored` is its run.json."""
    fingerprint = str(stored["fingerprint"])
    return blocks_of(ledger_from(stored["ledger"]), sorted(committed_shards(directory, fingerprint)), fingerprint)


def blocks_of(ledger: Ledger, committed: Sequence[int], fingerprint: str) -> list[list[str]]:
    """Return the files of committed shards, those of the same personas together."""
    blocks: dict[int, list[str]] = {}
    for number in committed:
        block = ledger.shard(number).begin // ledger.shard_personas
        blocks.setdefault(block, []).append(f"{RESPONSES}/{shard_name(number, fingerprint)}")
    return [blocks[block] for block in sorted(blocks)]


def _measure(job: tuple[RunDirectory, PersonaMetrics, Sequence[Item]], blocks: Sequence[Sequence[str]]) -> Sums:
    """Return the sums of some blocks, in a Ray task."""
    directory, metrics, items = job
    sums = metrics.empty()
    waiting: list[tuple[Sequence[str], IntArray]] = []
    for names in blocks:
        table = pa.concat_tables([read_columns(directory, name, COLUMNS) for name in names])
        interviews = interviews_of(table, items)
        waiting.append((interviews.persona_ids, metrics.measure(interviews)))
        if sum(len(own) for own, _ in waiting) >= MAX_WAITING:
            metrics.add(sums, waiting)
            waiting.clear()
    metrics.add(sums, waiting)
    return sums


def interviews_of(table: pa.Table, items: Sequence[Item]) -> Interviews:
    """Return the answers of a table's rows to the items themselves; changed forms of items are left out."""
    own = table.select(list(COLUMNS)).filter(pc.equal(table["variant"].cast(pa.string()), ""))
    return Interviews.of(own.to_pylist(), items)
