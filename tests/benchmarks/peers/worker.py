"""A process that measures one engine on one core: `python -m benchmarks.peers.worker MODULE '{"settings": ...}'`.

It answers lines of JSON on its standard input with lines of JSON on what was its standard output: `prepare` (untimed:
forget earlier runs, warm up) and `run` (timed). CPU-seconds are those of the whole process group, children included.
It knows no other engine and compares nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.workload import Row, load


class Peer(Protocol):
    """An engine that is measured; a module of this folder builds one by `build(folder, dtype)`."""

    def prepare(self, rows: Sequence[Row]) -> None:
        """Get into the state of a fresh engine that is warm: no text of these rows seen, no cache filled."""

    def run(self, rows: Sequence[Row], mode: str) -> list[int]:
        """Answer the rows, in any order; give how many tokens each has got, in the rows' order."""


def cpu_seconds(group: int) -> float:
    """Give the user and system time of a process group: precise for this process, in clock ticks for its children."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and int(stat.parent.name) != os.getpid():
            ticks += sum(int(field) for field in fields[11:15])
    return total + ticks / os.sysconf("SC_CLK_TCK")


def measure(peer: Peer, rows: Sequence[Row], mode: str) -> dict[str, float]:
    """Run once; give rows, written tokens, CPU-seconds and wall seconds."""
    group = os.getpgid(0)
    cpu, wall = cpu_seconds(group), time.perf_counter()
    lengths = peer.run(rows, mode)
    cpu, wall = cpu_seconds(group) - cpu, time.perf_counter() - wall
    if len(lengths) != len(rows):
        raise RuntimeError(f"{len(lengths)} answers to {len(rows)} rows")
    return {"rows": len(rows), "tokens": sum(lengths), "cpu_s": cpu, "wall_s": wall}


def main(module: str, settings: dict[str, Any]) -> None:
    os.sched_setaffinity(0, {settings["core"]})
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not mix with the answers

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    rows = [row for row in load(Path(settings["workload"])) if row.persona < settings["personas"]]
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if peer is None:
                peer = importlib.import_module(f"benchmarks.peers.{module}").build(
                    settings["folder"], settings["dtype"]
                )
            if request["do"] == "prepare":
                peer.prepare(rows)
                answer(ok=True)
            else:
                answer(ok=True, **measure(peer, rows, request["mode"]))
        except Exception as error:  # noqa: BLE001  the parent reports it and goes on without this engine
            traceback.print_exc()
            answer(ok=False, error=f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
