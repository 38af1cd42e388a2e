"""pytest tests/test_verify.py"""

import json
import subprocess
import sys

import pytest
from audited_runs import (
    FIRST,
    HELD,
    ITEMS,
    RETRIED,
    SECOND,
    answer,
    forget_events,
    make_job,
    make_run,
)

from polypersona import verify as auditing
from polypersona.errors import StorageError
from polypersona.ledger import Box, item_key
from polypersona.rounds import current_quarantine
from polypersona.status import read_status
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.verify import verify

KEYS = tuple(item_key(item.item_id) for item in ITEMS)


def problems(run):
    return " ".join(verify(run).problems)


def test_an_undisturbed_run_is_clean(tmp_path):
    audit = verify(make_run(tmp_path, failing=(1,)))
    assert (audit.problems, audit.notes) == ((), ())
    assert audit.is_clean
    assert (audit.planned, audit.committed, audit.quarantined, audit.shards) == (12, 10, 2, 3)


def test_a_run_whose_shards_are_all_quarantined_is_clean(tmp_path):
    audit = verify(make_run(tmp_path, failing=range(6)))
    assert audit.is_clean
    assert (audit.committed, audit.quarantined) == (0, 12)


def test_a_run_that_grew_is_clean(tmp_path):
    boxes = [Box(3, KEYS[:1]), Box(5, KEYS), Box(6, KEYS, waves=2, draws=2)]
    audit = verify(make_run(tmp_path, boxes=boxes))
    assert (audit.problems, audit.notes) == ((), ())
    assert audit.planned == 6 * 2 * 2 * 2


def test_a_shard_that_is_not_committed_is_named(tmp_path):
    audit = verify(make_run(tmp_path, shards=[0, 2]))
    assert audit.problems == (
        "1 shard files are not committed: shard-00001-ab.parquet.",
        "12 assignments are planned, but 8 are committed and 0 quarantined: -4.",
    )


def test_a_deleted_shard_is_named(tmp_path):
    run = make_run(tmp_path)
    run.delete(FIRST)
    assert "1 shard files are not committed: shard-00000-ab.parquet." in problems(run)


@pytest.mark.parametrize(
    "name", ["shard-00000-cd.parquet", "shard-00003-ab.parquet", "shard-0-ab.parquet", "notes-ab.parquet", "x.txt"]
)
def test_a_file_that_is_not_of_the_run_is_named(tmp_path, name):
    run = make_run(tmp_path)
    run.write(f"responses/{name}", run.read(FIRST))
    assert verify(run).problems == (f"1 shard files are in responses/ but not of this run: {name}.",)
    run.delete(f"responses/{name}")
    run.write(f"quarantine/{name}", run.read(FIRST))
    assert verify(run).problems == (f"1 shard files are in quarantine/ but not of this run: {name}.",)


def test_a_shard_that_was_copied_over_another_is_found(tmp_path):
    run = make_run(tmp_path)
    run.write(SECOND, run.read(FIRST))
    found = problems(run)
    assert f"{SECOND} says it is shard 0 of ab" in found
    assert f"{SECOND} is not the file that was committed" in found
    assert "4 assignments are there more than once." in found


def test_a_file_of_another_run_under_a_name_of_this_one_is_found(tmp_path):
    run, other = make_run(tmp_path), make_run(tmp_path / "other", failing=(0, 1))
    run.write(FIRST, other.read(FIRST))
    assert f"{FIRST} is not the file that was committed: its hash differs." in problems(run)


@pytest.mark.parametrize("name", [FIRST, HELD])
def test_every_flipped_byte_is_found(tmp_path, name):
    run = make_run(tmp_path, size=2, failing=(0,))
    whole = run.read(name)
    for place in range(0, len(whole), 131):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        run.write(name, bytes(data))
        found = verify(run).problems
        assert found, f"byte {place}"
        assert all("shard-00000" in problem or "planned" in problem for problem in found), found


def test_a_flipped_byte_ends_no_audit_where_no_event_tells_of_the_file(tmp_path):
    run = make_run(tmp_path, size=2)
    forget_events(run)
    whole, num_found = run.read(FIRST), 0
    for place in range(0, len(whole), 97):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        run.write(FIRST, bytes(data))
        num_found += bool(verify(run).problems)
    assert num_found > 0.5 * len(whole) / 97  # the rest is statistics and padding, which hold no row


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", [FIRST, HELD])
def test_a_file_that_is_cut_short_is_found(tmp_path, name, share):
    run = make_run(tmp_path, failing=(0,))
    data = run.read(name)
    run.write(name, data[: int(len(data) * share)])
    assert f"{name} is damaged" in problems(run)


def test_that_no_event_tells_of_a_file_is_a_note(tmp_path):
    run = make_run(tmp_path)
    forget_events(run)
    audit = verify(run)
    assert audit.is_clean
    assert "3 shard files have no event of their commit" in audit.notes[0]


def test_repeated_rows_are_found_in_every_part_that_ids_are_compared_in(tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "MAX_IDS", 3)
    run = make_run(tmp_path, size=8)
    assert verify(run).is_clean
    run.write(SECOND, run.read(FIRST))
    assert "4 assignments are there more than once." in verify(run).problems


