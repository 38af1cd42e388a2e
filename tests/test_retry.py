"""pytest tests/test_retry.py"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from routed_bank import write_bank

from polypersona import generate, retry
from polypersona.errors import RecipeChangedError, RecipeError, StorageError, TooManyQuarantinedError
from polypersona.events import read_events
from polypersona.ledger import committed_shards
from polypersona.recipe import build_recipe
from polypersona.rounds import current_quarantine
from polypersona.storage import RunDirectory, load_run
from polypersona.verify import verify

ITEMS = ["healthcare.likert.01", "healthcare.open.01"]
ROUTED = ["pets.yesno.01", "pets.likert.01", "pets.open.01", "pets.likert.02"]


def write_panel(path, size, attributes):
    rows = [{"id": f"p{place}", "age": 20 + place % 60, **attributes.get(place, {})} for place in range(size)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def once(folder, place, failure="error"):
    """Return the attributes of a persona that fails the first time it is asked."""
    return {"fake_failure": failure, "fake_once": str(folder / f"failed-{place}")}


def recipe(folder, panel, name="run", items=ITEMS, bank="questionbank", **options):
    settings = {
        "engine": "fake", "shard_personas": 4, "actors": 1, "max_quarantined": 1.0, "max_attempts": 1, **options
    }  # fmt: skip
    return build_recipe(
        {
            "name": name,
            "out": str(folder),
            "panel": {"source": panel, "size": 16 if panel == "sampled" else None},
            "instrument": {"items": items, "bank": bank},
            "generate": settings,
        }
    )


def rows(folder, part="responses", without=("attempts",)):
    """Return the rows of the files that count, by id."""
    run = RunDirectory.at(folder)
    fingerprint = load_run(run)["fingerprint"]
    names = current_quarantine(run, fingerprint).values() if part == "quarantine" else run.names("responses")
    kept = [row for name in names for row in pq.read_table(run.local_path(name)).to_pylist()]
    return {row["assignment_id"]: {key: row[key] for key in row if key not in without} for row in kept}


def names(folder, part="quarantine"):
    return sorted(path.name.rsplit("-", 1)[0] for path in (Path(folder) / part).iterdir())


@pytest.mark.ray
def test_what_succeeds_joins_the_responses_and_the_rest_stays_with_its_attempts(local_ray, tmp_path):
    failing = {
        0: once(tmp_path, 0),
        5: once(tmp_path, 5),
        6: {"fake_failure": "error"},
        9: once(tmp_path, 9, "invalid"),
    }
    asked = recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 16, failing))
    assert generate.run(asked)["quarantined"] == 8
    run = RunDirectory.at(tmp_path / "run")
    untouched = (tmp_path / "run" / "responses" / names(tmp_path / "run", "responses")[3]).name
    summary = retry.run(run)
    assert {key: summary[key] for key in ("round", "shards", "asked", "answered", "quarantined", "skipped")} == {
        "round": 1, "shards": 3, "asked": 8, "answered": 6, "quarantined": 2, "skipped": False,
    }  # fmt: skip
    assert names(tmp_path / "run") == ["shard-00001-r1"]
    assert untouched.startswith("shard-00003")
    left = rows(tmp_path / "run", "quarantine", without=()).values()
    assert {(row["persona_id"], row["attempts"], row["reason"]) for row in left} == {
        ("p6", 2, "asked the fake engine for an error")
    }
    assert verify(run).problems == ()
    generate.run(asked.model_copy(update={"name": "calm"}))  # the markers are there, so all but p6 answer
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")
    stage = load_run(run)["stages"]["retry"]
    assert (stage["state"], stage["round"]) == ("finished", 1)

    again = retry.run(run, ["generate.actors=2", "generate.max_attempts=2"])
    assert (again["round"], again["answered"]) == (2, 0)
    assert names(tmp_path / "run") == ["shard-00001-r2"]
    assert {row["attempts"] for row in rows(tmp_path / "run", "quarantine", without=()).values()} == {4}
    assert verify(run).problems == ()
    assert generate.run(asked)["quarantined"] == 2
    assert generate.run(recipe(tmp_path, asked.panel.source, draws=2))["quarantined"] == 4
    assert retry.run(run)["round"] == 3
    assert verify(run).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cell_that_kills_is_isolated_again_and_its_neighbours_are_mended(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 4, {1: {"fake_failure": "crash"}, 2: once(tmp_path, 2)})
    run = RunDirectory.at(tmp_path / "run")
    assert generate.run(recipe(tmp_path, panel, items=ITEMS[:1]))["quarantined"] == 2 - (tmp_path / "failed-2").exists()
    retry.run(run)
    (left,) = rows(tmp_path / "run", "quarantine", without=()).values()
    assert left["persona_id"] == "p1"
    assert left["attempts"] > 2
    assert "the process died" in left["reason"]
    assert not list((tmp_path / "run" / "attempts").iterdir())
    assert verify(run).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_gate_that_is_answered_now_unlocks_what_hung_on_it_in_this_layer_and_the_next(local_ray, tmp_path):
    bank = write_bank(tmp_path)
    failing = {place: once(tmp_path, place) for place in range(0, 8, 2)}
    panel = write_panel(tmp_path / "panel.jsonl", 8, failing)
    run = RunDirectory.at(tmp_path / "run")
    generate.run(recipe(tmp_path, panel, items=ROUTED[:2], bank=bank))
    generate.run(recipe(tmp_path, panel, items=ROUTED, bank=bank))
    reasons = {row["reason"] for row in rows(tmp_path / "run", "quarantine", without=()).values()}
    assert "its gate pets.yesno.01 failed: asked the fake engine for an error" in reasons
    assert len(run.names("responses")) == 4
    retry.run(run)
    assert rows(tmp_path / "run", "quarantine") == {}
    assert names(tmp_path / "run") == []
    assert verify(run).problems == ()
    generate.run(recipe(tmp_path, panel, name="calm", items=ROUTED, bank=bank))
    ignored = ("attempts", "shard", "reused_prompt_tokens")
    assert rows(tmp_path / "run", without=ignored) == rows(tmp_path / "calm", without=ignored)
    assert {"complete", "not_asked"} == {row["disposition"] for row in rows(tmp_path / "run").values()}


@pytest.mark.ray
def test_what_a_killed_step_left_is_no_problem_and_is_cleared_away(local_ray, tmp_path):
    failing = {0: once(tmp_path, 0), 6: {"fake_failure": "error"}}
    asked = recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 8, failing))
    generate.run(asked)
    run = RunDirectory.at(tmp_path / "run")
    before = {name: run.read(name) for name in run.names("quarantine")}
    fingerprint = load_run(run)["fingerprint"]
    run.write(
        f"quarantine/shard-00001-r1-{fingerprint}.parquet", before[f"quarantine/shard-00001-{fingerprint}.parquet"]
    )
    assert verify(run).problems == ()  # killed between the two files of a retry
    retry.run(run)
    for name, data in before.items():  # killed before the files of the round before were deleted
        run.write(name, data)
    assert names(tmp_path / "run") == ["shard-00000", "shard-00001", "shard-00001-r1"]
    assert verify(run).problems == ()
    assert len(rows(tmp_path / "run", "quarantine")) == 2
    generate.run(recipe(tmp_path, asked.panel.source, draws=2))
    assert names(tmp_path / "run") == ["shard-00001-r1", "shard-00003"]
    assert verify(run).problems == ()


RETRY_ALONE = """
import sys
from polypersona import retry
from polypersona.storage import RunDirectory
retry.run(RunDirectory.at(sys.argv[1]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_retry_loses_nothing_and_goes_on(local_ray, tmp_path):
    failing = {place: once(tmp_path, place) | {"fake_delay_s": 0.4} for place in range(2, 14)}
    asked = recipe(
        tmp_path, write_panel(tmp_path / "panel.jsonl", 14, failing), items=ITEMS[:1], shard_personas=1, actors=2
    )
    generate.run(asked)
    run = RunDirectory.at(tmp_path / "run")
    assert len(rows(tmp_path / "run", "quarantine")) == 12
    process = subprocess.Popen(
        [sys.executable, "-c", RETRY_ALONE, run.location],
        env={**os.environ, "RAY_ADDRESS": "local"},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while len(names(tmp_path / "run")) > 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # the killed driver's actors end with it
    assert verify(run).problems == ()
    left = len(rows(tmp_path / "run", "quarantine"))
    assert 0 < left < 12
    summary = retry.run(run)
    assert (summary["round"], summary["answered"], summary["quarantined"]) == (1, left, 0)
    assert len(committed_shards(run, load_run(run)["fingerprint"])) == 14
    assert verify(run).problems == ()
    generate.run(asked.model_copy(update={"name": "calm"}))
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")


@pytest.mark.ray
def test_a_retry_with_nothing_to_do_or_with_too_much_left_says_so(local_ray, tmp_path):
    asked = recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 4, {1: {"fake_failure": "error"}}))
    generate.run(asked)
    run = RunDirectory.at(tmp_path / "run")
    with pytest.raises(TooManyQuarantinedError, match="2 of 8 cells"):
        retry.run(run, ["generate.max_quarantined=0.1"])
    assert load_run(run)["stages"]["retry"]["state"] == "finished"
    assert [event.get("round") for event in read_events(run, "driver") if event["event"] == "start"] == [None, 1]
    generate.run(recipe(tmp_path, write_panel(tmp_path / "good.jsonl", 4, {}), name="good"))
    summary = retry.run(RunDirectory.at(tmp_path / "good"))
    assert (summary["skipped"], summary["asked"]) == (True, 0)


@pytest.mark.ray
def test_a_retry_asks_for_nothing_else_than_the_run_has(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 4, {1: {"fake_failure": "error"}})
    generate.run(recipe(tmp_path, panel))
    run = RunDirectory.at(tmp_path / "run")
    with pytest.raises(RecipeError, match="nothing new"):
        retry.run(run, ["generate.draws=2"])
    with pytest.raises(RecipeError, match="the run is"):
        retry.run(run, ["name=other"])
    with pytest.raises(RecipeChangedError, match=r"generate\.temperature: 0\.8 → 0\.1"):
        retry.run(run, ["generate.temperature=0.1"])
    moved = Path(panel).rename(tmp_path / "moved.jsonl")
    assert retry.run(run, [f"panel.source={moved}"])["asked"] == 2
    moved.unlink()
    assert "retry" in load_run(run)["stages"]
    with pytest.raises(StorageError, match="is no run"):
        retry.run(RunDirectory.at(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_an_interview_is_held_again_as_a_whole_and_the_same(local_ray, tmp_path):
    asked = recipe(
        tmp_path, "sampled", items=[*ROUTED, "pets.open.02"], bank=write_bank(tmp_path), engine="packed", closed="text",
        context="previous", max_new_tokens=12, temperature=1.5, shard_personas=8,
    ).model_dump()  # fmt: skip
    asked["model"] = {"base": "tiny", "adapter": "none", "dtype": "fp32"}
    assert generate.run(build_recipe(asked))["quarantined"] > 0
    run = RunDirectory.at(tmp_path / "run")
    before = {part: rows(tmp_path / "run", part) for part in ("responses", "quarantine")}
    assert retry.run(run)["answered"] == 0  # what is none of the options stays so: a cell keeps its seed
    assert {part: rows(tmp_path / "run", part) for part in before} == before
    left = rows(tmp_path / "run", "quarantine", without=()).values()
    assert {row["attempts"] for row in left} == {2}
    assert verify(run).problems == ()
