"""The audit of a run, from the files of its directory alone: each planned assignment is there exactly once.

It is committed or quarantined, in files that are what they were when they were committed. Reads only, a file at a time;
knows neither recipe sources, engines nor Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from polypersona.history import load_plan, read_history
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, quarantine_number, shard_name
from polypersona.shard_audit import Auditor, shown
from polypersona.storage import RunDirectory

# Hashing and reading leave Python to another thread, so two take little more than half the time of one.
THREADS = 2
# Ids that are compared at once, eight bytes each; those of a larger run are parted by their remainder.
MAX_IDS = 4_000_000


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


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    committed: int = 0
    quarantined: int = 0
    not_asked: int = 0


class _Ids:
    """The ids of all rows, in temporary files by their remainder, so that the memory they take does not grow.

    Args:
        num_rows: how many there are about.
    """

    def __init__(self, num_rows: int) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(num_rows // MAX_IDS + 1)]  # noqa: SIM115 closed below

    def add(self, ids: bytes) -> None:
        values = np.frombuffer(ids, dtype=np.uint64)
        for place, file in enumerate(self._files):
            file.write(values[values % len(self._files) == place].tobytes())

    def num_repeated(self) -> int:
        """Return how many are there once more, and close the files."""
        repeated = 0
        for file in self._files:
            with file:
                file.seek(0)
                values = np.frombuffer(bytearray(file.read()), dtype=np.uint64)
                values.sort()
                repeated += int(np.count_nonzero(values[1:] == values[:-1]))
        return repeated


def verify(run: RunDirectory) -> Audit:
    """Audit a run.

    Raises:
        StorageError: there is no run, its generate stage has not begun, or its files cannot be listed.
    """
    stored, ledger = load_plan(run)
    fingerprint = stored["fingerprint"]
    history, found = read_history(run), _Findings()
    responses, quarantine = set(run.names(RESPONSES)), set(run.names(QUARANTINE))
    _check_names(ledger, fingerprint, responses, quarantine, found)
    auditor = Auditor(run, ledger, fingerprint, history.hashes, quarantine, _shard_cells(stored, ledger, found))
    numbers = [
        number for number in range(ledger.num_shards) if f"{RESPONSES}/{shard_name(number, fingerprint)}" in responses
    ]
    _check_shards(auditor, numbers, found)
    there = found.committed + found.quarantined
    if there != ledger.num_cells:
        found.problems.append(
            f"{ledger.num_cells:,} assignments are planned, but {found.committed:,} are committed and "
            f"{found.quarantined:,} quarantined: {there - ledger.num_cells:+,}."
        )
    found.notes += [
        f"written with several versions of {name}: {', '.join(sorted(values))}"
        for name, values in sorted(history.versions.items())
        if len(values) > 1
    ]
    return Audit(
        run=run.path(),
        fingerprint=fingerprint,
        shards=ledger.num_shards,
        planned=ledger.num_cells,
        committed=found.committed,
        quarantined=found.quarantined,
        problems=tuple(found.problems),
        notes=tuple(found.notes),
        not_asked=found.not_asked,
    )


def _check_shards(auditor: Auditor, numbers: Sequence[int], found: _Findings) -> None:
    """Audit the shards whose files are there, and hold that no id is in two of them."""
    ids, unrecorded, kept = _Ids(auditor.ledger.num_cells), [], set()
    pool = ThreadPoolExecutor(THREADS)
    try:
        for audit in pool.map(auditor.audit, numbers):
            found.problems += audit.problems
            found.committed += audit.committed
            found.quarantined += audit.quarantined
            found.not_asked += audit.not_asked
            ids.add(audit.ids)
            kept.add(audit.quarantine)
            if not audit.is_recorded and not audit.problems:
                unrecorded.append(shard_name(audit.number, auditor.fingerprint))
    finally:
        pool.shutdown(cancel_futures=True)
    if repeated := ids.num_repeated():
        found.problems.append(f"{repeated:,} assignments are there more than once.")
    if unrecorded:
        found.notes.append(
            f"{len(unrecorded):,} shard files have no event of their commit; nothing but their own hash holds them: "
            f"{shown(unrecorded)}"
        )
    if not found.problems and (left := set(auditor.quarantine) - kept):
        found.notes.append(f"{len(left):,} files in {QUARANTINE}/ are left by steps that were killed: {shown(left)}")


def _check_names(
    ledger: Ledger, fingerprint: str, responses: Collection[str], quarantine: Collection[str], found: _Findings
) -> None:
    """Every shard has its file, and no other file is there."""
    expected = {f"{RESPONSES}/{shard_name(number, fingerprint)}" for number in range(ledger.num_shards)}
    strange = {name for name in quarantine if not _is_quarantine_name(name, ledger, fingerprint)}
    for what, names in (
        ("not committed", expected - set(responses)),
        (f"in {RESPONSES}/ but not of this run", set(responses) - expected),
        (f"in {QUARANTINE}/ but not of this run", strange),
    ):
        if names:
            short = shown(name.rsplit("/", 1)[-1] for name in names)
            found.problems.append(f"{len(names):,} shard files are {what}: {short}.")


def _is_quarantine_name(name: str, ledger: Ledger, fingerprint: str) -> bool:
    """Whether a file in `quarantine/` is named as one of a shard of this run, in whatever round."""
    number = quarantine_number(name, fingerprint)
    return number is not None and number < ledger.num_shards


def _shard_cells(stored: Mapping[str, Any], ledger: Ledger, found: _Findings) -> Sequence[int] | None:
    """Return the planned assignments of each shard as run.json has them, where not all personas are asked alike."""
    if stored["recipe"]["generate"]["on"] != "test":
        return ()
    cells: list[int] | None = stored["ledger"].get("shard_cells")
    if cells is None:
        found.notes.append(
            "run.json has no planned assignments by shard; the files are believed what they say of theirs"
        )
    elif len(cells) != ledger.num_shards or sum(cells) != ledger.num_cells:
        found.problems.append(f"run.json has other planned assignments by shard than the {ledger.num_cells:,} in all.")
        return None
    return cells
