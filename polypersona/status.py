"""How far a run is, told from its files by another process, while it runs or after it died.

Takes listings, sizes, events and the lease; no row is read. Only where a shard's event is missing or does not fit its
file, that file's footer is read, and the reasons in its quarantine file. Knows no Ray.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from polypersona.errors import StorageError
from polypersona.history import History, Session, load_plan, read_history
from polypersona.lease import FILE as LEASE_FILE
from polypersona.lease import Holder
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, quarantine_name, shard_name
from polypersona.parquet import read_parquet
from polypersona.rounds import read_committed_footer
from polypersona.storage import RunDirectory

State = Literal["running", "stopped", "died", "finished"]
RATE_WINDOW_S = 600.0
# A run whose last commit is older than so many times the usual wait for one stands still: no time left is promised.
STALE_FACTOR = 5.0
STALE_AT_LEAST_S = 120.0
MAX_REASONS = 50
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Rate:
    """What the last start has committed per second; a token count is None where the events do not tell it."""

    responses: float
    prompt_tokens: float | None
    new_tokens: float | None


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of actors: how many were asked for, how many there are, and why.

    The name is empty where there is only one pool; `actors` is None until the pool has told.
    """

    name: str
    asked: int
    actors: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """How far a run is.

    Attributes:
        state: `running` (a driver holds the run), `died` (one did, and its heartbeat stands still), `stopped` (none
            does), `finished` (every shard is there and whole).
        damaged: names of files that are missing or cut short although their shard was committed.
        reasons: quarantined rows by reason, the commonest first; `other` are those that events do not name.
        failures: attempts at shards that failed.
        holder: who holds the run, since when, and the age of the heartbeat; None where nobody does.
        begun: when the last start was, in seconds since the epoch; None where no event tells.
        ended: how it ended, as its driver wrote: `finished`, `stopped` (after `max_hours`), `interrupted` or
            `failed: …`; empty where it did not.
        pools: the actors of the last start.
        rate: of what was committed since then, over the last minutes; None where it is too early or stands still.
        left_s: seconds left at that rate; None unless running.
    """

    run: str
    state: State
    shards_done: int
    shards: int
    responses_done: int
    responses: int
    quarantined: int
    reasons: dict[str, int]
    damaged: tuple[str, ...] = ()
    failures: int = 0
    holder: dict[str, Any] | None = None
    begun: float | None = None
    ended: str = ""
    pools: tuple[Pool, ...] = ()
    rate: Rate | None = None
    left_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return {"synthetic": True, **asdict(self)}


@dataclass(slots=True)
class _Shards:
    """What the files of the committed shards add up to."""

    done: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def read_status(run: RunDirectory, now: float | None = None) -> Status:
    """Return how far a run is.

    Args:
        run: the run directory.
        now: seconds since the epoch; the present unless given.

    Raises:
        StorageError: there is no run, or its generate stage has not begun.
    """
    now = time.time() if now is None else now
    stored, ledger = load_plan(run)
    history = read_history(run)
    shards = _look_at_shards(run, ledger, stored["fingerprint"], history)
    session = history.sessions[-1] if history.sessions else None
    holder, is_held = _read_holder(run, now)
    is_whole = len(shards.done) == ledger.num_shards and not shards.damaged
    state = _state(is_whole=is_whole, holder=holder, is_held=is_held, session=session)
    responses_done = sum(_shard_cells(stored, ledger, number) for number in shards.done)
    rate = _rate(history, session, now, is_running=state == "running")
    left = ledger.num_cells - responses_done
    return Status(
        run=run.path(),
        state=state,
        shards_done=len(shards.done),
        shards=ledger.num_shards,
        responses_done=responses_done,
        responses=ledger.num_cells,
        quarantined=shards.quarantined,
        reasons=_reasons(shards),
        damaged=tuple(shards.damaged),
        failures=history.failures,
        holder=holder,
        begun=session.begin if session else None,
        ended=session.end if session else "",
        pools=_pools(history, session),
        rate=rate,
        left_s=0.0 if left == 0 else left / rate.responses if rate and state == "running" else None,
    )


def _look_at_shards(run: RunDirectory, ledger: Ledger, fingerprint: str, history: History) -> _Shards:
    """Compare the listings with what the events say was committed."""
    responses, quarantine = run.sizes(RESPONSES), run.sizes(QUARANTINE)
    shards = _Shards()
    for number in range(ledger.num_shards):
        name = f"{RESPONSES}/{shard_name(number, fingerprint)}"
        commit = history.commits.get(number)
        if name not in responses:
            if commit is not None:
                shards.damaged.append(name)
            continue
        held = f"{QUARANTINE}/{quarantine_name(number, fingerprint, commit.round if commit else 0)}"
        is_as_told = commit is not None and commit.file_bytes == responses[name]
        if commit is not None and is_as_told and (held in quarantine or not commit.quarantined):
            shards.done.add(number)
            shards.quarantined += commit.quarantined
            shards.reasons.update(commit.reasons)
        else:
            _look_inside(run, number, fingerprint, quarantine, shards)
    return shards


