"""pytest tests/engines/test_endpoint_client.py: patience with a real server that misbehaves, and where it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from endpoint_server import ADA, CLOSED, KEY, OPEN, Step, ask, cells, completion, refusal, serve, settings_for
from hypothesis import given
from hypothesis import strategies as st

from polypersona.engines import endpoint_client
from polypersona.engines.base import Cell, Group
from polypersona.engines.endpoint_client import MAX_GIVEN_UP
from polypersona.engines.endpoint_reply import UnreadableReplyError, error_of, read_completion, retry_after_s
from polypersona.engines.registry import load_engine
from polypersona.errors import EngineError, RunFailedError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.01)
    with serve() as running:
        yield running


BROKEN = {
    "429": refusal(429, "slow down"),
    "500": refusal(500),
    "502 without JSON": Step(502, b"<html>Bad gateway</html>"),
    "503": refusal(503),
    "time-out": Step(delay_s=1.2),
    "cut before the head": Step(cut="head"),
    "cut in the body": Step(cut="body"),
    "bad JSON": Step(body=b'{"choices": [{"mess'),
    "too deep": Step(body=b"[" * 200_000),
    "no choices": Step(body={"choices": []}),
    "another shape": Step(body=["Agree."]),
    "content of parts": Step(body=completion([{"type": "text", "text": "Agree."}])),
}


@pytest.mark.parametrize("step", BROKEN.values(), ids=BROKEN)
def test_what_may_pass_is_tried_again(server, step):
    server.steps = [step]
    (answer,) = ask(settings_for(server, timeout_s=0.6 if step.delay_s else 5.0), cells(1, CLOSED))
    assert (answer.disposition, answer.code, answer.error) == ("complete", 3, "")
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize("step", BROKEN.values(), ids=BROKEN)
def test_what_does_not_pass_ends_as_error_with_its_reason_and_the_others_are_answered(server, step):
    server.by_text = {"telemedicine": step}
    groups = [Group(ADA, (Cell("a", CLOSED, 1), Cell("b", OPEN, 2), Cell("c", CLOSED, 3)))]
    answers = ask(settings_for(server, timeout_s=0.6 if step.delay_s else 5.0), groups)
    assert [answer.assignment_id for answer in answers] == ["a", "b", "c"]
    assert [answer.disposition for answer in answers] == ["complete", "error", "complete"]
    assert "tried 3 times" in answers[1].error
    assert len(answers[1].error) < 400
    assert len(server.bodies) == 5


def test_the_wait_between_tries_grows(server, monkeypatch):
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.1)
    server.default = refusal(500)
    ask(settings_for(server, max_retries=3), cells(1))
    waits = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert 0.5 * longest <= wait < longest + 0.15


def test_a_cell_that_the_server_refuses_is_asked_once(server):
    server.by_text = {"telemedicine": refusal(400, "the prompt is too long")}
    answers = ask(settings_for(server), [Group(ADA, (Cell("a", OPEN, 1), Cell("b", CLOSED, 2)))])
    assert [answer.disposition for answer in answers] == ["error", "complete"]
    assert answers[0].error == "HTTP 400: the prompt is too long"
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [401, 402, 403, 404, 307])
def test_what_no_cell_escapes_stops_the_run_at_once(server, status):
    server.default = refusal(status, f"bad key {KEY}", Location="http://127.0.0.1:1/")
    with pytest.raises(EngineError, match=f"HTTP {status}") as caught:
        ask(settings_for(server, concurrency=2), cells(40))
    assert len(server.bodies) <= 4
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert KEY not in str(caught.value)


def test_a_used_up_quota_is_not_waited_for(server):
    step = refusal(429)
    step.body["error"]["code"] = "insufficient_quota"
    server.default = step
    with pytest.raises(EngineError, match="HTTP 429") as caught:
        ask(settings_for(server), cells(1))
    assert "Pay" in caught.value.hint


def test_a_wait_the_server_asks_for_holds_all_requests(server):
    server.steps = [refusal(429, Retry_After="1")]
    answers = ask(settings_for(server, concurrency=1), cells(3))
    assert [answer.disposition for answer in answers] == ["complete"] * 3
    first, *later = server.times
    assert min(later) - first >= 0.95
    assert len(server.bodies) == 4


def test_a_date_is_a_wait_by_the_servers_own_clock(server):
    dates = {"Retry_After": "Tue, 01 Jan 2030 00:00:01 GMT"}
    step = refusal(503, **dates)
    server.steps = [Step(step.status, step.body, {**step.headers, "Date": "Tue, 01 Jan 2030 00:00:00 GMT"})]
    ask(settings_for(server), cells(1))
    assert 0.95 <= server.times[1] - server.times[0] < 3


def test_a_wait_of_hours_ends_the_run_with_advice(server):
    server.default = refusal(429, "daily limit", Retry_After="7200")
    with pytest.raises(RunFailedError, match=r"asks to wait 7,200 s: HTTP 429: daily limit") as caught:
        ask(settings_for(server), cells(1))
    assert "again" in caught.value.hint


def test_no_more_requests_are_in_flight_than_allowed_and_as_many_as_that(server):
    server.default = Step(delay_s=0.05)
    answers = ask(settings_for(server, concurrency=5), cells(40))
    assert server.most_in_flight == 5
    assert [answer.assignment_id for answer in answers] == [f"c{index}" for index in range(40)]


def test_requests_leave_no_faster_than_the_recipe_allows(server):
    ask(settings_for(server, concurrency=4, requests_per_minute=1200), cells(11))
    assert len(server.times) == 11
    assert server.times[-1] - server.times[0] >= 10 * 0.05 - 0.03


def test_a_server_that_is_gone_stops_the_run_instead_of_failing_every_cell(server):
    settings = settings_for(server, max_retries=1, concurrency=16)
    engine = load_engine(settings)
    assert engine.answer(cells(1))[0].disposition == "complete"
    server.default = refusal(503, "down")
    groups = [Group(ADA, tuple(Cell(f"d{index}", OPEN, index) for index in range(500)))]
    with pytest.raises(RunFailedError, match=f"none of the last {MAX_GIVEN_UP} cells: HTTP 503: down"):
        engine.answer(groups)
    engine.close()
    assert len(server.bodies) < 1 + 3 * (MAX_GIVEN_UP + 16)


def test_cells_that_fail_by_themselves_never_stop_the_run(server):
    engine = load_engine(settings_for(server, max_retries=0))
    engine.answer(cells(1))
    server.default = refusal(500)
    answers = engine.answer([Group(ADA, tuple(Cell(f"e{index}", OPEN, index) for index in range(MAX_GIVEN_UP + 9)))])
    engine.close()
    assert {answer.disposition for answer in answers} == {"error"}


def test_a_recipe_whose_every_request_is_refused_is_a_users_mistake(server):
    server.default = refusal(400, "unknown parameter seed")
    with pytest.raises(EngineError, match="unknown parameter seed"):
        ask(settings_for(server), cells(MAX_GIVEN_UP))


def test_an_interrupt_ends_at_once_and_leaves_no_thread(server):
    server.default = Step(delay_s=30)
    code = (
        # A process started in the background may have inherited that interrupts are ignored.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from polypersona.engines.base import *; from polypersona.engines.registry import load_engine\n"
        "from polypersona.records import Item, Persona\n"
        f"endpoint = EndpointSettings({server.url!r}, 'toy', timeout_s=60)\n"
        "engine = load_engine(EngineSettings('endpoint', 7, closed='text', endpoint=endpoint))\n"
        "item = Item('test.open.01', 'healthcare', 'How?', 'open')\n"
        "try:\n"
        "    engine.answer([Group(Persona('a'), tuple(Cell(str(i), item, i) for i in range(20)))])\n"
        "except KeyboardInterrupt:\n"
        "    engine.close(); engine.close(); sys.exit(17)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while server.in_flight < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (17, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "logprobs", "top_logprobs", "token", "error"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_completion_or_unreadable_and_any_error_has_words(data):
    try:
        completed = read_completion(data)
    except UnreadableReplyError:
        pass
    else:
        assert completed.cached_tokens <= completed.prompt_tokens
    assert error_of(data, json.dumps(data))[1]


# RFC 9110, section 10.2.3: seconds or a date. The third is what OpenAI's own client reads first.
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 59.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT", "date": "Fri, 31 Dec 1999 23:59:49 GMT"}, 10.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:50:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers, seconds):
    assert retry_after_s(headers, datetime(1999, 12, 31, 23, 59, 0, tzinfo=UTC)) == seconds
