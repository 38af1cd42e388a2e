"""The finetune stage under faults, on a real Ray: workers, drivers, nodes die, memory runs out, the adapter stands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from test_finetune import make_recipe, write_dataset
from toy_models import make_toy_model

from polypersona.events import read_events
from polypersona.examples import load_examples
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.storage import RunDirectory
from polypersona.training.folder import load_validation
from polypersona.training.job import TrainingJob
from polypersona.training.loop import Listeners, Place, train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

HERE = Path(__file__).resolve().parent
STORE = 80 << 20
# 4 steps an epoch, a checkpoint every 20 steps.
SETTINGS: dict[str, Any] = {"epochs": 15, "batch_size": 8, "accumulation": 1, "dropout": 0.0}
DEADLINE_S = 600


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of one process without Ray."""
    recipe = prepared(tmp_path_factory.mktemp("alone"), base, workers=1)
    run, kept = RunDirectory.at(recipe.location), tmp_path_factory.mktemp("kept")
    job = TrainingJob(str(base), str(base), finetune_settings(recipe.finetune), seed=recipe.seed)

    def keep(metrics: dict[str, Any], folder: Path | None) -> None:
        assert folder is not None
        (kept / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())

    outcome = train(
        job, load_examples(run, "train"), load_validation(run), Place(kept / "work"), Listeners(on_checkpoint=keep)
    )
    assert outcome.steps == 60
    return kept


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and one more node, one CPU each."""
    settings = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=settings)
    try:
        yield found
    finally:
        found.shutdown()


def prepared(out: Path, base: Path, **finetune: Any) -> Recipe:
    recipe = make_recipe(out, base, **{**SETTINGS, **finetune})
    write_dataset(RunDirectory.at(recipe.location))
    return recipe


@contextlib.contextmanager
def driver(recipe: Recipe, cluster: Cluster, *hook: str) -> Iterator[subprocess.Popen[bytes]]:
    file = Path(recipe.out) / "recipe.json"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    environment = {
        **os.environ,
        "RAY_ADDRESS": str(cluster.address),
        "RAY_AUTH_MODE": "disabled",
        "XDG_CACHE_HOME": str(Path(recipe.out) / "cache"),
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
    }
    with (Path(recipe.out) / "driver.log").open("ab") as log:
        command = [sys.executable, str(HERE / "finetune_driver.py"), str(file), *hook]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)


def finish(process: subprocess.Popen[bytes], recipe: Recipe) -> Path:
    code = process.wait(timeout=DEADLINE_S)
    assert code == 0, (Path(recipe.out) / "driver.log").read_text(encoding="utf-8")[-3000:]
    return Path(recipe.location) / "adapter"


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes], recipe: Recipe) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        log = Path(recipe.out) / "driver.log"
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < end, f"{log.read_text(encoding='utf-8')[-2000:]} {events(recipe)}"
        time.sleep(0.2)


def events(recipe: Recipe, name: str = "") -> list[dict[str, Any]]:
    found = read_events(RunDirectory.at(recipe.location), "finetune")
    return sorted((one for one in found if not name or one["event"] == name), key=lambda one: str(one["time"]))


def has_checkpoint(recipe: Recipe) -> bool:
    """Whether a new driver would find a checkpoint: the controller has noted it."""
    return any(Path(recipe.location, "train").rglob("checkpoint_manager_snapshot.json"))


def distance(one: Path, other: Path) -> float:
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def is_bit_equal(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


def test_two_workers_one_killed_end_with_the_adapter_of_the_undisturbed(
    cluster: Cluster, base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    adapters = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        recipe = prepared(tmp_path / name, base, workers=2)
        with driver(recipe, cluster, *(("die", str(tmp_path / "died")) if name == "killed" else ())) as process:
            adapters.append(finish(process, recipe))
    assert (tmp_path / "died").exists()
    assert distance(adapters[0], undisturbed) <= 1e-5
    assert is_bit_equal(*adapters)
    began = events(recipe, "workers_began")
    assert [one["workers"] for one in began] == [2, 2]
    assert began[1]["step"] in (0, 20)  # a checkpoint counts once the controller has seen it
    assert events(recipe, "worker_failed")


def test_a_killed_driver_started_again_ends_bit_equal_and_a_finished_run_is_left(
    cluster: Cluster, base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = prepared(tmp_path, base, workers=1)
    with driver(recipe, cluster, "slow", str(tmp_path / "never")) as process:
        wait_for(lambda: has_checkpoint(recipe), process, recipe)
        os.kill(process.pid, signal.SIGKILL)
    with driver(recipe, cluster) as process:
        adapter = finish(process, recipe)
    assert is_bit_equal(adapter, undisturbed)
    last = events(recipe, "workers_began")[-1]
    assert last["step"] >= 20
    attempts = json.loads((adapter / "training.json").read_text(encoding="utf-8"))["attempts"]
    assert [one["step"] for one in attempts] == [0, last["step"]]
    assert all(one["seconds"] > 0 and one["machines"] for one in attempts)
    assert last["reason"] == f"resumed from the checkpoint of step {last['step']}"


def test_an_elastic_training_that_loses_and_regains_a_node_ends_with_the_undisturbed_adapter(
    cluster: Cluster, base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = prepared(tmp_path, base, workers=[1, 2])
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    regained = tmp_path / "regained"

    def workers() -> list[int]:
        return [one["workers"] for one in events(recipe, "workers_began")]

    with driver(recipe, cluster, "slow", str(regained)) as process:
        wait_for(lambda: has_checkpoint(recipe), process, recipe)
        assert workers()[-1] == 2
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: workers()[-1] == 1, process, recipe)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        wait_for(lambda: workers()[-1] == 2, process, recipe)
        regained.touch()
        adapter = finish(process, recipe)
    assert distance(adapter, undisturbed) <= 1e-4
    began = events(recipe, "workers_began")
    assert [one["workers"] for one in began][-2:] == [1, 2]
    assert "1 workers in place of 2" in began[-2]["reason"]
    assert [one["workers"] * one["micro_batch"] * one["accumulation"] for one in began] == [8] * len(began)


def test_a_run_that_is_short_of_memory_goes_on_says_so_and_remembers(
    cluster: Cluster, base: Path, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = prepared(tmp_path, base, workers=1)
    with driver(recipe, cluster, "short", "2") as process:
        adapter = finish(process, recipe)
    assert distance(adapter, undisturbed) <= 1e-5
    told = events(recipe, "memory_ran_out")
    assert [(one["micro_batch"], one["next"], one["accumulation"]) for one in told] == [(8, 4, 2), (4, 2, 4)]
    assert all("no memory for" in one["reason"] for one in told)
    [remembered] = events(recipe, "micro_batch_remembered")
    assert remembered["micro_batch"] == 2
    training = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    assert (training["batch_size"], training["accumulation"], len(training["shortages"])) == (2, 4, 2)
    known = json.loads(Path(remembered["file"]).read_text(encoding="utf-8"))
    assert [one["micro_batch"] for one in known["micro_batches"].values()] == [2]
