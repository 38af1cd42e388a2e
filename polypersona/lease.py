"""The lease on a run: one driver at a time writes to a run directory.

`lease.json` says who holds the run (session, host, process) and since when; a thread of the holder renews its
heartbeat. A second driver is refused while the holder is there, and takes over where it is not: where its process on
this machine is dead, or where its heartbeat stands still for `LAPSE_S`. Whether it stands still is seen by watching,
because two clocks may differ.

What this proves. On a local path (or one that nodes share) the file is created exclusively, so of two drivers that
begin together one gets it. A takeover, and every lease on an object store, is a write, a wait and a look at who is
there then: if another driver stalled for longer than the wait between its own look and its own write, both go on until
the first heartbeat after that shows one of them that it lost. Shards stay whole even then: a commit is atomic, and both
would write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from polypersona.errors import LeaseLostError, RunHeldError, StorageError
from polypersona.events import EventLog
from polypersona.storage import RunDirectory

FILE = "lease.json"
HEARTBEAT_S = 10.0
LAPSE_S = 60.0
# Between the write of a claim and the look at who is there then.
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Holder:
    """What the file says of who holds a run. Times are ISO 8601.

    `machine` tells machines of one name apart, and containers on one machine; `process_start` a process from a later
    one of the same number. Both are empty where the system does not tell.
    """

    session: str
    host: str
    machine: str
    pid: int
    process_start: str
    since: str
    heartbeat: str
    lapse_s: float

    @classmethod
    def me(cls, session: str, lapse_s: float) -> Holder:
        """Return this process as a holder."""
        now = _now()
        pid = os.getpid()
        return cls(session, platform.node(), _machine(), pid, _process_start(pid) or "", now, now, lapse_s)

    @property
    def is_here(self) -> bool:
        """Whether the holder's process numbers are those of this machine."""
        return bool(self.machine) and (self.host, self.machine) == (platform.node(), _machine())

    @property
    def is_dead(self) -> bool:
        """Whether the holder's process is known to be gone."""
        return self.is_here and _process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (session {self.session})"


