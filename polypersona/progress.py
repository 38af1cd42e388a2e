"""Progress of a stage: a live bar on a terminal, plain lines on a pipe, the same figures on both.

Takes how much there is to do and how much was just done; writes to stderr. The rate is that of the last minute and
counts the time since the last step, so a stall lowers it and the time left grows. Knows no stage and no Ray.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

WINDOW_S = 60.0
LINE_EVERY_S = 5.0


class Pace:
    """How fast something goes: the rate over the last minute and the time left at that rate.

    Args:
        total: how much there is to do in all.
        done: how much was done before this process began; it counts as progress but not towards the rate.
        clock: seconds that never go back.
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = done
        self._clock = clock
        self._begin = clock()
        self._first = done
        self._steps: deque[tuple[float, int]] = deque([(self._begin, done)])

    def advance(self, amount: int) -> None:
        """Count `amount` more as done."""
        self.done += amount
        now = self._clock()
        self._steps.append((now, self.done))
        while len(self._steps) > 2 and now - self._steps[1][0] > WINDOW_S:
            self._steps.popleft()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begin

    @property
    def mean_rate(self) -> float:
        """Done per second since the beginning; NaN before any time has passed."""
        elapsed_s = self.elapsed_s
        return (self.done - self._first) / elapsed_s if elapsed_s > 0 else float("nan")

    @property
    def rate(self) -> float:
        """Done per second over the last minute; NaN while nothing is done."""
        since, done = self._steps[0]
        seconds = self._clock() - since
        return (self.done - done) / seconds if seconds > 0 and self.done > done else float("nan")

    @property
    def left_s(self) -> float:
        """Seconds left at the current rate; NaN where there is none."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate


def render_seconds(seconds: float) -> str:
    """Return a duration in the two largest units that matter; NaN is "unknown"."""
    if math.isnan(seconds):
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def render_rate(rate: float, unit: str) -> str:
    """Return a rate such as `1,520 rows/s`; NaN is an empty string."""
    if math.isnan(rate):
        return ""
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2f} {unit}/s"


def render_pace(pace: Pace, unit: str) -> str:
    """Return the figures of a running stage, such as `12,800 of 70,100 rows (18 %), 1,520 rows/s, 38 s left`."""
    share = f" ({100 * pace.done // pace.total} %)" if pace.total else ""
    left_s = pace.left_s
    left = "time left not known yet" if math.isnan(left_s) else f"{render_seconds(left_s)} left"
    parts = [f"{pace.done:,} of {pace.total:,} {unit}{share}", render_rate(pace.rate, unit), left]
    return ", ".join(part for part in parts if part)


class _Display(Protocol):
    def show(self) -> None: ...

    def close(self, summary: str) -> None: ...


class Progress:
    """The progress of one stage, as a context manager.

    Args:
        what: the stage's name.
        total: how much there is to do in all.
        unit: what is counted, in the plural.
        done: how much was done by an earlier process.
        stream: where to write; stderr unless told.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._unit = unit
        self._stream = stream or sys.stderr
        self._clock = clock
        self.pace = Pace(total, done, clock)
        self._display: _Display | None = None

    def __enter__(self) -> Progress:
        is_terminal = self._stream.isatty()
        self._display = (_Bar if is_terminal else _Lines)(self._what, self.pace, self._unit, self._stream, self._clock)
        return self

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more as done and show it."""
        self.pace.advance(amount)
        if self._display is not None:
            self._display.show()

    def settle(self, done: int) -> None:
        """Set what is done in all where more is known to be done than was counted, and show nothing."""
        self.pace.advance(max(0, done - self.pace.done))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pace = self.pace
        after = render_seconds(pace.elapsed_s)
        if kind is not None or pace.done < pace.total:
            summary = f"{self._what}: stopped at {pace.done:,} of {pace.total:,} {self._unit} after {after}"
        else:
            rate = render_rate(pace.mean_rate, self._unit)
            summary = f"{self._what}: {pace.done:,} {self._unit} in {after}" + (f", {rate}" if rate else "")
        if self._display is not None:
            self._display.close(summary)
            self._display = None


class _Lines:
    """Plain lines, at most one every few seconds, for pipes and logs."""

    def __init__(self, what: str, pace: Pace, unit: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self._what, self._pace, self._unit, self._stream, self._clock = what, pace, unit, stream, clock
        self._next = clock() + LINE_EVERY_S

    def show(self) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + LINE_EVERY_S
            self._write(f"{self._what}: {render_pace(self._pace, self._unit)}")

    def close(self, summary: str) -> None:
        self._write(summary)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class _Bar:
    """A live bar. It redraws by itself, so the time left keeps moving between two steps."""

    def __init__(self, what: str, pace: Pace, unit: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self._pace, self._stream = pace, stream
        self._bar = _rich_bar(pace, unit, stream)
        self._task = self._bar.add_task(what, total=pace.total, completed=pace.done)
        self._bar.start()

    def show(self) -> None:
        self._bar.update(self._task, completed=self._pace.done)

    def close(self, summary: str) -> None:
        self._bar.stop()
        self._stream.write(summary + "\n")
        self._stream.flush()


def _rich_bar(pace: Pace, unit: str, stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class PaceColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(render_pace(pace, unit))

    columns = (TextColumn("{task.description}"), BarColumn(), PaceColumn())
    return Progress(*columns, console=Console(file=stream), transient=True, refresh_per_second=4)
