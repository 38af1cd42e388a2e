"""No field of a plan is decoration: a change of any is a change of what Ray is asked for or of how it is computed.

pytest tests/scheduling/test_plan_fields.py
"""

import math
from dataclasses import asdict, fields, replace

import pytest

from polypersona.engines.settings import Weights, build_settings
from polypersona.models.shapes import load_shape
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.generation_plan import GeneratePlan, freeze_plan, plan_generation
from polypersona.scheduling.machines import GIB, Decision, Inventory, Node
from polypersona.scheduling.pools import Pool
from polypersona.scheduling.training_plan import TrainPlan, plan_training

RECIPE = build_recipe({"name": "x", "panel": {"size": 8}, "finetune": {"workers": 1}})
MACHINE = Inventory((Node(8, 64 * GIB, has_cpu_bf16=True),))
TRAIN = plan_training(RECIPE, MACHINE, shape=load_shape("tiny"))
GENERATE = plan_generation(RECIPE, MACHINE, 100)
OTHER = {
    "workers": 4, "least_workers": 0, "threads": 3, "micro_batch": 1, "dtype": "fp32", "quantization": "nf4",
    "checkpointing": True, "optimizer": "paged_adamw_8bit", "attention": "sdpa", "keeps_freed": False,
}  # fmt: skip
SPOT = {"ray.io/market-type": "spot"}
PLAIN = {
    "gpus_per_worker": 1,
    "cpus_per_worker": 7.0,
    "memory_bytes": 3 * GIB,
    "selector": SPOT,
}


def asked_of_training(plan):
    """Return what Ray Train and the loop are given for a plan."""
    from polypersona import finetune

    scaling = finetune._scaling(plan)
    shown = {
        name: getattr(scaling, name) for name in ("num_workers", "use_gpu", "resources_per_worker", "label_selector")
    }
    return {**shown, "job": asdict(finetune._build_job(RECIPE, plan))}


def test_every_field_of_a_training_plan_reaches_ray_or_the_loop():
    before = asked_of_training(TRAIN)
    changed = {name: replace(TRAIN, **{name: Decision(value, "asked")}) for name, value in OTHER.items()}
    changed |= {name: replace(TRAIN, **{name: value}) for name, value in PLAIN.items()}
    # The rounds of a step follow from what the loop is given, so they have no setting of their own.
    assert set(changed) | {"accumulation"} == {field.name for field in fields(TrainPlan)}
    silent = [name for name, plan in changed.items() if asked_of_training(plan) == before]
    assert not silent


@pytest.mark.parametrize(("workers", "most"), [(1, None), (2, 3), (4, 1), (8, None)])
def test_the_loops_own_count_of_rounds_is_the_plans(workers, most):
    asked = build_recipe({"name": "x", "panel": {"size": 8}, "finetune": {"workers": workers}})
    plan = plan_training(asked, MACHINE, shape=load_shape("tiny"), most_micro_batch=most)
    share = math.ceil(finetune_settings(asked.finetune).global_batch / asked_of_training(plan)["num_workers"])
    assert math.ceil(share / asked_of_training(plan)["job"]["micro_batch"]) == plan.accumulation.value


def test_every_field_of_a_generation_plan_reaches_the_pool_or_the_engine():
    settled = {"dtype": "fp32", "quantization": "nf4", "slots": 3, "cache_bytes": 7, "threads": 2}
    before = build_settings(RECIPE, freeze_plan(RECIPE, GENERATE), Weights())
    for name, value in settled.items():
        plan = replace(GENERATE, **{name: Decision(value, "asked")})
        settings = build_settings(RECIPE, freeze_plan(RECIPE, plan), Weights())
        assert getattr(settings, name) == value != getattr(before, name), name
    # Sums of the pools, which are what Ray is asked for, and the kinds of GPU that none is asked of.
    told = {"actors", "cpus_per_actor", "gpus_per_actor", "left_out"}
    assert set(settled) | told | {"pools"} == {field.name for field in fields(GeneratePlan)}
    assert GENERATE.actors.value == sum(pool.actors.value for pool in GENERATE.pools)
    assert {(pool.cpus_per_actor, pool.gpus_per_actor) for pool in GENERATE.pools} == {
        (GENERATE.cpus_per_actor, GENERATE.gpus_per_actor)
    }


def asked_of_pool(pool):
    """Return what Ray Data is asked for a pool of actors."""
    from polypersona.shard_pool import _build_dataset

    class Job:
        pending = range(4)

    shown = _build_dataset(Job, [pool], None, None)._logical_plan.dag
    compute = shown.compute
    return {"remote": shown.ray_remote_args, "sizes": (compute.min_size, compute.max_size, compute.initial_size)}


@pytest.mark.ray
def test_every_field_of_a_pool_is_asked_of_ray(local_ray):
    [pool] = GENERATE.pools
    before = asked_of_pool(pool)
    changed = {
        "actors": Decision(2, "asked"), "most": 9, "cpus_per_actor": 0.5, "gpus_per_actor": 1,
        "memory_per_actor": GIB, "selector": SPOT, "fallback": ({"ray.io/node-group": "a"},),
    }  # fmt: skip
    assert set(changed) | {"name"} == {field.name for field in fields(Pool)}
    silent = [name for name, value in changed.items() if asked_of_pool(replace(pool, **{name: value})) == before]
    assert not silent
