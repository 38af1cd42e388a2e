"""What run.json and the events of a run tell: its plan; and its commits, sessions, pool and versions.

Memory is one small record a shard, however many events there are. Events are for people and audits; where one is
missing or cannot be read, it is as if it had not been written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from polypersona.errors import StorageError
from polypersona.events import read_events
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, ledger_from
from polypersona.storage import RunDirectory, load_run


@dataclass(frozen=True, slots=True)
class Commit:
    """A shard's last commit. `at` is in seconds since the epoch; token counts are None where the event has none."""

    shard: int
    round: int
    at: float
    session: str
    rows: int
    quarantined: int
    file_bytes: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Session:
    """One driver's work: when and with which facts it began, and how it ended; `end` is empty where nothing tells."""

    name: str
    begin: float
    facts: Mapping[str, Any]
    end: str = ""


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many actors a pool was asked for and has, and why; the name is empty where there is only one pool."""

    name: str
    at: float
    asked: int
    actors: int
    reason: str


@dataclass(slots=True)
class History:
    """What the events tell.

    `hashes` are those of every file that was committed, by folder, shard and round. `pools` is the
    last that was told of each pool of actors.
    """

    commits: dict[int, Commit] = field(default_factory=dict)
    hashes: dict[tuple[str, int, int], set[str]] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    pools: dict[str, PoolSize] = field(default_factory=dict)
    failures: int = 0
    last: float = 0.0


def load_plan(run: RunDirectory) -> tuple[dict[str, Any], Ledger]:
    """Return run.json and the plan it holds.

    Raises:
        StorageError: there is no run, its generate stage has not begun, or run.json is not what a run writes.
    """
    stored = load_run(run)
    if not stored:
        raise StorageError(f"{run.path()} is no run: it has no run.json.", "Name a run directory, such as runs/demo.")
    if "ledger" not in stored:
        raise StorageError(f"{run.path()} has no responses yet.", "Run the generate stage first.")
    try:
        ledger = ledger_from(stored["ledger"])
        if not isinstance(stored["fingerprint"], str) or stored["recipe"]["generate"]["on"] not in ("panel", "test"):
            raise ValueError("it names no fingerprint, or nobody who is asked")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"{run.path('run.json')} does not say what is planned: {error}.", "Restore the file, or name another run."
        ) from error
    return stored, ledger


def read_history(run: RunDirectory) -> History:
    """Return what the events of a run tell.

    Raises:
        StorageError: the events cannot be read.
    """
    history = History()
    sessions: dict[str, str] = {}  # of the actors, by writer
    for event in read_events(run):
        try:
            at = datetime.fromisoformat(event["time"]).timestamp()
            if event["writer"].startswith("actor-"):
                _add_of_actor(history, sessions, event, at)
            elif event["writer"].startswith("driver"):
                _add_of_driver(history, event, at)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # edited by hand, or of another version
        history.last = max(history.last, at)
    history.sessions.sort(key=lambda session: session.begin)
    return history


def _add_of_actor(history: History, sessions: dict[str, str], event: Mapping[str, Any], at: float) -> None:
    if event["event"] == "start":
        sessions[event["writer"]] = str(event.get("session", ""))
        for name, value in event.get("versions", {}).items():
            history.versions.setdefault(str(name), set()).add(str(value))
    elif event["event"] == "failure":
        history.failures += 1
    elif event["event"] == "commit":
        commit = Commit(
            shard=int(event["shard"]),
            round=int(event.get("round", 0)),
            at=at,
            session=sessions.get(event["writer"], ""),
            rows=int(event["rows"]),
            quarantined=int(event["quarantined"]),
            file_bytes=_count(event, "file_bytes"),
            prompt_tokens=_count(event, "prompt_tokens"),
            new_tokens=_count(event, "new_tokens"),
            reasons={str(reason): int(count) for reason, count in event.get("reasons", {}).items()},
        )
        for folder, fact in ((RESPONSES, "file_hash"), (QUARANTINE, "quarantine_hash")):
            if event.get(fact):
                history.hashes.setdefault((folder, commit.shard, commit.round), set()).add(str(event[fact]))
        known = history.commits.get(commit.shard)
        if known is None or (known.round, known.at) <= (commit.round, commit.at):
            history.commits[commit.shard] = commit


def _add_of_driver(history: History, event: Mapping[str, Any], at: float) -> None:
    if event["event"] == "start":
        history.sessions.append(Session(str(event["session"]), at, event))
    elif event["event"] == "end":
        for session in history.sessions:
            if session.name == event["session"]:
                session.end = str(event.get("state", "finished"))
    elif event["event"] == "pool":
        size = PoolSize(str(event.get("pool", "")), at, int(event["asked"]), int(event["actors"]), str(event["reason"]))
        known = history.pools.get(size.name)
        if known is None or known.at <= at:
            history.pools[size.name] = size


def _count(event: Mapping[str, Any], name: str) -> int | None:
    return int(event[name]) if event.get(name) is not None else None
