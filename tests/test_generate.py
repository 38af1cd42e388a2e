"""pytest tests/test_generate.py"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from toy_models import make_toy_model

from polypersona import driver, generate
from polypersona.engines.base import Answer
from polypersona.errors import (
    EngineError,
    ModelError,
    RecipeChangedError,
    RunFailedError,
    StorageError,
)
from polypersona.events import read_events
from polypersona.examples import build_example, render_examples
from polypersona.questionbank import load_bank
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import ClusterRecipe
from polypersona.records import Persona
from polypersona.status import read_status
from polypersona.storage import RunDirectory, load_run
from polypersona.verify import verify

CLOSED = ["healthcare.likert.01", "technology.likert.01", "technology.yesno.01"]
ITEMS = [*CLOSED, "healthcare.open.01"]


def write_panel(path, size, attributes=None):
    """Write a panel of `size`; `attributes` are more of them, by the persona's place."""
    rows = [{"id": f"p{place}", "age": 20 + place % 60, **(attributes or {}).get(place, {})} for place in range(size)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder, panel, name="run", items=ITEMS, size=None, **options):
    settings = {"engine": "fake", "shard_personas": 4, "actors": 1, "max_quarantined": 1.0, **options}
    return build_recipe(
        {
            "name": name,
            "out": str(folder),
            "panel": {"source": panel, "size": size},
            "instrument": {"items": items},
            "generate": settings,
        }
    )


def hashes(folder, pattern="responses/*"):
    files = [path for path in sorted(Path(folder).glob(pattern)) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder, columns=("assignment_id", "text", "code", "option_probs", "seed")):
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(Path(folder).glob("responses/*.parquet"))]
    return {row["assignment_id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.ray
def test_any_number_of_actors_writes_the_same_bytes_and_a_second_run_does_nothing(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 30)
    one, two = (recipe(tmp_path, panel, name=f"with{actors}", actors=actors) for actors in (1, 2))
    summary = generate.run(one)
    generate.run(two)
    files = hashes(tmp_path / "with1")
    assert len(files) == 8
    assert files == hashes(tmp_path / "with2")
    assert (summary["planned"], summary["committed"], summary["answered"]) == (120, 120, 120)
    assert len(rows(tmp_path / "with1")) == 120
    before = hashes(tmp_path / "with1", "**/*")
    again = generate.run(one)
    assert (again["skipped"], again["answered"], again["committed"]) == (True, 0, 120)
    assert hashes(tmp_path / "with1", "**/*") == before
    assert verify(RunDirectory.at(tmp_path / "with1")).is_clean
    stored = load_run(RunDirectory.at(tmp_path / "with1"))
    assert stored["stages"]["generate"]["state"] == "finished"
    assert stored["frozen"]["shard_personas"] == 4
    # A driver that was killed between its last commit and its entry in run.json is made up for.
    RunDirectory.at(tmp_path / "with1").write_json("run.json", {**stored, "stages": {}})
    assert generate.run(one)["skipped"]
    assert load_run(RunDirectory.at(tmp_path / "with1"))["stages"]["generate"]["committed"] == 120
    assert stored["plan"]["generate"]["dtype"]["reason"]


@pytest.mark.ray
def test_a_change_of_content_is_refused_with_a_diff_and_one_of_speed_goes_on(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 8)
    generate.run(recipe(tmp_path, panel))
    before = hashes(tmp_path / "run", "**/*")
    for change, line in (
        ({"temperature": 0.5}, "generate.temperature: 0.8 → 0.5"),
        ({"shard_personas": 8}, "generate.shard_personas: 4 → 8"),
        ({"slots": 8}, None),  # the fake engine has none
        ({"actors": 2, "max_attempts": 5}, None),
    ):
        if line is None:
            assert generate.run(recipe(tmp_path, panel, **change))["skipped"]
        else:
            with pytest.raises(RecipeChangedError) as refused:
                generate.run(recipe(tmp_path, panel, **change))
            assert line in refused.value.message.splitlines()[1]
    other = write_panel(tmp_path / "other.jsonl", 8, {3: {"occupation": "nurse"}})
    with pytest.raises(RecipeChangedError, match=r"the first 8 personas: \w+ → \w+\n  panel.source: .*panel.jsonl → "):
        generate.run(recipe(tmp_path, other))
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(panel).read_bytes())
    assert generate.run(recipe(tmp_path, str(moved)))["skipped"]
    assert hashes(tmp_path / "run", "**/*") == before


@pytest.mark.ray
def test_a_start_before_the_first_commit_leaves_nothing_to_the_next(local_ray, tmp_path):
    run = RunDirectory.at(tmp_path / "run")
    left = {"frozen": {"adapters": {"finance": ["gone"]}}, "ledger": {"shard_cells": [1]}, "fingerprint": "of before"}
    run.write_json("run.json", left)
    generate.run(recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 8)))
    stored = load_run(run)
    assert "adapters" not in stored["frozen"]
    assert "shard_cells" not in stored["ledger"]
    assert read_status(run).responses_done == 32


