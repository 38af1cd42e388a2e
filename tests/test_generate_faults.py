"""What fails, what stops a run early, and how it goes on: whole runs of the fake engine on a local Ray.

pytest tests/test_generate_faults.py
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from routed_bank import write_bank

from polypersona import generate
from polypersona.errors import RunFailedError, RunStoppedError, TooManyQuarantinedError
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory, load_run
from polypersona.verify import verify

ITEMS = ["healthcare.likert.01", "technology.likert.01", "technology.yesno.01", "healthcare.open.01"]
RUN_ALONE = """
import sys
from polypersona import generate
from polypersona.recipe import load_recipe
generate.run(load_recipe(sys.argv[1]))
"""


def write_panel(path, size, attributes):
    """Write a panel of `size`; `attributes` are more of them, by the persona's place."""
    rows = [{"id": f"p{place}", "age": 20 + place % 60, **attributes.get(place, {})} for place in range(size)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder, panel, name="run", items=ITEMS, bank="questionbank", **options):
    settings = {"engine": "fake", "shard_personas": 4, "actors": 1, "max_quarantined": 1.0, **options}
    return build_recipe(
        {
            "name": name,
            "out": str(folder),
            "panel": {"source": panel},
            "instrument": {"items": items, "bank": bank},
            "generate": settings,
        }
    )


def hashes(folder, pattern="responses/*"):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob(pattern)) if path.is_file()}


def rows(folder, columns=("assignment_id", "text", "code", "option_probs", "seed")):
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(Path(folder).glob("responses/*.parquet"))]
    return {row["assignment_id"]: row for table in tables for row in table.to_pylist()}


def start_alone(recipe_path):
    return subprocess.Popen(
        [sys.executable, "-c", RUN_ALONE, str(recipe_path)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_what_fails_is_quarantined_with_its_reason_and_the_rest_is_committed(local_ray, tmp_path):
    failing = {0: "error", 1: "invalid", 2: "refusal", 5: "raise", 9: "crash", 11: "crash"}
    panel = write_panel(tmp_path / "panel.jsonl", 16, {at: {"fake_failure": what} for at, what in failing.items()})
    asked = recipe(tmp_path, panel, items=ITEMS[:1], max_attempts=2)
    summary = generate.run(asked)
    assert (summary["committed"], summary["quarantined"]) == (16 - 5, 5)
    table = pq.read_table(tmp_path / "run" / "quarantine")
    reasons = {(row["persona_id"], row["reason"], row["disposition"], row["attempts"]) for row in table.to_pylist()}
    died = "the process died each time it answered this: 2 times with its shard and 2 times alone"
    assert reasons == {
        ("p0", "asked the fake engine for an error", "error", 2),
        ("p1", "the answer is none of the options", "invalid", 1),
        ("p5", "RuntimeError: persona 'p5' asked the fake engine to raise", "error", 4),
        ("p9", died, "error", 4),
        ("p11", died, "error", 4),
    }
    committed = rows(tmp_path / "run", ("assignment_id", "persona_id", "disposition")).values()
    assert {row["disposition"] for row in committed} == {"complete", "refusal"}
    assert not list((tmp_path / "run" / "attempts").iterdir())
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()
    assert generate.run(asked)["skipped"]
    with pytest.raises(TooManyQuarantinedError, match=r"5 of 16 cells \(31.25 %\)") as excess:
        generate.run(recipe(tmp_path, panel, items=ITEMS[:1], max_quarantined=0.3))
    assert excess.value.exit_code == 3


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_killing_cell_leaves_of_its_shard_is_as_if_it_had_not_been_there(local_ray, tmp_path):
    for name, failure in (("killed", "crash"), ("calm", "error")):
        panel = write_panel(tmp_path / f"{name}.jsonl", 8, {6: {"fake_failure": failure}})
        generate.run(recipe(tmp_path, panel, name=name, items=ITEMS[3:], shard_personas=8, max_attempts=1))
    columns = pq.read_schema(next((tmp_path / "calm" / "responses").iterdir())).names
    assert len(rows(tmp_path / "killed")) == 7
    assert rows(tmp_path / "killed", columns) == rows(tmp_path / "calm", columns)


@pytest.mark.ray
@pytest.mark.slow
def test_of_a_routed_instrument_the_interview_is_isolated_and_the_others_are_committed(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 4, {2: {"fake_failure": "crash"}})
    items = ["pets.yesno.01", "pets.likert.01", "pets.open.01"]
    asked = recipe(tmp_path, panel, items=items, bank=write_bank(tmp_path), max_attempts=1, draws=2)
    summary = generate.run(asked)
    assert (summary["committed"], summary["quarantined"]) == (3 * 3 * 2, 3 * 2)
    failed = pq.read_table(tmp_path / "run" / "quarantine").to_pylist()
    died = "the process died each time it answered this: once with its shard and once alone"
    assert {(row["persona_id"], row["reason"]) for row in failed} == {("p2", died)}
    committed = rows(tmp_path / "run", ("assignment_id", "disposition")).values()
    assert {row["disposition"] for row in committed} == {"complete", "not_asked"}
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
def test_a_run_with_nothing_but_failures_fails_with_the_commonest_reason(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 4, {at: {"fake_failure": "error"} for at in range(4)})
    with pytest.raises(RunFailedError, match=r"None of 16 cells .* asked the fake engine for an error") as failed:
        generate.run(recipe(tmp_path, panel))
    assert failed.value.exit_code == 1


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_whose_first_shards_all_fail_stops_early_and_can_go_on(local_ray, tmp_path):
    panel = write_panel(
        tmp_path / "panel.jsonl", 12, {at: {"fake_failure": "error", "fake_delay_s": 0.3} for at in range(10)}
    )
    asked = recipe(tmp_path, panel, items=ITEMS[:2], shard_personas=1, max_attempts=1)
    with pytest.raises(
        RunFailedError, match=r"The first 2 shards .* not a single answer; the commonest reason"
    ) as stop:
        generate.run(asked)
    assert "polypersona retry" in stop.value.hint
    assert 2 <= len(hashes(tmp_path / "run")) < 12
    assert len(hashes(tmp_path / "run", "quarantine/*")) == len(hashes(tmp_path / "run"))
    while True:  # each start looks at its own first shards
        try:
            assert generate.run(asked)["quarantined"] == 20
            break
        except RunFailedError:
            continue
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_max_hours_stops_between_shards_and_the_same_command_goes_on(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 8, {at: {"fake_delay_s": 1.0} for at in range(8)})
    asked = recipe(tmp_path, panel, items=ITEMS[:1], shard_personas=1)
    short = recipe(tmp_path, panel, items=ITEMS[:1], shard_personas=1, max_hours=6 / 3600)
    with pytest.raises(
        RunStoppedError, match=r"stopped after generate.max_hours \(0.0016\d*\); \d of 8 shards"
    ) as stop:
        generate.run(short)
    assert stop.value.exit_code == 4
    done = hashes(tmp_path / "run")
    assert len(done) < 8
    stored = load_run(RunDirectory.at(tmp_path / "run"))["stages"]["generate"]
    assert (stored["state"], stored["shards_done"]) == ("stopped", len(done))
    assert not list((tmp_path / "run").glob("attempts/*"))
    assert generate.run(asked)["answered"] == 8 - len(done)
    assert done.items() <= hashes(tmp_path / "run").items()
    assert load_run(RunDirectory.at(tmp_path / "run"))["stages"]["generate"]["state"] == "finished"
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_run_says_how_far_it_came_and_that_it_is_finished_as_it_was_begun(local_ray, tmp_path, caplog):
    panel = write_panel(tmp_path / "panel.jsonl", 12, {at: {"fake_delay_s": 0.5} for at in range(2, 12)})
    asked = recipe(tmp_path, panel, items=ITEMS[:1], shard_personas=1, draws=3)
    (tmp_path / "recipe.json").write_text(asked.model_dump_json())
    process = start_alone(tmp_path / "recipe.json")
    deadline = time.monotonic() + 180
    while len(hashes(tmp_path / "run")) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    told = re.search(r"generate: stopped at (\d+) of 36 responses", said)
    assert told, said
    assert int(told[1]) >= 9
    with caplog.at_level("WARNING"):
        assert generate.run(recipe(tmp_path, panel, items=ITEMS[:1], shard_personas=1))["planned"] == 36
    assert caplog.messages == [
        f"{tmp_path / 'run'} was begun with generate.draws: 3 and is finished as it was begun; "
        "1 is for a run of another name."
    ]
