"""Run: pytest tests/evaluation/test_pool.py. Real local Ray, a random BERT, shards written by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scored_runs import rows_of, scored_recipe, taught, write_shards
from toy_encoder import write_encoder

from polypersona import evaluate
from polypersona.evaluation import pairs
from polypersona.evaluation.pool import FOLDER, plan_pool
from polypersona.scheduling.machines import Gpu, Inventory, Node
from polypersona.storage import load_run

METRICS = ["rouge1", "bertscore_precision", "bertscore_f1"]
FILES = ("scores.json", "overall.parquet", "by_item.parquet", "by_subgroup.parquet", "by_model.parquet")
GIB = 1 << 30


def done(directory) -> dict:
    return load_run(directory)["stages"]["evaluate"]["bertscore"]


def test_encoders_are_one_a_gpu_or_one_a_cpu_as_far_as_memory_holds_them():
    node = Node(4, 64 * GIB)
    assert plan_pool(Inventory((node, node)), GIB).actors.value == 8
    assert plan_pool(Inventory((Node(4, 16 * GIB),)), GIB).actors.value == 2
    assert plan_pool(Inventory((Node(4, GIB),)), GIB).actors.value == 1
    pool = plan_pool(Inventory((Node(4, 64 * GIB, (Gpu("A100", 40 * GIB, 8.0),)),)), GIB)
    assert (pool.actors.value, pool.num_gpus) == (1, 1.0)


@pytest.mark.slow
@pytest.mark.ray
def test_any_sharding_gives_the_same_bytes_and_what_is_there_is_not_encoded_again(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "PART_CHARACTERS", 8000)
    encoder = write_encoder(tmp_path / "encoder")
    written = []
    for name, num_shards, cpus in (("one", 1, 2), ("many", 7, 1)):
        recipe = scored_recipe(tmp_path, name, bertscore_model=encoder, metrics=METRICS)
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"limits": {"CPU": cpus}})})
        directory = write_shards(recipe, rows_of(recipe, taught(recipe.seed + 1)), num_shards)
        assert evaluate.run(recipe)["scores"]["bertscore_f1"] is not None
        written.append({file: directory.read(f"scores/{file}") for file in FILES})
        facts = done(directory)
        assert facts["parts"] > 3
        assert (facts["parts_reused"], facts["actors"]) == (0, cpus)
    assert written[0] == written[1]
    # What a killed stage leaves: some parts, and no scores.
    parts = directory.names(FOLDER, ".parquet")
    for part in parts[: len(parts) // 2]:
        directory.delete(part)
    directory.delete("scores/scores.json")
    evaluate.run(recipe)
    again = done(directory)
    assert again["parts_reused"] == len(parts) - len(parts) // 2
    assert 0 < again["texts_encoded"] < facts["texts_encoded"]
    assert {file: directory.read(f"scores/{file}") for file in FILES} == written[0]
    # Other metrics, same pairs: nothing is encoded.
    evaluate.run(scored_recipe(tmp_path, "many", bertscore_model=encoder, metrics=["bertscore_recall"]))
    assert done(directory)["texts_encoded"] == 0


_EVALUATE = """
import sys
import ray
from polypersona import evaluate
from polypersona.evaluation import pairs
from polypersona.recipe import load_recipe
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
pairs.PART_CHARACTERS = 4000
evaluate.run(load_recipe(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_driver_killed_with_some_parts_done_encodes_every_text_once_in_all(tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    recipe = scored_recipe(tmp_path, "killed", bertscore_model=encoder, metrics=METRICS)
    rows = rows_of(recipe, taught(recipe.seed + 1))
    directory = write_shards(recipe, rows, 5)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", _EVALUATE, str(file)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
    deadline = time.monotonic() + 400
    while not (committed := directory.names(FOLDER, ".parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    committed = directory.names(FOLDER, ".parquet")
    assert committed
    assert not directory.exists("scores/scores.json")
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=400)
    resumed = done(directory)
    assert resumed["parts_reused"] == len(committed)
    encoded = {name: _texts_encoded(directory, name) for name in directory.names(FOLDER, ".parquet")}
    assert resumed["texts_encoded"] == sum(count for name, count in encoded.items() if name not in committed)
    # Every distinct text once, but for the one or two where an item is cut.
    distinct = {text for row in rows for text in (row["text"],)} | _references(recipe)
    assert len(distinct) <= sum(encoded.values()) <= len(distinct) + 2 * len(encoded)


def _texts_encoded(directory, name: str) -> int:
    return int(pq.read_schema(directory.local_path(name)).metadata[b"texts_encoded"])


def _references(recipe) -> set[str]:
    return {row["text"] for row in rows_of(recipe, taught(recipe.seed))}
