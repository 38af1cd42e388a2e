"""The event log of a run: one JSON line per decision, commit, retry and failure, one file a writer.

On a local file system a line is appended as it happens. An object store cannot append, so there each line is an
object of its own in the writer's numbered sequence. Nothing reads events to decide what to do: the ledger does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from polypersona.errors import StorageError
from polypersona.location import mask_all
from polypersona.storage import RunDirectory

FOLDER = "events"


class EventLog:
    """Writes the events of one writer: the driver, or one actor.

    Args:
        run: the run directory.
        writer: a name no other process writes under at the same time.
    """

    def __init__(self, run: RunDirectory, writer: str) -> None:
        self._run = run
        self._writer = writer
        self._count = 0

    def write(self, event: str, **facts: Any) -> None:
        """Write one event with its facts, which are JSON values; secrets in URLs are masked.

        Raises:
            StorageError: the log cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"time": now, "event": event, "synthetic": True, **mask_all(facts)}
        line = json.dumps(content, ensure_ascii=False, default=str)
        if not self._run.is_local:
            self._count += 1
            stamp = re.sub(r"\D", "", now)
            self._run.write(f"{FOLDER}/{self._writer}-{stamp}-{self._count:06d}.jsonl", (line + "\n").encode())
            return
        path = self._run.local_path(f"{FOLDER}/{self._writer}.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.write((line + "\n").encode())
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}.",
                "Free space or choose a folder you may write to; what was committed before is kept.",
            ) from error


def read_events(run: RunDirectory, writer: str = "") -> Iterator[dict[str, Any]]:
    """Yield the events of all writers, or of those whose name begins so; a line cut short by a kill is left out."""
    for name in run.names(FOLDER, ".jsonl"):
        if not name.removeprefix(f"{FOLDER}/").startswith(writer):
            continue
        for line in run.read(name).splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue
