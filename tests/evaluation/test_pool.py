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
from scored_runs import people_and_items, rows_of, scored_recipe, taught, write_shards
from toy_encoder import write_encoder

from polypersona import evaluate
from polypersona.chatml import render_card
from polypersona.evaluation import pairs
from polypersona.evaluation.pool import FOLDER, plan_pool
from polypersona.metrics.bertscore import build_bertscores
from polypersona.metrics.card_similarity import build_comparison
from polypersona.scheduling.machines import Gpu, Inventory, Node
from polypersona.storage import load_run

METRICS = ["rouge1", "bertscore_precision", "bertscore_f1", "card_similarity"]
COMPARED = ("bertscore", "card_similarity")
FILES = ("scores.json", "overall.parquet", "by_item.parquet", "by_subgroup.parquet", "by_model.parquet")
GIB = 1 << 30


def done(directory) -> list[dict]:
    state = load_run(directory)["stages"]["evaluate"]
    return [state[name] for name in COMPARED]


def scored_by(encoder: str, out: Path, name: str, metrics=METRICS):
    return scored_recipe(out, name, bertscore_model=encoder, embedding_model=encoder, metrics=metrics)


def parts_of(directory, encoder: str) -> list[list[str]]:
    """The files of BERTScore's parts, and of card similarity's."""
    files = directory.names(FOLDER, ".parquet")
    comparisons = (build_bertscores(encoder)[0].encoder, build_comparison(encoder))
    digests = [pairs.comparison_digest(one) for one in comparisons]
    return [[file for file in files if f"/part-{digest}-" in file] for digest in digests]


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
        recipe = scored_by(encoder, tmp_path, name)
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"limits": {"CPU": cpus}})})
        directory = write_shards(recipe, rows_of(recipe, taught(recipe.seed + 1)), num_shards)
        scores = evaluate.run(recipe)["scores"]
        assert None not in (scores["bertscore_f1"], scores["card_similarity"])
        written.append({file: directory.read(f"scores/{file}") for file in FILES})
        facts = done(directory)
        for one in facts:
            assert one["parts"] > 3
            assert (one["parts_reused"], one["actors"]) == (0, cpus)
    assert written[0] == written[1]
    # What a killed stage leaves: some parts, and no scores.
    for parts in parts_of(directory, encoder):
        for part in parts[: len(parts) // 2]:
            directory.delete(part)
    directory.delete("scores/scores.json")
    evaluate.run(recipe)
    for before, again in zip(facts, done(directory), strict=True):
        assert again["parts_reused"] == before["parts"] - before["parts"] // 2
        assert 0 < again["texts_encoded"] < before["texts_encoded"]
    assert {file: directory.read(f"scores/{file}") for file in FILES} == written[0]
    # Other metrics, same pairs: nothing is encoded.
    evaluate.run(scored_by(encoder, tmp_path, "many", ["bertscore_recall", "card_similarity"]))
    assert [one["texts_encoded"] for one in done(directory)] == [0, 0]
    (row,) = (row for row in directory.read_json("scores/scores.json")["overall"] if row["metric"] == "card_similarity")
    answers = sum(1 for one in rows_of(recipe, taught(recipe.seed + 1)) if one["response_type"] == "open")
    assert (row["n"], row["floor_name"]) == (answers, "shuffled")
    assert row["gain_low"] < row["gain"] < row["gain_high"]


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
    recipe = scored_by(encoder, tmp_path, "killed")
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
    assert sum(one["parts_reused"] for one in resumed) == len(committed)
    answers = [row["text"] for row in rows if row["response_type"] == "open"]
    cards = {render_card(person) for person in people_and_items(recipe)[0]}
    texts = {row["text"] for row in rows} | _references(recipe)
    # Every text once, but for the one or two where the order is cut, and answers that several respondents gave.
    bounds = ((len(texts), len(texts)), (len(cards.union(answers)), len(cards) + len(answers)))
    for one, parts, (least, most) in zip(resumed, parts_of(directory, encoder), bounds, strict=True):
        encoded = {name: _texts_encoded(directory, name) for name in parts}
        assert one["texts_encoded"] == sum(count for name, count in encoded.items() if name not in committed)
        assert least <= sum(encoded.values()) <= most + 2 * len(encoded)


def _texts_encoded(directory, name: str) -> int:
    return int(pq.read_schema(directory.local_path(name)).metadata[b"texts_encoded"])


def _references(recipe) -> set[str]:
    return {row["text"] for row in rows_of(recipe, taught(recipe.seed))}
