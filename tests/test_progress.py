"""pytest tests/test_progress.py"""

import io
import math

import pytest

from polypersona.progress import Pace, Progress, render_pace, render_rate, render_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_left_follows_from_the_rate():
    clock = Clock()
    pace = Pace(100, clock=clock)
    clock.now += 10
    pace.advance(20)
    assert pace.rate == 2
    assert pace.left_s == 40


def test_nothing_done_gives_no_rate_and_no_time_left():
    pace = Pace(100, clock=Clock())
    assert math.isnan(pace.rate)
    assert math.isnan(pace.left_s)
    assert "time left not known yet" in render_pace(pace, "rows")


def test_what_an_earlier_process_did_does_not_count_towards_the_rate():
    clock = Clock()
    pace = Pace(100, done=50, clock=clock)
    clock.now += 10
    pace.advance(10)
    assert pace.rate == 1
    assert pace.left_s == 40


def test_a_stall_lowers_the_rate_and_the_time_left_grows():
    clock = Clock()
    pace = Pace(100, clock=clock)
    clock.now += 10
    pace.advance(50)
    before = pace.left_s
    clock.now += 30
    assert pace.left_s > 3 * before


def test_the_rate_is_that_of_the_last_minute():
    clock = Clock()
    pace = Pace(10_000, clock=clock)
    for _ in range(60):
        clock.now += 10
        pace.advance(10)
    for _ in range(12):
        clock.now += 10
        pace.advance(100)
    assert pace.rate == pytest.approx(10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3660, "1 h 01 min"), (math.nan, "unknown")]
)
def test_durations_read_well(seconds, text):
    assert render_seconds(seconds) == text


def test_rates_read_well():
    assert render_rate(1519.6, "rows") == "1,520 rows/s"
    assert render_rate(0.5, "rows") == "0.50 rows/s"
    assert render_rate(math.nan, "rows") == ""


def test_a_pipe_gets_plain_lines_a_few_seconds_apart():
    clock, stream = Clock(), io.StringIO()
    with Progress("generate", 100, "rows", stream=stream, clock=clock) as progress:
        for _ in range(10):
            clock.now += 1
            progress.advance(10)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "generate: 50 of 100 rows (50 %), 10 rows/s, 5 s left"
    assert lines[-1] == "generate: 100 rows in 10 s, 10 rows/s"
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()


def test_a_failure_says_how_far_it_got():
    stream = io.StringIO()
    progress = Progress("generate", 100, "rows", stream=stream)
    progress.__enter__()
    progress.advance(30)
    progress.__exit__(ValueError, ValueError("boom"), None)
    assert "stopped at 30 of 100 rows" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_the_summary():
    stream = Terminal()
    with Progress("generate", 4, "rows", stream=stream) as progress:
        progress.advance(4)
    assert "\x1b" in stream.getvalue()
    assert "generate: 4 rows in" in stream.getvalue()
