"""The event log of a run: one JSON line per decision, commit, retry and failure, one file a writer.

On a local file system a line is appended as it happens. An object store cannot append: there a writer has a sequence of
small objects of up to `SEGMENT_LINES` lines, and each line is a PUT of the object that it ends. Nothing reads events to
decide what to do: the ledger does.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from polypersona.errors import StorageError
from polypersona.location import mask_all, mask_secrets
from polypersona.storage import RunDirectory

FOLDER = "events"
# An object is written anew for each of its lines and read whole: enough lines that objects are few, and few enough that
# they are small.
SEGMENT_LINES = 64
_READERS = 16
_SEGMENT = re.compile(r"-\d{17,}-\d{6,}$")


class EventLog:
    """Writes the events of one writer: the driver, or one actor. Threads may share it.

    Args:
        run: the run directory.
        writer: a name no other process writes under at the same time.
    """

    def __init__(self, run: RunDirectory, writer: str) -> None:
        self._run = run
        self._writer = writer
        self._lock = threading.Lock()
        self._count = 0
        self._segment = ""
        self._lines: list[str] = []

    def write(self, event: str, **facts: Any) -> None:
        """Write one event with its facts, which are JSON values; secrets in URLs are masked.

        Raises:
            StorageError: the log cannot be written.
        """
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            content = {"time": now, "event": event, "synthetic": True, **mask_all(facts)}
            line = json.dumps(content, ensure_ascii=False, default=_masked_text) + "\n"
            if self._run.is_local:
                self._append(line)
            else:
                self._put(now, line)
                self._count += 1

    def _put(self, now: str, line: str) -> None:
        if self._count % SEGMENT_LINES == 0:
            stamp = re.sub(r"\D", "", now.partition("+")[0])
            self._segment = f"{FOLDER}/{self._writer}-{stamp}-{self._count + 1:06d}.jsonl"
            self._lines = []
        self._lines.append(line)
        self._run.write(self._segment, "".join(self._lines).encode())

    def _append(self, line: str) -> None:
        path = self._run.writable_path(f"{FOLDER}/{self._writer}.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as stream:
                if _is_cut_short(stream):
                    line = "\n" + line
                stream.write(line.encode())
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}.",
                "Free space or choose a folder you may write to; what was committed before is kept.",
            ) from error


def read_events(run: RunDirectory, writer: str = "") -> Iterator[dict[str, Any]]:
    """Yield the events of all writers, or of those whose name begins so; a line cut short by a kill is left out.

    Each has its writer's name as `writer`. Those of one writer come in the order in which they were written.
    """
    names = [name for name in run.names(FOLDER, ".jsonl") if name.removeprefix(f"{FOLDER}/").startswith(writer)]
    for name, line in _read_local(run, names) if run.is_local else _read_objects(run, names):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield {**event, "writer": _writer_of(name)}


def _read_local(run: RunDirectory, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        try:
            with run.local_path(name).open("rb") as stream:
                for line in stream:
                    yield name, line
        except OSError as error:
            raise StorageError(
                f"{run.path(name)} cannot be read: {error.strerror or error}.", "Check its permissions."
            ) from error


def _read_objects(run: RunDirectory, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of objects, of which some are under way at a time."""
    waiting = iter(names)
    with ThreadPoolExecutor(_READERS) as pool:
        while part := list(islice(waiting, _READERS)):
            for name, data in zip(part, pool.map(run.read, part), strict=True):
                for line in data.splitlines():
                    yield name, line


def _writer_of(name: str) -> str:
    return _SEGMENT.sub("", name.removeprefix(f"{FOLDER}/").removesuffix(".jsonl"))


def _is_cut_short(stream: Any) -> bool:
    """Whether the file's last line has no end, because its writer was killed while it wrote."""
    if stream.seek(0, 2) == 0:
        return False
    stream.seek(-1, 2)
    return bool(stream.read(1) != b"\n")


def _masked_text(value: object) -> str:
    return mask_secrets(str(value))