def _look_inside(
    run: RunDirectory, number: int, fingerprint: str, quarantine: Mapping[str, int], shards: _Shards
) -> None:
    """Look at a shard of which the events do not tell, or tell otherwise."""
    try:
        footer = read_committed_footer(run, number, fingerprint)
        if (footer.shard, footer.fingerprint) != (number, fingerprint):
            raise StorageError(f"This is shard {footer.shard} of {footer.fingerprint}.")
    except StorageError:
        shards.damaged.append(f"{RESPONSES}/{shard_name(number, fingerprint)}")
        return
    held = f"{QUARANTINE}/{quarantine_name(number, fingerprint, footer.round)}"
    try:
        if footer.quarantined:
            if held not in quarantine:
                raise StorageError(f"There is no {run.path(held)}.")
            shards.reasons.update(_read_reasons(run, held))
    except (StorageError, pa.ArrowException, OSError, ValueError):
        shards.damaged.append(held)
        return
    shards.quarantined += footer.quarantined
    shards.done.add(number)


def _read_reasons(run: RunDirectory, name: str) -> list[str]:
    fs, root = run.filesystem()
    with fs.open_input_file(f"{root}/{name}") as stream:
        reasons: list[str] = read_parquet(stream, columns=["reason"]).column("reason").to_pylist()
    return reasons


def _reasons(shards: _Shards) -> dict[str, int]:
    """Return the commonest reasons with their counts, and the count of all others."""
    reasons = dict(shards.reasons.most_common(MAX_REASONS))
    if others := shards.quarantined - sum(reasons.values()):
        reasons[OTHER] = reasons.get(OTHER, 0) + others
    return reasons


def _shard_cells(stored: Mapping[str, Any], ledger: Ledger, number: int) -> int:
    cells: Sequence[int] | None = stored["ledger"].get("shard_cells")
    return cells[number] if cells else ledger.num_shard_cells(number)


def _read_holder(run: RunDirectory, now: float) -> tuple[dict[str, Any] | None, bool]:
    """Return who the lease says holds the run, and whether that one is there: not dead, its heartbeat not lapsed."""
    try:
        stored = json.loads(run.read(LEASE_FILE)) if run.exists(LEASE_FILE) else None
    except (StorageError, ValueError):  # given back, or written, at this moment
        stored = None
    if not isinstance(stored, dict):
        return None, False
    try:
        age_s = max(0.0, now - datetime.fromisoformat(stored["heartbeat"]).timestamp())
        holder = Holder(**{name: stored[name] for name in Holder.__dataclass_fields__})
        is_held = not holder.is_dead and age_s <= holder.lapse_s
    except (KeyError, TypeError, ValueError):  # of another version, or cut short
        return {"who": "a process that lease.json does not name", "since": None, "heartbeat_age_s": None}, False
    return {"who": str(holder), "since": holder.since, "heartbeat_age_s": round(age_s, 1)}, is_held


def _state(*, is_whole: bool, holder: Mapping[str, Any] | None, is_held: bool, session: Session | None) -> State:
    is_retrying = session is not None and not session.end and bool(session.facts.get("round"))
    if is_held and (is_retrying or not is_whole):
        return "running"
    if is_whole:
        return "finished"
    return "stopped" if holder is None else "died"


def _pools(history: History, session: Session | None) -> tuple[Pool, ...]:
    """Return what the pools of the last start have told, or what that start asked for."""
    if session is None:
        return ()
    told = [size for _, size in sorted(history.pools.items()) if size.at >= session.begin]
    if told:
        return tuple(Pool(size.name, size.asked, size.actors, size.reason) for size in told)
    asked = session.facts.get("actors")
    if not isinstance(asked, Mapping) or not isinstance(asked.get("value"), int):
        return ()
    return (Pool("", asked["value"], None, str(asked.get("reason", ""))),)


def _rate(history: History, session: Session | None, now: float, *, is_running: bool) -> Rate | None:
    """Return what the last start has committed per second: over its last minutes, or over all of it where that is few.

    Retried rows are of shards that were committed before, so they say nothing of the time left.
    """
    if session is None:
        return None
    commits = [commit for commit in history.commits.values() if commit.session == session.name and not commit.round]
    commits.sort(key=lambda commit: commit.at)
    if not commits:
        return None
    last = commits[-1].at
    recent = [commit for commit in commits if last - commit.at <= RATE_WINDOW_S]
    counted, begin = recent[1:], recent[0].at
    if len(recent) < 3:
        counted, begin = commits, session.begin
    span = last - begin
    if span <= 0:
        return None
    if is_running and now - last > max(STALE_AT_LEAST_S, STALE_FACTOR * span / len(counted)):
        return None
    return Rate(
        responses=sum(commit.rows + commit.quarantined for commit in counted) / span,
        prompt_tokens=_per_second([commit.prompt_tokens for commit in counted], span),
        new_tokens=_per_second([commit.new_tokens for commit in counted], span),
    )


def _per_second(counts: Sequence[int | None], span: float) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) / span if len(known) == len(counts) else None