def test_a_quarantine_file_that_went_missing_is_found(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    run.delete(HELD)
    assert "2 responses and 0 quarantined rows; it was committed with 2 and 2 of 4" in problems(run)


def test_retried_rows_are_understood(tmp_path):
    run = make_run(tmp_path, failing=(0, 5))
    answer(make_job(run, failing=(5,), session="two", round=1), shards=[0, 2])
    audit = verify(run)
    assert (audit.problems, audit.notes) == ((), ())
    assert (audit.committed, audit.quarantined) == (10, 2)
    assert run.names("quarantine") == ["quarantine/shard-00002-r1-ab.parquet"]


def test_what_a_killed_retry_left_is_no_problem(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    before = run.read(FIRST), run.read(HELD)
    answer(make_job(run, failing=(0,), session="two", round=1), shards=[0])
    after = run.read(FIRST), run.read(RETRIED)
    run.write(HELD, before[1])  # killed before it deleted what it replaced
    audit = verify(run)
    assert audit.is_clean
    assert audit.notes == (
        "1 files in quarantine/ are left by steps that were killed: quarantine/shard-00000-ab.parquet",
    )
    run.write(FIRST, before[0])  # killed before it replaced the responses
    assert verify(run).is_clean
    run.write(FIRST, after[0])
    run.delete(RETRIED)
    assert "2 responses and 0 quarantined rows; it was committed with 2 and 2 of 4" in problems(run)


def test_what_a_dead_attempt_of_a_retry_left_does_not_count_once_another_has_answered_everything(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    run.write(RETRIED, run.read(HELD))  # killed after the quarantined rows, before the responses
    assert read_status(run).quarantined == 2
    update_run(run, {"stages": {"retry": {"round": 1}}})
    answer(make_job(run, session="two", round=1), shards=[0])
    assert run.names("quarantine") == []
    assert current_quarantine(run, "ab") == {}
    assert verify(run).is_clean


def test_a_retry_that_was_killed_before_its_event_is_no_problem(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    events = {name: run.read(name) for name in run.names("events")}
    answer(make_job(run, session="two", round=1), shards=[0])
    forget_events(run)
    for name, data in events.items():
        run.write(name, data)
    audit = verify(run)
    assert audit.is_clean
    assert "1 shard files have no event of their commit" in audit.notes[0]


def test_what_an_unfinished_shard_has_in_quarantine_is_no_problem_of_its_own(tmp_path):
    run, made = make_run(tmp_path, shards=[1, 2]), make_run(tmp_path / "other", failing=(0,))
    run.write(HELD, made.read(HELD))
    assert verify(run).problems[0] == "1 shard files are not committed: shard-00000-ab.parquet."
    assert len(verify(run).problems) == 2


def test_a_run_that_does_not_say_what_is_planned_in_each_shard_is_told(tmp_path):
    run = make_run(tmp_path, asked=((0, 1), (0,), (1,), (0,), (0, 1), (0, 1)))
    assert verify(run).is_clean
    stored = load_run(run)
    stored["ledger"]["shard_cells"][0] += 1
    run.write_json("run.json", stored)
    assert "run.json has other planned assignments by shard than the 9 in all." in verify(run).problems
    del stored["ledger"]["shard_cells"]
    run.write_json("run.json", stored)
    assert "run.json has no planned assignments by shard" in verify(run).notes[0]


def test_a_mixture_of_versions_is_a_note(tmp_path):
    run = make_run(tmp_path)
    line = {"time": "2030-01-01T00:00:00+00:00", "event": "start", "versions": {"ray": "1.0"}}
    run.write("events/actor-x.jsonl", f'{json.dumps(line)}\n{{"cut sho'.encode())
    audit = verify(run)
    assert audit.is_clean
    assert "several versions of ray: 1.0, " in audit.notes[0]


def test_events_that_somebody_edited_end_no_audit(tmp_path):
    run = make_run(tmp_path)
    lines = ['{"event": "commit"}', "[]", '{"time": 3, "event": "commit", "shard": 0}', "null", '{"time": "x"}']
    run.write("events/actor-x.jsonl", "\n".join(lines).encode())
    assert verify(run).is_clean


def test_no_run_and_no_responses_are_told_apart(tmp_path):
    with pytest.raises(StorageError, match=r"is no run: it has no run\.json"):
        verify(RunDirectory.at(tmp_path / "nothing"))
    run = RunDirectory.at(tmp_path / "begun")
    update_run(run, {"seed": 1})
    with pytest.raises(StorageError, match="has no responses yet"):
        verify(run)
    update_run(run, {"ledger": {"layers": [{"box": {}}]}})
    with pytest.raises(StorageError, match=r"run\.json does not say what is planned"):
        verify(run)


PROBE = """
import re, sys
from pathlib import Path
from polypersona.storage import RunDirectory
from polypersona.verify import verify
assert verify(RunDirectory.at(sys.argv[1])).is_clean
assert not {"ray", "torch"} & set(sys.modules)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path):
    peaks = []
    for size in (10_000, 100_000):
        run = make_run(tmp_path / str(size), size=size, shard_personas=1_000)
        done = subprocess.run([sys.executable, "-c", PROBE, run.location], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 300
    assert peaks[1] - peaks[0] < 50
