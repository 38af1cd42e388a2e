"""pytest tests/cli/test_runs.py"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from audited_runs import FIRST, answer, make_job, make_run, start
from click.testing import CliRunner

from polypersona.cli.runs import status_command, verify_command
from polypersona.errors import RunFailedError
from polypersona.events import EventLog
from polypersona.lease import Lease

COMMAND = [sys.executable, "-m", "polypersona"]


def show(run, *options):
    done = CliRunner().invoke(status_command, [run.location, *options])
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_clean_run_is_said_to_be_clean(tmp_path):
    run = make_run(tmp_path, failing=(1,))
    done = CliRunner().invoke(verify_command, [run.location])
    assert done.exit_code == 0
    assert done.output == "clean: 12 planned = 10 committed + 2 quarantined, in 3 shards of ab\n"


def test_a_run_that_is_not_clean_is_exit_1_and_a_list(tmp_path):
    run = make_run(tmp_path)
    run.delete(FIRST)
    done = CliRunner().invoke(verify_command, [run.location])
    assert isinstance(done.exception, RunFailedError)
    assert done.exception.exit_code == 1
    assert "shard files are not committed: shard-00000-ab.parquet" in done.output
    found = json.loads(CliRunner().invoke(verify_command, [run.location, "--json"]).output)
    assert (found["clean"], found["committed"], len(found["problems"])) == (False, 8, 2)


def test_a_note_makes_no_run_unclean(tmp_path):
    run = make_run(tmp_path)
    for name in run.names("events"):
        run.delete(name)
    done = CliRunner().invoke(verify_command, [run.location])
    assert done.exit_code == 0
    assert done.output.startswith("note: 3 shard files have no event of their commit")


def test_the_status_of_a_finished_run_says_what_failed(tmp_path):
    run = make_run(tmp_path, failing=(1,))
    lines = show(run).splitlines()
    assert lines[0].startswith(f"{run.location}: finished, 12 of 12 responses (100 %), 3 of 3 shards, 2 quarantined")
    assert lines[-2:] == ["quarantined:", "  2 × asked the fake engine for an error"]
    status = json.loads(show(run, "--json"))
    assert status["reasons"] == {"asked the fake engine for an error": 2}
    assert (status["state"], status["shards_done"], status["left_s"], status["synthetic"]) == ("finished", 3, 0.0, True)


def test_the_status_of_a_running_run_says_who_holds_it_and_with_which_actors(tmp_path):
    run = make_run(tmp_path, shards=[0])
    EventLog(run, "driver-pool").write("pool", asked=4, actors=1, reason="the cluster has places for 1")
    EventLog(run, "actor-z").write("failure", shard=1, reason="boom")
    with Lease(run):
        text = show(run)
    assert ": running, 4 of 12 responses (33 %), 1 of 3 shards, " in text
    assert f"held by process {os.getpid()} on " in text
    assert "actors: 1 of 4 asked for (the cluster has places for 1)" in text
    assert "attempts that failed: 1" in text
    assert " left" in text


def test_the_status_of_a_stopped_run_says_why(tmp_path):
    run = make_run(tmp_path, shards=[0])
    assert ": stopped, 4 of 12" in show(run)
    EventLog(run, "driver").write("end", session="one", state="stopped")
    assert ": stopped (after generate.max_hours), " in show(run)
    log = start(run, "two")
    log.write("end", session="two", state="failed: StorageError")
    assert ": stopped (failed: StorageError), " in show(run)


def test_the_status_names_files_that_are_not_whole(tmp_path):
    run = make_run(tmp_path)
    run.write(FIRST, run.read(FIRST)[:-3])
    text = show(run)
    assert ": stopped, 8 of 12" in text
    assert text.endswith(f"missing or damaged although committed: 1 files; `polypersona verify` says more\n  {FIRST}\n")


def test_a_watch_ends_when_the_run_is_finished(tmp_path):
    run = make_run(tmp_path, shards=[0])
    job = make_job(run, session="two")
    worker = threading.Thread(target=lambda: [time.sleep(0.5), answer(job)])
    worker.start()
    lines = show(run, "--watch", "--every", "0.2").splitlines()
    worker.join()
    assert len(lines) > 1
    assert "4 of 12 responses" in lines[0]
    assert "finished, 12 of 12 responses" in lines[-1]
    [line] = show(run, "--watch", "--json").splitlines()
    assert json.loads(line)["state"] == "finished"


def test_an_interrupt_ends_a_watch_without_an_error(tmp_path):
    run = make_run(tmp_path, shards=[0])
    watch = subprocess.Popen(
        [*COMMAND, "status", run.location, "--watch", "--every", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert "stopped, 4 of 12" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert (watch.returncode, err) == (0, "")
    assert set(out.splitlines()) <= {out.splitlines()[0]} if out else True
