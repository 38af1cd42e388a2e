"""The audit of a run, and how far it is: from the files of the run directory alone.

`verify` proves that each planned assignment is there exactly once, committed or quarantined, in files that are what
they were when they were committed. `read_status` counts and estimates. Both read only; neither knows recipe sources,
engines or Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polypersona.errors import PolypersonaError, StorageError
from polypersona.events import read_events
from polypersona.ledger import (
    QUARANTINE,
    RESPONSES,
    Ledger,
    committed_shards,
    item_key,
    ledger_from,
    shard_name,
    shard_number,
)
from polypersona.records import digest
from polypersona.shardfile import QUARANTINE_SCHEMA, Footer, content_hash, file_hash, read_shard
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory, load_run

MAX_SHOWN = 5
# A run whose last commit is older than so many shards' time is not running, or stuck: no time left is promised.
STALE_FACTOR = 5.0
STALE_AT_LEAST_S = 120.0
RATE_WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found. Clean where `problems` is empty; `notes` are no problems.

    `not_asked` is the part of `committed` whose question routing left out.
    """

    run: str
    fingerprint: str
    shards: int
    planned: int
    committed: int
    quarantined: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    not_asked: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether each planned assignment is there exactly once."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {"synthetic": True, "clean": self.is_clean, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Status:
    """How far a run is. Rates are responses per second; None where there is nothing to tell from."""

    run: str
    shards_done: int
    shards: int
    responses_done: int
    responses: int
    quarantined: int
    reasons: dict[str, int]
    rate: float | None
    left_s: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return {"synthetic": True, **asdict(self)}


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    ids: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    committed: int = 0
    quarantined: int = 0
    not_asked: int = 0


def verify(run: RunDirectory) -> Audit:
    """Audit a run.

    Raises:
        StorageError: there is no run, or its generate stage has not begun.
    """
    stored, ledger = _begun(run)
    fingerprint = stored["fingerprint"]
    hashes, versions = _commits(run)
    found = _Findings()
    is_test = stored["recipe"]["generate"]["on"] == "test"
    _check_names(run, ledger, fingerprint, found)
    for number in sorted(committed_shards(run, fingerprint) & set(range(ledger.num_shards))):
        try:
            footer = _check_shard(run, ledger, number, fingerprint, hashes.get(number, set()), found)
            planned = footer.planned if is_test else ledger.num_shard_cells(number)
            if footer.planned != planned:
                found.problems.append(f"Shard {number} holds {footer.planned:,} assignments; {planned:,} are planned.")
        except PolypersonaError as error:
            found.problems.append(error.message)
    _check_totals(ledger, found)
    return Audit(
        run=run.path(),
        fingerprint=fingerprint,
        shards=ledger.num_shards,
        planned=ledger.num_cells,
        committed=found.committed,
        quarantined=found.quarantined,
        problems=tuple(found.problems),
        notes=tuple(
            f"written with several versions of {name}: {', '.join(sorted(values))}"
            for name, values in sorted(versions.items())
            if len(values) > 1
        ),
        not_asked=found.not_asked,
    )


def read_status(run: RunDirectory, now: Callable[[], float] = time.time) -> Status:
    """Return how far a run is.

    Raises:
        StorageError: there is no run, or its generate stage has not begun.
    """
    stored, ledger = _begun(run)
    done = committed_shards(run, stored["fingerprint"])
    commits = {int(event["shard"]): event for event in read_events(run, "actor-") if event.get("event") == "commit"}
    known = [event for number, event in commits.items() if number in done]
    counted = sum(event["rows"] + event["quarantined"] for event in known)
    reasons: Counter[str] = Counter()
    for name in run.names(QUARANTINE, f"-{stored['fingerprint']}.parquet"):
        if shard_number(name) not in done:  # of an attempt that was killed before its commit, or goes on
            continue
        reasons.update(read_shard(run.read(name), run.path(name))[0].column("reason").to_pylist())
    # A writer that was killed between a commit and its line leaves a shard without one; count it as an average one.
    responses_done = ledger.num_cells if len(done) == ledger.num_shards else _scaled(counted, len(known), len(done))
    rate = _rate(known, now())
    left = ledger.num_cells - responses_done
    return Status(
        run=run.path(),
        shards_done=len(done),
        shards=ledger.num_shards,
        responses_done=responses_done,
        responses=ledger.num_cells,
        quarantined=sum(reasons.values()),
        reasons=dict(reasons.most_common()),
        rate=rate,
        left_s=0.0 if left == 0 else left / rate if rate else None,
    )


