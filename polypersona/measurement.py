"""One actor's pace: builds an engine, warms it up, and counts what it answers in about the seconds it is given.

Runs in a process of its own, so that memory, threads and devices are those of an actor. Takes cells, gives counts.
Knows no Ray, no file of a run and no hardware.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path

from polypersona.answering import answer_cells
from polypersona.engines.base import Answer, Engine, EngineSettings
from polypersona.engines.device_memory import peak_device_bytes
from polypersona.engines.registry import load_engine
from polypersona.errors import PolypersonaError, RunFailedError
from polypersona.response_table import AskedCell
from polypersona.scheduling.calibration import Figures

# A first call that fills the slots may take this many times the seconds that are given to measure.
MAX_WARM_UP = 2.0
# vLLM computes in a process that it starts, where neither CPU time nor memory of this one are counted.
_COMPUTES_ELSEWHERE = ("vllm",)


@dataclass(frozen=True, slots=True)
class Request:
    """What one process measures. `personas` are the cells of whole personas, in the order they are asked.

    A call of the engine gets at most `max_personas`, as many as a shard holds; `environment` is set before any library
    that computes is loaded.
    """

    settings: EngineSettings
    personas: tuple[tuple[AskedCell, ...], ...]
    max_personas: int
    max_attempts: int
    is_interview: bool
    seconds: float
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """Counts of one process; whether a call filled the slots that a shard fills; how often the sample was asked."""

    figures: Figures
    is_full: bool
    passes: float
    failed: int
    reason: str


def measure(request: Request) -> Measured:
    """Measure the pace of one actor.

    Raises:
        PolypersonaError: the engine cannot be built.
        RunFailedError: the engine raised, or answered no cell.
    """
    os.environ.update(request.environment)
    begin = time.monotonic()
    engine = load_engine(request.settings)
    start_up_s = time.monotonic() - begin
    try:
        return _Stopwatch(engine, request).run(start_up_s)
    except PolypersonaError:
        raise
    except Exception as error:
        raise RunFailedError(
            f"The {engine.name} engine failed while it was measured: {type(error).__name__}: {error}.",
            "Try fewer generate.slots or a smaller model.base; `polypersona doctor` says what this machine can do.",
        ) from error
    finally:
        engine.close()


class _Stopwatch:
    """Asks groups of whole personas: some that do not count, then some that do."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._coming: Iterator[tuple[AskedCell, ...]] = cycle(request.personas)
        self._asked = 0

    def run(self, start_up_s: float) -> Measured:
        request = self._request
        limit_s = MAX_WARM_UP * request.seconds
        first_s = self._ask(1)[1]
        most = min(request.max_personas, len(request.personas))  # no cell twice in a call
        fill = min(self._personas_to_fill(), most)
        size = max(1, min(fill, int(limit_s / first_s)))
        warm_s = self._ask(size)[1]
        size = max(size, min(most, int(size * request.seconds / 2 / warm_s)))
        answers: list[Answer] = []
        seconds, cpu_begin = 0.0, time.process_time()
        while seconds < request.seconds:
            found, passed_s = self._ask(size)
            answers += found
            seconds += passed_s
        cpu_s = time.process_time() - cpu_begin
        _refuse_failures(answers, self._engine.name)
        is_elsewhere = self._engine.name in _COMPUTES_ELSEWHERE
        figures = Figures(
            actors=1,
            rows=len(answers),
            seconds=seconds,
            cpu_s=None if is_elsewhere else cpu_s,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            reused_prompt_tokens=sum(answer.reused_prompt_tokens for answer in answers),
            new_tokens=sum(answer.new_tokens for answer in answers),
            start_up_s=start_up_s,
            peak_rss_bytes=None if is_elsewhere else peak_rss_bytes(),
            peak_device_bytes=None if is_elsewhere else peak_device_bytes(),
        )
        failures = [answer.error for answer in answers if answer.disposition == "error"]
        passes = self._asked / len(request.personas)
        return Measured(figures, size >= fill, passes, len(failures), failures[0] if failures else "")

    def _ask(self, size: int) -> tuple[list[Answer], float]:
        """Return the answers of the next personas and how many seconds they took."""
        request = self._request
        cells = list(chain.from_iterable(islice(self._coming, size)))
        self._asked += size
        begin = time.monotonic()
        answers = answer_cells(self._engine, cells, request.max_attempts, is_interview=request.is_interview)
        return [answer for answer, _ in answers], max(time.monotonic() - begin, 1e-6)

    def _personas_to_fill(self) -> int:
        return math.ceil(self._request.settings.slots / self._places_of_a_persona())

    def _places_of_a_persona(self) -> float:
        """Return how many slots a persona can fill: one a cell, or one an interview."""
        personas = self._request.personas
        if not self._request.is_interview:
            return sum(len(cells) for cells in personas) / len(personas)
        return sum(len({asked.interview for asked in cells}) for cells in personas) / len(personas)


def peak_rss_bytes() -> int:
    """Return the most memory this process held.

    On Linux that is its own mark: `ru_maxrss` begins with what the process that started it held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _refuse_failures(answers: Sequence[Answer], engine: str) -> None:
    failed = [answer for answer in answers if answer.disposition == "error"]
    if failed and len(failed) == len(answers):
        raise RunFailedError(
            f"The {engine} engine answered none of {len(answers):,} cells; the first error: {failed[0].error}.",
            "Mend that and measure again.",
        )
