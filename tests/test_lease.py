"""pytest tests/test_lease.py"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow.fs as pafs
import pytest

from polypersona.errors import LeaseLostError, RunHeldError
from polypersona.events import read_events
from polypersona.lease import FILE, Holder, Lease, hold
from polypersona.storage import RunDirectory

QUICK = {"heartbeat_s": 0.1, "lapse_s": 0.6, "settle_s": 0.1}
HOLD = """
import sys, time
from polypersona.lease import hold
from polypersona.storage import RunDirectory
with hold(RunDirectory.at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(folder):
    """Return a process that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def end(process, number):
    process.send_signal(number)
    process.wait(timeout=30)
    process.stdout.close()


def write_holder(folder, **facts):
    """Write the lease of a driver on another machine."""
    content = {
        "session": "other", "host": "far", "machine": "m", "pid": 1, "process_start": "1",
        "since": "2026-01-01T00:00:00+00:00", "heartbeat": "2026-01-01T00:00:00+00:00", "lapse_s": 0.6, **facts,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(content))


def takeovers(folder):
    return [event for event in read_events(RunDirectory.at(folder)) if event["event"] == "lease taken over"]


def test_a_lease_is_there_while_it_is_held_and_nothing_is_left_of_it(tmp_path):
    run = RunDirectory.at(tmp_path / "runs" / "demo")
    with Lease(run, **QUICK):
        stored = run.read_json(FILE)
        assert (stored["pid"], stored["synthetic"]) == (os.getpid(), True)
        since, heartbeat = stored["since"], stored["heartbeat"]
        time.sleep(1.3)
        assert run.read_json(FILE)["heartbeat"] > heartbeat
        assert run.read_json(FILE)["since"] == since
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ZeroDivisionError), Lease(run, **QUICK):
        raise ZeroDivisionError
    assert not (tmp_path / "runs").exists()


def test_a_second_driver_is_refused_with_who_holds_the_run_and_since_when(tmp_path):
    process = hold_elsewhere(tmp_path)
    try:
        stored = RunDirectory.at(tmp_path).read_json(FILE)
        begin = time.monotonic()
        with pytest.raises(RunHeldError) as refused, hold(RunDirectory.at(tmp_path)):
            pass
        assert time.monotonic() - begin < 1
        for fact in (f"process {process.pid} on", stored["session"], f"since {stored['since']}", "lapses 60 s after"):
            assert fact in refused.value.message
        assert refused.value.exit_code == 2
        assert RunDirectory.at(tmp_path).read_json(FILE)["session"] == stored["session"]
    finally:
        end(process, signal.SIGTERM)


def test_a_driver_that_is_interrupted_gives_its_lease_back(tmp_path):
    end(hold_elsewhere(tmp_path), signal.SIGINT)
    assert not (tmp_path / FILE).exists()


def test_the_lease_of_a_killed_driver_is_taken_over_at_once_with_an_event(tmp_path):
    process = hold_elsewhere(tmp_path)
    end(process, signal.SIGKILL)
    assert (tmp_path / FILE).exists()
    with Lease(RunDirectory.at(tmp_path), **QUICK):
        (event,) = takeovers(tmp_path)
        assert f"process {process.pid} on" in event["before"]
    assert not (tmp_path / FILE).exists()


def test_a_later_process_of_the_same_number_is_another_one(tmp_path):
    me = Holder.me("earlier", 0.6)
    write_holder(tmp_path, host=me.host, machine=me.machine, pid=me.pid, process_start="0", heartbeat=me.heartbeat)
    with Lease(RunDirectory.at(tmp_path), **QUICK):
        assert len(takeovers(tmp_path)) == 1


def test_a_heartbeat_that_stands_still_is_taken_over_whatever_its_clock_says(tmp_path):
    for name, heartbeat in (("past", "2020-01-01T00:00:00+00:00"), ("future", "2099-01-01T00:00:00+00:00")):
        write_holder(tmp_path / name, heartbeat=heartbeat)
        with Lease(RunDirectory.at(tmp_path / name), **QUICK):
            assert len(takeovers(tmp_path / name)) == 1


def test_a_heartbeat_that_goes_on_is_respected_whatever_its_clock_says(tmp_path):
    ended = threading.Event()
    write_holder(tmp_path)

    def beat():
        count = 0
        while not ended.wait(0.05):
            count += 1
            run = RunDirectory.at(tmp_path)
            run.write_json(FILE, run.read_json(FILE) | {"heartbeat": f"2026-01-01T00:00:{count % 60:02d}+00:00"})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunHeldError, match="process 1 on far"), Lease(RunDirectory.at(tmp_path), **QUICK):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_driver_whose_lease_is_taken_over_stops_with_an_error(tmp_path):
    def lose():
        with Lease(RunDirectory.at(tmp_path), **QUICK):
            write_holder(tmp_path)
            time.sleep(30)

    begin = time.monotonic()
    with pytest.raises(LeaseLostError, match="taken over by process 1 on far") as lost:
        lose()
    assert time.monotonic() - begin < 10
    assert lost.value.exit_code == 1
    assert json.loads((tmp_path / FILE).read_text())["session"] == "other"


def test_of_drivers_that_begin_together_one_gets_the_run(tmp_path):
    held, refused, barrier = [], [], threading.Barrier(6)
    run = RunDirectory.at(tmp_path)

    def begin(number):
        barrier.wait()
        try:
            lease = Lease(run, heartbeat_s=0.1, lapse_s=0.6, settle_s=1.5).__enter__()
            held.append(lease)
        except RunHeldError:
            refused.append(number)

    for before in (None, "dead"):
        if before:
            write_holder(tmp_path)
        threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(held), len(refused)) == (1, 5)
        held.pop().__exit__(None, None, None)
        refused.clear()


def test_a_lease_cut_short_by_a_kill_lapses(tmp_path):
    (tmp_path / FILE).write_text('{"session": "x", ')
    with Lease(RunDirectory.at(tmp_path), **QUICK):
        assert RunDirectory.at(tmp_path).read_json(FILE)["pid"] == os.getpid()


def test_a_run_on_an_object_store_is_held_too(monkeypatch):
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        filesystem, _ = pafs.FileSystem.from_uri("s3://leases/runs?allow_bucket_creation=true")
        filesystem.create_dir("leases")
        run = RunDirectory.at("s3://leases/runs/demo")
        with Lease(run, heartbeat_s=0.2, lapse_s=20, settle_s=0.5):
            with (
                pytest.raises(RunHeldError, match=f"process {os.getpid()} on"),
                Lease(run, heartbeat_s=0.2, lapse_s=20, settle_s=0.5),
            ):
                pass
            assert run.exists(FILE)
        assert not run.exists(FILE)
    finally:
        server.stop()