def _begun(run: RunDirectory) -> tuple[dict[str, Any], Ledger]:
    stored = load_run(run)
    if not stored:
        raise StorageError(f"{run.path()} is no run: it has no run.json.", "Name a run directory, such as runs/demo.")
    if "ledger" not in stored:
        raise StorageError(f"{run.path()} has no responses yet.", "Run the generate stage first.")
    return stored, ledger_from(stored["ledger"])


def _commits(run: RunDirectory) -> tuple[dict[int, set[str]], dict[str, set[str]]]:
    """Return the file hashes by shard and the library versions that the actors' events tell of."""
    hashes: dict[int, set[str]] = {}
    versions: dict[str, set[str]] = {}
    for event in read_events(run, "actor-"):
        if event.get("event") == "commit":
            hashes.setdefault(int(event["shard"]), set()).add(event["file_hash"])
        for name, value in event.get("versions", {}).items():
            versions.setdefault(name, set()).add(value)
    return hashes, versions


def _check_names(run: RunDirectory, ledger: Ledger, fingerprint: str, found: _Findings) -> None:
    """Every shard has its file, and no other file is there."""
    expected = {shard_name(number, fingerprint) for number in range(ledger.num_shards)}
    present = {name.rsplit("/", 1)[-1] for name in run.names(RESPONSES)}
    held = {name.rsplit("/", 1)[-1] for name in run.names(QUARANTINE)}
    for what, names in (
        ("not committed", expected - present),
        (f"in {RESPONSES}/ but not of this run", present - expected),
        (f"in {QUARANTINE}/ but not committed", held - present),
    ):
        if names:
            found.problems.append(f"{len(names)} shard files are {what}: {_shown(names)}.")


def _check_shard(
    run: RunDirectory, ledger: Ledger, number: int, fingerprint: str, hashes: set[str], found: _Findings
) -> Footer:
    """One shard's files are whole, of one schema and fingerprint, and hold its assignments."""
    name = shard_name(number, fingerprint)
    data = run.read(f"{RESPONSES}/{name}")
    table, footer = read_shard(data, f"{RESPONSES}/{name}")
    _check_file(f"{RESPONSES}/{name}", table, footer, RESPONSE_SCHEMA, (number, fingerprint), found)
    if hashes and file_hash(data) not in hashes:
        found.problems.append(f"{RESPONSES}/{name} is not the file that was committed: its hash differs.")
    tables, held = [table], 0
    if run.exists(f"{QUARANTINE}/{name}"):
        failed, other = read_shard(run.read(f"{QUARANTINE}/{name}"), f"{QUARANTINE}/{name}")
        _check_file(f"{QUARANTINE}/{name}", failed, other, QUARANTINE_SCHEMA, (number, fingerprint), found)
        tables, held = [table, failed], failed.num_rows
    counts = (footer.committed, footer.quarantined)
    if counts != (table.num_rows, held) or not footer.is_balanced:
        found.problems.append(
            f"{name} has {table.num_rows:,} responses and {held:,} quarantined rows; it was committed with "
            f"{footer.committed:,} and {footer.quarantined:,} of {footer.planned:,}."
        )
    found.committed += table.num_rows
    found.not_asked += table.column("disposition").to_pylist().count("not_asked")
    found.quarantined += held
    for part in tables:
        _check_rows(name, part, number, found)
    _check_plan(ledger, number, name, tables, found)
    return footer


