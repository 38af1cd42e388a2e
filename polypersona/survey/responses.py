"""The committed shards of a run → a tally, in batches of whole personas, several at once. Knows no score."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pyarrow as pa

from polypersona.errors import StorageError
from polypersona.ledger import RESPONSES, Ledger, shard_name
from polypersona.parquet import open_parquet
from polypersona.storage import RunDirectory
from polypersona.survey.frame import COLUMNS, Frame
from polypersona.survey.tally import Tally

# Values of a batch's widest array: rows × options.
BATCH_VALUES = 1_000_000
MAX_THREADS = 8


class Sums(Protocol):
    """What rows are added to; threads may do it at once."""

    def add(self, table: pa.Table) -> None:
        """Add rows, all of their personas."""


def batch_rows(width: int) -> int:
    """Return how many rows a batch has, about, where the longest item has `width` options."""
    return max(1, BATCH_VALUES // max(width, 1))


def build_batches(ledger: Ledger, committed: Sequence[int], fingerprint: str, max_rows: int) -> list[list[str]]:
    """Return the files of committed shards in batches that each hold all rows of their personas.

    A run that grew has several shards of the same personas: they are of one block, and blocks are never cut.
    """
    blocks: dict[int, list[int]] = {}
    for number in sorted(committed):
        blocks.setdefault(ledger.shard(number).begin // ledger.shard_personas, []).append(number)
    mean_rows = max(1, ledger.num_cells // max(1, ledger.num_shards))
    batches: list[list[str]] = []
    rows = max_rows
    for numbers in blocks.values():
        if rows + mean_rows * len(numbers) > max_rows:
            batches.append([])
            rows = 0
        batches[-1] += [f"{RESPONSES}/{shard_name(number, fingerprint)}" for number in numbers]
        rows += mean_rows * len(numbers)
    return batches


def tally_responses(
    directory: RunDirectory, batches: Sequence[Sequence[str]], frame: Frame, advance: Callable[[int], None]
) -> Tally:
    """Return the sums of all batches; the same for any number of threads and any order.

    Raises:
        StorageError: a file cannot be read, or holds what the run cannot have.
    """
    tally = Tally.empty(frame)
    feed(directory, batches, tally, advance)
    return tally


def feed(directory: RunDirectory, batches: Sequence[Sequence[str]], sums: Sums, advance: Callable[[int], None]) -> None:
    """Add all batches to sums, several at once.

    Raises:
        StorageError: as `tally_responses`.
    """
    threads = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))

    def add(names: Sequence[str]) -> int:
        sums.add(pa.concat_tables([read_columns_of(directory, name) for name in names]))
        return len(names)

    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(add, batches):
            advance(count)


def read_columns_of(directory: RunDirectory, name: str) -> pa.Table:
    """Return the columns of one shard that a comparison needs.

    Raises:
        StorageError: the file is not there, or no shard of a run.
    """
    try:
        source = directory.local_path(name) if directory.is_local else pa.BufferReader(directory.read(name))
        with open_parquet(source) as file:
            return file.read(columns=list(COLUMNS), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{directory.path(name)} cannot be read: {error}.", "Run `polypersona verify`, then generate again."
        ) from error
