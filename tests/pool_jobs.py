"""Jobs for the pool, of the fake engine, whose personas may take their time; and what the files say afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from polypersona.answering import Task
from polypersona.content import extend_ledger
from polypersona.engines.settings import build_settings, locate_weights
from polypersona.events import read_events
from polypersona.ledger import Ledger
from polypersona.population import load_population
from polypersona.recipe import Recipe, build_recipe
from polypersona.scheduling.generation_plan import GeneratePlan, freeze_plan, plan_generation
from polypersona.scheduling.machines import Decision, Inventory, Node
from polypersona.scheduling.pools import Pool
from polypersona.shard_actor import Job
from polypersona.storage import RunDirectory

ITEMS = ("healthcare.likert.01", "technology.likert.01", "technology.yesno.01")


def slow_recipe(folder: Path, shards: int, delay_s: float, name: str = "run", **generate: Any) -> Recipe:
    """Return a recipe of so many shards of one persona each, who answers after a while."""
    panel = folder / "panel.jsonl"
    rows = [{"id": f"p{place}", "age": 20 + place % 60, "fake_delay_s": delay_s} for place in range(shards)]
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_recipe(
        {
            "name": name,
            "out": str(folder),
            "panel": {"source": str(panel)},
            "instrument": {"items": list(ITEMS)},
            "generate": {"engine": "fake", "shard_personas": 1, **generate},
        }
    )


def make_job(recipe: Recipe) -> tuple[Job, GeneratePlan]:
    """Return the job of all shards of a recipe, and a plan for one CPU. Ray must run."""
    run = RunDirectory.at(recipe.location)
    population, weights = load_population(recipe, run), locate_weights(recipe, run)
    plan = plan_generation(recipe, Inventory((Node(1, 64 << 30),)))
    frozen = freeze_plan(recipe, plan)
    ledger = extend_ledger(Ledger(frozen["shard_personas"]), recipe, population)
    job = Job(
        run=run,
        fingerprint="f00d",
        ledger=ledger,
        settings=build_settings(recipe, frozen, weights),
        weights=weights,
        task=Task(
            seed=recipe.seed, is_shuffled=False, shows_options=True, adapter="", max_attempts=3, is_interview=False
        ),
        session="test",
        pending=np.arange(ledger.num_shards),
        load_population=partial(ray.get, ray.put(population)),
    )
    return job, plan


def with_pools(plan: GeneratePlan, *pools: Pool) -> GeneratePlan:
    return replace(plan, pools=pools)


def cpu_pool(actors: int, most: int | None = None, **more: Any) -> Pool:
    return Pool(**{"name": "CPU", "actors": Decision(actors, "a test"), "most": most, "cpus_per_actor": 1.0,
                   "gpus_per_actor": 0, **more})  # fmt: skip


def gpu_pool(kind: str, actors: int, most: int | None = None) -> Pool:
    """Return a pool on nodes with this label; their GPUs need not be there, only Ray must count them."""
    labels = {"ray.io/accelerator-type": kind}
    return Pool(kind, Decision(actors, "a test"), most, 0.1, 1, 0, labels)


def events_of(run: RunDirectory, kind: str) -> list[Mapping[str, Any]]:
    return [event for event in read_events(run) if event["event"] == kind]


def hashes(run: RunDirectory) -> dict[str, str]:
    """Return the bytes of every shard, as digests."""
    folder = run.local_path("responses")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
