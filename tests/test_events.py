"""pytest tests/test_events.py"""

import json
import threading
import tracemalloc
from pathlib import Path

import pytest
from faulty_s3 import faulty_store

from polypersona import events
from polypersona.errors import StorageError
from polypersona.events import EventLog, read_events
from polypersona.storage import RunDirectory

SECRET = "S3cr3tKey"
URL = f"s3://KEY:{SECRET}@bucket/p.csv?token={SECRET}"


@pytest.fixture(scope="module")
def server():
    with faulty_store() as server:
        yield server


@pytest.fixture(params=["folder", "store"])
def run(request, tmp_path):
    """A run directory on this machine, and one on an object store."""
    if request.param == "folder":
        return RunDirectory.at(tmp_path / "run")
    return RunDirectory.at(request.getfixturevalue("server").url(f"runs/{tmp_path.name}"))


def numbers(run, writer=""):
    return [event["number"] for event in read_events(run, writer)]


def test_events_come_back_in_the_order_of_their_writer(run):
    logs = {writer: EventLog(run, writer) for writer in ("driver", "actor-1", "actor-12")}
    for number in range(5):
        for log in logs.values():
            log.write("step", number=number)
    assert numbers(run, "driver") == [0, 1, 2, 3, 4]
    assert numbers(run, "actor-") == [0, 1, 2, 3, 4] * 2
    assert [event["writer"] for event in read_events(run)] == ["actor-1"] * 5 + ["actor-12"] * 5 + ["driver"] * 5
    first = next(read_events(run))
    assert (first["event"], first["synthetic"]) == ("step", True)
    assert first["time"].endswith("+00:00")


def test_a_later_process_goes_on_where_an_earlier_one_ended(run):
    for number in range(3):
        EventLog(run, "driver").write("step", number=number)
    assert numbers(run) == [0, 1, 2]


def test_an_object_holds_many_lines_and_every_line_is_there_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "SEGMENT_LINES", 8)
    run = RunDirectory.at(server.url("runs/many"))
    log = EventLog(run, "actor-1")
    for number in range(20):
        log.write("step", number=number)
        assert numbers(run)[-1] == number
    assert len(run.names("events")) == 3
    assert numbers(run) == list(range(20))


def test_a_line_that_a_store_refused_comes_with_the_next_one(server):
    run = RunDirectory.at(server.url("runs/refused"))
    log = EventLog(run, "driver")
    log.write("step", number=0)
    server.choose = lambda method, path, place: "403" if method in ("PUT", "POST") else None
    with pytest.raises(StorageError, match="cannot be written"):
        log.write("step", number=1)
    server.choose = lambda method, path, place: None
    log.write("step", number=2)
    assert numbers(run) == [0, 1, 2]


def test_a_line_that_was_cut_short_takes_no_other_along(tmp_path):
    run = RunDirectory.at(tmp_path)
    EventLog(run, "driver").write("step", number=0)
    with run.local_path("events/driver.jsonl").open("ab") as stream:
        stream.write(b'{"time": "2030", "event": "st')
    assert numbers(run) == [0]
    log = EventLog(run, "driver")
    log.write("step", number=1)
    log.write("step", number=2)
    assert numbers(run) == [0, 1, 2]


def test_lines_that_are_no_events_are_left_out(tmp_path):
    run = RunDirectory.at(tmp_path)
    run.write("events/driver.jsonl", b'[]\nnull\n\xff\xfe\n"x"\n{"event": "start"}\n')
    run.write("events/notes.txt", b'{"event": "no"}\n')
    assert list(read_events(run)) == [{"event": "start", "writer": "driver"}]


def test_threads_share_a_log(run):
    log = EventLog(run, "driver")

    def work(first):
        for number in range(first, first + 10):
            log.write("step", number=number)

    threads = [threading.Thread(target=work, args=(10 * place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(run)) == list(range(60))


def test_no_secret_is_written_whatever_it_stands_in(run):
    log = EventLog(run, "driver")
    log.write(
        "failed",
        text=f"Traceback (most recent call last):\n  File x\nOSError: cannot open {URL}: denied",
        error=OSError(f"cannot open {URL}"),
        place=Path("a") / "b",
        reasons={f"cannot open {URL}": 3},
        deep=[{"where": (URL, {"and": URL})}],
        notes={OSError(URL).args},
    )
    text = "".join(run.read(name).decode() for name in run.names("events"))
    assert SECRET not in text
    assert "KEY" not in text
    [event] = read_events(run)
    assert event["reasons"] == {"cannot open s3://***@bucket/p.csv?token=***": 3}
    assert event["text"].startswith("Traceback (most recent call last):\n  File x\n")


def test_reading_takes_no_more_memory_than_a_line(tmp_path):
    run = RunDirectory.at(tmp_path)
    line = json.dumps({"event": "commit", "text": "x" * 1000})
    run.write("events/actor-1.jsonl", "".join(f"{line}\n" for _ in range(20_000)).encode())
    tracemalloc.start()
    assert sum(1 for _ in read_events(run)) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