@pytest.mark.ray
def test_a_shard_that_gets_lost_on_the_way_is_no_finished_run(local_ray, tmp_path, monkeypatch):
    panel = write_panel(tmp_path / "panel.jsonl", 8)
    monkeypatch.setattr(driver, "answer_shards", lambda job, plan: iter(()))
    with pytest.raises(RunFailedError, match=r"2 of 2 shards .* were not committed, the first is 0"):
        generate.run(recipe(tmp_path, panel))
    assert "generate" not in load_run(RunDirectory.at(tmp_path / "run")).get("stages", {})


@pytest.mark.ray
def test_an_extension_computes_what_is_missing_and_leaves_the_rest(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 12)
    generate.run(recipe(tmp_path, panel, items=ITEMS[:2], size=8))
    steps = [
        (recipe(tmp_path, panel, items=ITEMS[:2], size=12), 4 * 2),
        (recipe(tmp_path, panel, items=ITEMS[:2], size=12, draws=2), 12 * 2),
        (recipe(tmp_path, panel, size=12, draws=2), 12 * 2 * 2),
        (recipe(tmp_path, panel, size=12, draws=2, waves=2), 12 * 4 * 2),
        (recipe(tmp_path, panel, size=10), 0),
    ]
    for grown, missing in steps:
        before = hashes(tmp_path / "run")
        assert generate.run(grown)["answered"] == missing
        assert before.items() <= hashes(tmp_path / "run").items()
        assert verify(RunDirectory.at(tmp_path / "run")).problems == ()
    whole = recipe(tmp_path, panel, name="whole", size=12, draws=2, waves=2)
    generate.run(whole)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.ray
def test_another_shard_size_and_another_order_of_options(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 9)
    for name, size, order in (("small", 2, "fixed"), ("large", 100, "fixed"), ("shuffled", 2, "random")):
        generate.run(recipe(tmp_path, panel, name=name, shard_personas=size, order=order))
    assert rows(tmp_path / "small") == rows(tmp_path / "large")
    shown = [
        row["options_as_shown"] for row in rows(tmp_path / "shuffled", ("assignment_id", "options_as_shown")).values()
    ]
    assert any(order != sorted(order) for order in shown if order)
    assert sum(order is None for order in shown) == 9  # the open item
    fixed = rows(tmp_path / "small", ("assignment_id", "options_as_shown")).values()
    assert all(row["options_as_shown"] in (None, sorted(row["options_as_shown"] or [])) for row in fixed)


@pytest.mark.ray
def test_a_killed_actor_loses_no_committed_shard_and_changes_no_byte(local_ray, tmp_path):
    crash = {"fake_failure": "crash", "fake_once": str(tmp_path / "crashed")}
    panel = write_panel(tmp_path / "panel.jsonl", 24, {13: crash})
    generate.run(recipe(tmp_path, panel, name="killed", actors=2))
    assert (tmp_path / "crashed").exists()
    generate.run(recipe(tmp_path, panel, name="calm"))
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "calm")
    assert not list((tmp_path / "killed" / "attempts").iterdir())
    commits = [
        event["shard"]
        for event in read_events(RunDirectory.at(tmp_path / "killed"), "actor-")
        if event["event"] == "commit"
    ]
    assert sorted(commits) == list(range(6))


@pytest.mark.ray
def test_a_users_mistake_inside_an_actor_is_one_sentence_and_can_be_mended(local_ray, tmp_path):
    panel = write_panel(tmp_path / "panel.jsonl", 4, {2: {"fake_failure": "refusl"}})
    with pytest.raises(EngineError, match="Did you mean 'refusal'"):
        generate.run(recipe(tmp_path, panel))
    assert not hashes(tmp_path / "run")
    write_panel(tmp_path / "panel.jsonl", 4, {2: {"fake_failure": "refusal"}})
    assert generate.run(recipe(tmp_path, panel, temperature=0.5))["committed"] == 16
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
def test_the_test_split_is_asked_its_own_cells(local_ray, tmp_path):
    bank = {item.item_id: item for item in load_bank()}
    cells = [("a", ITEMS[0]), ("a", ITEMS[3]), ("b", ITEMS[1]), ("c", ITEMS[0]), ("c", ITEMS[1])]
    examples = [
        build_example(Persona(persona, {"age": 40}), bank[item], Answer("", "Agree.", "complete"), "labels")
        for persona, item in cells
    ]
    run = RunDirectory.at(tmp_path / "run")
    run.write("dataset/test.jsonl", render_examples(examples))
    asked = recipe(tmp_path, "unused", on="test", shard_personas=2, draws=2)
    assert generate.run(asked)["answered"] == 10
    found = rows(tmp_path / "run", ("assignment_id", "persona_id", "item_id", "draw")).values()
    assert {(row["persona_id"], row["item_id"]) for row in found} == set(cells)
    assert verify(run).problems == ()
    run.write("dataset/test.jsonl", render_examples(examples[1:]))
    with pytest.raises(RecipeChangedError, match="cells of the test split"):
        generate.run(asked)


