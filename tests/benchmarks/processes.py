"""The measuring end of a peer's process: starts it in a session of its own, asks it, ends it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).resolve().parents[1]
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PeerError(Exception):
    """A peer could not be made ready or did not answer; the message says why, in one line."""


def environment() -> dict[str, str]:
    """Give the variables every process of the benchmark runs under."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), **quiet, "PYTHONPATH": paths}


@dataclass(slots=True)
class Worker:
    """A peer's process. Its own output goes to `log`."""

    process: subprocess.Popen[str]
    log: Path

    @classmethod
    def start(cls, python: Path, module: str, settings: Mapping[str, Any], log: Path) -> Self:
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [str(python), "-m", "benchmarks.peers.worker", module, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(),
                cwd=log.parent,
                start_new_session=True,
            )
        return cls(process, log)

    def ask(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Send a request and give its answer.

        Raises:
            PeerError: it failed; or it ended or took longer, and the process is gone.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
            line = self.process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, line = [self.process.stdout], ""
        if not line:
            self.close()
            raise PeerError(f"ended without an answer; see {self.log}" if ready else f"no answer in {timeout_s:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