def _check_file(
    where: str, table: pa.Table, footer: Footer, schema: pa.Schema, of: tuple[int, str], found: _Findings
) -> None:
    if not table.schema.equals(schema, check_metadata=False):
        found.problems.append(f"{where} has another schema.")
    if (footer.shard, footer.fingerprint) != of:
        found.problems.append(f"{where} says it is shard {footer.shard} of {footer.fingerprint}.")
    if content_hash(table) != footer.content_hash:
        found.problems.append(f"{where} holds other rows than it was written with: its content hash differs.")


def _check_rows(name: str, table: pa.Table, number: int, found: _Findings) -> None:
    """Each row's id is that of its own five parts, and the row is of this shard."""
    ids = table.column("assignment_id").to_pylist()
    parts = zip(
        *(table.column(part).to_pylist() for part in ("persona_id", "item_id", "variant", "wave", "draw")), strict=True
    )
    wrong = sum(1 for own, five in zip(ids, parts, strict=True) if own != digest(*five))
    if wrong:
        found.problems.append(f"{name} has {wrong:,} rows whose id is not that of their persona, item, wave and draw.")
    if set(table.column("shard").to_pylist()) - {number}:
        found.problems.append(f"{name} has rows of another shard.")
    found.ids.append(np.array([int(own, 16) for own in ids], dtype=np.uint64))


def _check_plan(ledger: Ledger, number: int, name: str, tables: list[pa.Table], found: _Findings) -> None:
    """The rows are of as many personas as the shard has, and of cells that its layer has."""
    shard = ledger.shard(number)
    box = ledger.layers[shard.layer].box
    columns = {
        part: [value for table in tables for value in table.column(part).to_pylist()]
        for part in ("persona_id", "item_id", "variant", "wave", "draw")
    }
    personas = len(set(columns["persona_id"]))
    if personas != shard.end - shard.begin:
        found.problems.append(f"{name} has rows of {personas:,} personas; {shard.end - shard.begin:,} are planned.")
    keys = {item_key(*pair) for pair in set(zip(columns["item_id"], columns["variant"], strict=True))}
    if strange := keys - set(box.items):
        found.problems.append(f"{name} has rows of items that are not planned: {_shown(strange)}.")
    if max(columns["wave"], default=1) > box.waves or max(columns["draw"], default=1) > box.draws:
        found.problems.append(f"{name} has rows of waves or draws that are not planned.")


def _check_totals(ledger: Ledger, found: _Findings) -> None:
    there = found.committed + found.quarantined
    if there != ledger.num_cells:
        found.problems.append(
            f"{ledger.num_cells:,} assignments are planned, but {found.committed:,} are committed and "
            f"{found.quarantined:,} quarantined: {there - ledger.num_cells:+,}."
        )
    ids = np.concatenate(found.ids) if found.ids else np.array([], dtype=np.uint64)
    repeated = len(ids) - len(np.unique(ids))
    if repeated:
        found.problems.append(f"{repeated:,} assignments are there more than once.")


def _rate(commits: Iterable[dict[str, Any]], now: float) -> float | None:
    """Return responses per second over the last minutes of commits; None where the run stands still."""
    steps = sorted(
        (datetime.fromisoformat(event["time"]).timestamp(), event["rows"] + event["quarantined"]) for event in commits
    )
    recent = [(at, count) for at, count in steps if steps[-1][0] - at <= RATE_WINDOW_S]
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    span = recent[-1][0] - recent[0][0]
    if now - recent[-1][0] > max(STALE_AT_LEAST_S, STALE_FACTOR * span / (len(recent) - 1)):
        return None
    return float(sum(count for _, count in recent[1:]) / span)


def _scaled(counted: int, known: int, done: int) -> int:
    return counted * done // known if known else 0


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_SHOWN} more" if len(ordered) > MAX_SHOWN else ""
    return ", ".join(ordered[:MAX_SHOWN]) + more