@pytest.mark.ray
@pytest.mark.slow
def test_one_cpu_is_enough(tmp_path):
    asked = recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 8), actors="auto")
    limited = asked.model_copy(update={"cluster": ClusterRecipe(limits={"CPU": 1})})
    (tmp_path / "recipe.json").write_text(limited.model_dump_json())
    process = start_alone(tmp_path / "recipe.json")
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process.stderr.close()
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_answers_the_same_with_any_actors_and_shard_size(local_ray, tmp_path):
    base = str(make_toy_model("llama", tmp_path / "model", seed=3))
    panel = write_panel(tmp_path / "panel.jsonl", 6)
    runs = {"one": (1, 2), "two": (2, 2), "large": (1, 6)}
    for name, (actors, size) in runs.items():
        options = {"engine": "packed", "actors": actors, "shard_personas": size, "max_new_tokens": 8}
        asked = recipe(tmp_path, panel, name=name, **options).model_dump()
        asked["model"] |= {"base": base, "adapter": "none", "dtype": "fp32"}
        generate.run(build_recipe(asked))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    small, large = rows(tmp_path / "one"), rows(tmp_path / "large")
    assert small.keys() == large.keys()
    assert len(small) == 24
    for key, row in small.items():
        assert (row["text"], row["code"]) == (large[key]["text"], large[key]["code"])
        assert row["option_probs"] == pytest.approx(large[key]["option_probs"], abs=1e-4)


def test_the_test_split_needs_the_dataset_stage(tmp_path):
    with pytest.raises(StorageError, match="Run the stage that writes it first"):
        generate.run(recipe(tmp_path, "unused", on="test"))


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("engine", "endpoint", "generate.endpoint.url is missing"),
        ("context", "previous", "generate.context: 'previous' is not part of the fake engine"),
        ("calibration", "permute", "generate.calibration: 'permute' is not part of the fake engine"),
        ("length_norm", True, "generate.length_norm: True is not part of the fake engine"),
        ("repetition_penalty", 1.2, "generate.repetition_penalty: 1.2 is not part of the fake engine"),
        ("stop", ["END"], r"generate.stop: \['END'\] is not part of the fake engine"),
    ],
)
def test_an_option_the_engine_lacks_is_refused_by_name_before_anything_starts(tmp_path, option, value, sentence):
    with pytest.raises(EngineError, match=sentence) as refused:
        generate.run(recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 4), **{option: value}))
    assert refused.value.hint
    assert not (tmp_path / "run").exists()


def test_a_missing_adapter_is_named_before_anything_starts(tmp_path):
    with pytest.raises(ModelError, match=r"There is no .*adapter. Run the finetune stage, or set model.adapter: none"):
        generate.run(recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 4), engine="packed"))
    assert not (tmp_path / "run").exists()


RUN_ALONE = """
import sys
from polypersona import generate
from polypersona.recipe import load_recipe
generate.run(load_recipe(sys.argv[1]))
"""


def start_alone(recipe_path, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", RUN_ALONE, str(recipe_path)],
        env={**os.environ, "RAY_ADDRESS": "local", **environment},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.ray
def test_a_killed_driver_loses_no_committed_shard_and_changes_no_byte(local_ray, tmp_path):
    slow = {place: {"fake_delay_s": 0.3} for place in range(4, 12)}
    asked = recipe(tmp_path, write_panel(tmp_path / "panel.jsonl", 12, slow), shard_personas=1, actors=2)
    path = tmp_path / "recipe.json"
    path.write_text(asked.model_dump_json())
    process = start_alone(path)
    deadline = time.monotonic() + 180
    while len(hashes(tmp_path / "run")) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    time.sleep(2)  # the killed driver's actors end with it
    before = hashes(tmp_path / "run")
    assert 4 <= len(before) < 12
    summary = generate.run(asked)
    assert summary["answered"] == (12 - len(before)) * 4
    assert before.items() <= hashes(tmp_path / "run").items()
    generate.run(asked.model_copy(update={"name": "calm"}))
    assert hashes(tmp_path / "run") == hashes(tmp_path / "calm")
    assert verify(RunDirectory.at(tmp_path / "run")).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_can_live_on_an_object_store(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        filesystem, _ = pafs.FileSystem.from_uri("s3://bucket/runs?allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        asked = recipe("s3://bucket/runs", write_panel(tmp_path / "panel.jsonl", 8))
        (tmp_path / "recipe.json").write_text(asked.model_dump_json())
        process = start_alone(tmp_path / "recipe.json")
        assert process.wait(timeout=120) == 0, process.stderr.read()
        process.stderr.close()
        run = RunDirectory.at("s3://bucket/runs/run")
        assert verify(run).problems == ()
        assert len(run.names("responses")) == 2
        assert {event["event"] for event in read_events(run, "actor-")} == {"start", "commit"}
    finally:
        server.stop()