class Lease:
    """The right to write to a run, as a context manager.

    Args:
        run: the run directory.
        heartbeat_s: how often the holder says that it is there.
        lapse_s: how long a heartbeat may stand still.
        settle_s: how long a claim waits for another one.

    Raises:
        RunHeldError: on entry: another driver holds the run.
        LeaseLostError: on exit: another driver has taken the run over.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        lapse_s: float = LAPSE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._run = run
        self._heartbeat_s, self._lapse_s, self._settle_s = heartbeat_s, lapse_s, settle_s
        self._me = Holder.me(uuid.uuid4().hex[:12], lapse_s)
        self._ended = threading.Event()
        self._lost_to = ""
        self._thread: threading.Thread | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Lease:
        if self._run.is_local:
            self._made = _make_folders(self._run.local_path())
        self._acquire()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost_to:
            raise LeaseLostError(
                f"{self._run.path()} was taken over by {self._lost_to}; this driver's heartbeat had stood still.",
                "Let the other one finish, or stop it and run the same command again.",
            ) from (None if kind is KeyboardInterrupt else error)
        with contextlib.suppress(StorageError):  # the lease of a dead process is no hindrance
            holder = self._read()
            if holder is not None and holder.session == self._me.session:
                self._run.delete(FILE)
        for folder in self._made:
            with contextlib.suppress(OSError):  # the run is there now
                folder.rmdir()

    def _acquire(self) -> None:
        holder = self._read()
        if holder is None and self._run.is_local:
            if self._create():
                return
            holder = self._read()
        if holder is not None and not holder.is_dead:
            self._watch(holder)
        self._claim()
        if holder is not None:
            log = EventLog(self._run, "driver")
            log.write("lease taken over", session=self._me.session, before=str(holder), since=holder.since)

    def _watch(self, holder: Holder) -> None:
        """Return once the holder's heartbeat has stood still for as long as it may.

        Raises:
            RunHeldError: it goes on; on one machine, whose clock is the same, that need not be awaited.
        """
        begin = time.monotonic()
        while True:
            now = self._read()
            if now is None:
                return
            if now != holder or (holder.is_here and _age_s(holder) < holder.lapse_s):
                raise _refusal(self._run, now)
            if time.monotonic() - begin >= max(holder.lapse_s - _age_s(holder), 2 * self._heartbeat_s):
                return
            time.sleep(min(1.0, self._heartbeat_s / 4))

    def _create(self) -> bool:
        """Create the file, and return whether this process was the first."""
        path = self._run.local_path(FILE)
        try:
            with path.open("x") as stream:
                stream.write(self._content())
        except FileExistsError:
            return False
        except OSError as error:
            with contextlib.suppress(OSError):  # or the next driver would wait for the unknown holder of an empty file
                path.unlink(missing_ok=True)
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}.", "Choose a folder you may write to."
            ) from error
        return True

    def _claim(self) -> None:
        """Write the file, and hold that nobody else has done so at the same time.

        Raises:
            RunHeldError: another driver has.
        """
        self._run.write(FILE, self._content().encode())
        time.sleep(self._settle_s)
        holder = self._read()
        if holder is None or holder.session != self._me.session:
            raise _refusal(self._run, holder)

    def _renew(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            with contextlib.suppress(StorageError):  # a store that is away for a moment takes nobody's lease
                holder = self._read()
                if holder is not None and holder.session != self._me.session:
                    self._lost_to = str(holder)
                    if not self._ended.is_set():  # to the thread itself: it may wait in a call of the system
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._me = replace(self._me, heartbeat=_now())
                self._run.write(FILE, self._content().encode())

    def _read(self) -> Holder | None:
        """Return who holds the run; None where nobody does. What is there half-written is read again."""
        for attempt in range(3):
            if not self._run.exists(FILE):
                return None
            try:
                stored = json.loads(self._run.read(FILE))
                return Holder(**{name: stored[name] for name in Holder.__dataclass_fields__})
            except (ValueError, KeyError, TypeError):
                time.sleep(0.1 * (attempt + 1))
            except StorageError:
                if self._run.exists(FILE):
                    raise
        # A driver that was killed while it wrote leaves a file nobody renews.
        return Holder("unknown", "unknown", "", 0, "", "unknown", "", self._lapse_s)

    def _content(self) -> str:
        content: dict[str, Any] = {"synthetic": True, **asdict(self._me)}
        return json.dumps(content, indent=2) + "\n"


@contextlib.contextmanager
def hold(run: RunDirectory) -> Iterator[None]:
    """Hold a run for the time of the context.

    Raises:
        RunHeldError: another driver holds it.
        LeaseLostError: another driver has taken it over.
    """
    with Lease(run):
        run.sweep()
        yield
        run.sweep()  # of actors that died meanwhile


def _refusal(run: RunDirectory, holder: Holder | None) -> RunHeldError:
    who = "another driver" if holder is None else f"{holder} since {holder.since}"
    lapse_s = LAPSE_S if holder is None else holder.lapse_s
    return RunHeldError(
        f"{run.path()} is held by {who}; its lease lapses {lapse_s:g} s after its last heartbeat"
        f"{f' ({holder.heartbeat})' if holder is not None and holder.heartbeat else ''}.",
        "Wait until it has finished, or stop it; `polypersona status` shows how far it is.",
    )


def _make_folders(path: Path) -> list[Path]:
    """Make a folder with its parents, and return what was made, the innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be made: {error.strerror or error}.", "Set out: to a folder you may write to."
        ) from error
    return missing


def _age_s(holder: Holder) -> float:
    """Return how old the last heartbeat is by this machine's clock; 0 where that cannot be told."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(holder.heartbeat)).total_seconds())
    except ValueError:
        return 0.0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _machine() -> str:
    """Return what tells this machine's process numbers from those of others; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """Return when a process was started, in the system's own ticks; None where it is gone or a zombie."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
