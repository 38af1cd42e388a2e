"""Which quarantine file of a shard counts: the first one, or that of a later retry of its rows.

A retry writes the rows that are still quarantined under a name with its round, and then replaces the shard's response
file, whose footer names the round. So the response file decides, and a file of another round is what a killed step
left. Reads listings and, once a run has been retried, footers; knows no rows, no engine and no Ray.
"""

from __future__ import annotations

import pyarrow as pa

from polypersona.errors import StorageError
from polypersona.ledger import QUARANTINE, RESPONSES, committed_shards, quarantine_name, quarantine_number, shard_name
from polypersona.parquet import open_parquet
from polypersona.shardfile import Footer, read_footer
from polypersona.storage import RunDirectory, load_run


def read_committed_footer(run: RunDirectory, number: int, fingerprint: str) -> Footer:
    """Return the footer of a shard's response file, without reading its rows.

    Raises:
        StorageError: the file is not there, or is no shard's.
    """
    name = f"{RESPONSES}/{shard_name(number, fingerprint)}"
    fs, root = run.filesystem()
    try:
        with fs.open_input_file(f"{root}/{name}") as stream:
            return read_footer(open_parquet(stream).schema_arrow, run.path(name))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{run.path(name)} cannot be read: {error}.", "Delete it if it is damaged, and run generate again."
        ) from error


def last_round(run: RunDirectory) -> int:
    """Return the number of the last retry that was begun; 0 where the run was never retried."""
    return int(load_run(run).get("stages", {}).get("retry", {}).get("round", 0))


def current_quarantine(run: RunDirectory, fingerprint: str) -> dict[int, str]:
    """Return the quarantine files that count, by shard; those of shards that are not committed do not."""
    committed, held = committed_shards(run, fingerprint), _held(run, fingerprint)
    is_retried = last_round(run) > 0
    current = {}
    for number in sorted(committed & held.keys()):
        round_ = read_committed_footer(run, number, fingerprint).round if is_retried else 0
        name = f"{QUARANTINE}/{quarantine_name(number, fingerprint, round_)}"
        if name in held[number]:
            current[number] = name
    return current


def delete_leftovers(run: RunDirectory, fingerprint: str) -> None:
    """Delete the quarantine files of committed shards that do not count. For the one driver that holds the run."""
    committed, current = committed_shards(run, fingerprint), current_quarantine(run, fingerprint)
    for number, names in _held(run, fingerprint).items():
        if number in committed:
            for name in names - {current.get(number, "")}:
                run.delete(name)


def _held(run: RunDirectory, fingerprint: str) -> dict[int, set[str]]:
    held: dict[int, set[str]] = {}
    for name in run.names(QUARANTINE, f"-{fingerprint}.parquet"):
        if (number := quarantine_number(name, fingerprint)) is not None:
            held.setdefault(number, set()).add(name)
    return held
