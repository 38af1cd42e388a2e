"""pytest tests/test_status.py"""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from audited_runs import FINGERPRINT, FIRST, HELD, SECOND, answer, forget_events, make_job, make_run, start

from polypersona.errors import StorageError
from polypersona.events import EventLog
from polypersona.lease import Lease
from polypersona.ledger import Box, Ledger, shard_name
from polypersona.status import OTHER, Pool, read_status
from polypersona.storage import RunDirectory, update_run

REASON = "asked the fake engine for an error"
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds):
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def write_events(run, writer, *events):
    lines = [json.dumps({"synthetic": True, **event}) + "\n" for event in events]
    run.write(f"events/{writer}.jsonl", "".join(lines).encode())


def commit_at(seconds, shard, **facts):
    return {
        "time": at(seconds), "event": "commit", "shard": shard, "rows": 4, "quarantined": 0, "file_hash": "f",
        "file_bytes": None, "prompt_tokens": 80, "new_tokens": 8, **facts,
    }  # fmt: skip


def hold_and_be_killed(run):
    """Have another process hold the run, and kill it."""
    code = (
        "import sys, time\n"
        "from polypersona.lease import Lease\n"
        "from polypersona.storage import RunDirectory\n"
        "with Lease(RunDirectory.at(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, run.location], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()


def test_a_finished_run_is_finished(tmp_path):
    status = read_status(make_run(tmp_path, failing=(1,)))
    assert (status.state, status.left_s) == ("finished", 0.0)
    assert (status.shards_done, status.shards, status.responses_done, status.responses) == (3, 3, 12, 12)
    assert (status.quarantined, status.reasons) == (2, {REASON: 2})
    assert status.holder is None


def test_a_run_that_a_driver_holds_is_running(tmp_path):
    run = make_run(tmp_path, shards=[0])
    with Lease(run):
        status = read_status(run)
        assert status.state == "running"
        assert status.holder["who"].startswith("process ")
        assert status.holder["heartbeat_age_s"] < 60
    assert read_status(run).state == "stopped"


def test_a_run_whose_driver_was_killed_has_died(tmp_path):
    run = make_run(tmp_path, shards=[0])
    hold_and_be_killed(run)
    status = read_status(run)
    assert status.state == "died"
    assert status.left_s is None
    answer(make_job(run, session="two"))
    assert read_status(run).state == "finished"


def test_a_driver_whose_heartbeat_stands_still_has_died(tmp_path):
    run = make_run(tmp_path, shards=[0])
    with Lease(run):
        assert read_status(run, now=time.time() + 50).state == "running"
        assert read_status(run, now=time.time() + 3600).state == "died"


@pytest.mark.parametrize("content", ["", "{}", '{"heartbeat": "x"}', "[1]", '{"heartbeat": 3}'])
def test_a_lease_that_cannot_be_read_is_nobodys(tmp_path, content):
    run = make_run(tmp_path, shards=[0])
    run.write("lease.json", content.encode())
    assert read_status(run).state in ("died", "stopped")


def test_a_run_that_was_stopped_says_how(tmp_path):
    run = make_run(tmp_path, shards=[0])
    EventLog(run, "driver").write("end", session="one", state="stopped")
    status = read_status(run)
    assert (status.state, status.ended) == ("stopped", "stopped")


def test_a_finished_run_whose_quarantined_rows_are_asked_again_is_running(tmp_path):
    run = make_run(tmp_path, failing=(1,))
    log = start(run, "two", round=1)
    with Lease(run):
        assert read_status(run).state == "running"
        answer(make_job(run, session="two", round=1), shards=[0])
        log.write("end", session="two", state="finished")
        status = read_status(run)
    assert (status.state, status.quarantined, status.reasons) == ("finished", 0, {})


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_run_with_a_file_that_is_cut_short_is_not_finished(tmp_path, share):
    run = make_run(tmp_path)
    data = run.read(FIRST)
    run.write(FIRST, data[: int(len(data) * share)])
    status = read_status(run)
    assert (status.state, status.damaged, status.shards_done) == ("stopped", (FIRST,), 2)
    forget_events(run)
    assert read_status(run).damaged == (FIRST,)


@pytest.mark.parametrize("name", [FIRST, HELD])
def test_a_run_with_a_missing_file_is_not_finished(tmp_path, name):
    run = make_run(tmp_path, failing=(0,))
    run.delete(name)
    status = read_status(run)
    assert (status.state, status.damaged) == ("stopped", (name,))


def test_a_shard_that_waits_to_be_answered_is_not_damaged(tmp_path):
    run, made = make_run(tmp_path, shards=[1]), make_run(tmp_path / "other", failing=(0,))
    run.write(HELD, made.read(HELD))  # of an attempt that was killed before its commit
    status = read_status(run)
    assert (status.damaged, status.shards_done, status.quarantined) == ((), 1, 0)


def test_reasons_are_counted_though_events_are_missing(tmp_path):
    run = make_run(tmp_path, failing=(0, 1, 5))
    with_events = read_status(run)
    forget_events(run)
    status = read_status(run)
    assert status.reasons == with_events.reasons == {REASON: 6}
    assert (status.state, status.quarantined) == ("finished", 6)
    assert (status.rate, status.begun, status.pools) == (None, None, ())


def test_reasons_that_events_do_not_name_are_counted_together(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    facts = {"file_bytes": len(run.read(FIRST)), "rows": 2, "quarantined": 2, "reasons": {"too long": 1}}
    write_events(run, "actor-z", {"time": at(0), "event": "start", "session": "one"}, commit_at(1, 0, **facts))
    assert read_status(run).reasons == {"too long": 1, OTHER: 1}


def test_the_rate_and_time_left_are_of_what_was_committed_since_the_last_start(tmp_path):
    run = make_run(tmp_path, size=20, shards=[0, 1, 2, 3, 4])
    forget_events(run)
    sizes = [len(run.read(f"responses/{shard_name(number, FINGERPRINT)}")) for number in range(5)]
    write_events(
        run, "actor-a", {"time": at(0), "event": "start", "session": "old"},
        *(commit_at(number, number, file_bytes=sizes[number]) for number in range(2)),
    )  # fmt: skip
    write_events(
        run, "actor-b", {"time": at(5000), "event": "start", "session": "new"},
        *(commit_at(5000 + 10 * number, number, file_bytes=sizes[number]) for number in range(2, 5)),
    )  # fmt: skip
    starts = ({"time": at(begin), "event": "start", "session": name} for begin, name in ((0, "old"), (5000, "new")))
    write_events(run, "driver", *starts)
    status = read_status(run, now=BEGIN.timestamp() + 5045)
    assert status.responses_done == 20
    assert status.rate.responses == pytest.approx(8 / 20)
    assert (status.rate.prompt_tokens, status.rate.new_tokens) == pytest.approx((160 / 20, 16 / 20))
    assert status.begun == BEGIN.timestamp() + 5000


def test_no_time_left_is_promised_for_a_run_that_stands_still(tmp_path):
    run = make_run(tmp_path, size=20, shards=[0, 1, 2])
    forget_events(run)
    now = datetime.now(UTC)
    events = [
        commit_at(0, number) | {"time": (now + timedelta(seconds=10 * number)).isoformat()} for number in range(3)
    ]
    begun = {"time": (now - timedelta(seconds=10)).isoformat(), "event": "start", "session": "one"}
    write_events(run, "actor-a", begun, *events)
    write_events(run, "driver", begun)
    with Lease(run, lapse_s=10_000.0):
        running = read_status(run, now=now.timestamp() + 25)
        assert running.rate.responses == pytest.approx(0.4)
        assert running.left_s == pytest.approx(28 / 0.4)
        still = read_status(run, now=now.timestamp() + 3600)
    assert (still.state, still.rate, still.left_s) == ("running", None, None)
    stopped = read_status(run, now=now.timestamp() + 3600)
    assert stopped.rate.responses == pytest.approx(0.4)
    assert stopped.left_s is None


def test_the_pools_say_why_they_are_smaller_than_asked_for(tmp_path):
    run = make_run(tmp_path, shards=[0])
    assert read_status(run).pools == (Pool("", 2, None, "two CPU cores"),)
    log = EventLog(run, "driver-pool")
    log.write("pool", asked=4, actors=1, reason="3 are starting")
    log.write("pool", asked=4, actors=2, reason="the cluster has places for 2")
    assert read_status(run).pools == (Pool("", 4, 2, "the cluster has places for 2"),)
    log.write("pool", pool="T4", asked=1, actors=1, reason="all run")
    assert [pool.name for pool in read_status(run).pools] == ["", "T4"]
    time.sleep(0.002)
    start(run, "two")
    assert read_status(run).pools == (Pool("", 2, None, "two CPU cores"),)


def test_the_progress_of_a_test_split_counts_what_was_asked(tmp_path):
    run = make_run(tmp_path, shards=[0, 1], asked=((0, 1), (0,), (1,), (0,), (0, 1), (0, 1)))
    status = read_status(run)
    assert (status.responses_done, status.responses) == (5, 9)


def test_a_run_begun_anew_with_a_panel_is_not_counted_by_the_test_split_of_before(tmp_path):
    make_run(tmp_path, size=2, shards=[], asked=[(0,), (1,)])
    run = make_run(tmp_path, size=6, shards=[0, 1])
    status = read_status(run)
    assert (status.shards_done, status.shards, status.responses_done, status.responses) == (2, 3, 8, 12)


def test_failed_attempts_are_counted(tmp_path):
    run = make_run(tmp_path)
    log = EventLog(run, "actor-z")
    log.write("failure", shard=0, reason="boom")
    log.write("failure", shard=0, reason="boom")
    assert read_status(run).failures == 2


def test_no_run_and_no_responses_are_told_apart(tmp_path):
    with pytest.raises(StorageError, match=r"is no run: it has no run\.json"):
        read_status(RunDirectory.at(tmp_path / "nothing"))
    run = RunDirectory.at(tmp_path / "begun")
    update_run(run, {"seed": 1})
    with pytest.raises(StorageError, match="has no responses yet"):
        read_status(run)


def test_two_thousand_shards_take_no_time(tmp_path):
    """A status opens no file whose event fits its size: here the files are no shards at all."""
    run, count = RunDirectory.at(tmp_path / "run"), 2000
    ledger = Ledger(500).extend(Box(500 * count, tuple(f"x.likert.{place:02d}" for place in range(10))))
    update_run(run, {"fingerprint": "ab", "ledger": ledger.as_json(), "recipe": {"generate": {"on": "panel"}}})
    for folder in ("responses", "quarantine"):
        run.local_path(folder).mkdir()
        for number in range(count):
            run.local_path(f"{folder}/{shard_name(number, 'ab')}").write_bytes(b"x" * 100)
    facts = {"rows": 4950, "quarantined": 50, "reasons": {"too long": 30, "engine error": 20}, "file_bytes": 100}
    begun = {"time": at(0), "event": "start", "session": "one"}
    write_events(run, "driver", begun)
    write_events(run, "actor-a", begun, *(commit_at(number, number, **facts) for number in range(count)))
    begin = time.process_time()
    status = read_status(run)
    assert time.process_time() - begin < 1
    assert (status.state, status.responses_done, status.quarantined) == ("finished", 10_000_000, 100_000)
    assert status.reasons == {"too long": 60_000, "engine error": 40_000}
    assert status.rate.responses == pytest.approx(5000)


def test_a_shard_that_was_copied_over_another_is_not_taken_for_it(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    run.write(SECOND, run.read(FIRST))
    assert read_status(run).damaged == (SECOND,)
