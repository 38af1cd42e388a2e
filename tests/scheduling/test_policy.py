"""pytest tests/scheduling/test_policy.py"""

import json

import pytest

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import build_recipe
from polypersona.scheduling.generation_plan import plan_generation
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node, limit_inventory
from polypersona.scheduling.policy import build_plan
from polypersona.scheduling.training_plan import plan_training

T4, A100 = Gpu("T4", 16 * GIB, 7.5), Gpu("A100", 80 * GIB, 8.0)
LAPTOP = Inventory((Node(2, 8 * GIB, has_cpu_bf16=True),))
OLD = Inventory((Node(2, 8 * GIB),))
MIXED = Inventory((Node(8, 64 * GIB, (A100, A100)), Node(4, 16 * GIB, (T4,))))


def recipe(**sections):
    return build_recipe({"name": "x", "panel": {"size": 8}, **sections})


@pytest.mark.parametrize(
    ("inventory", "dtype"),
    [(LAPTOP, "bf16"), (OLD, "fp32"), (MIXED, "fp32"), (Inventory((Node(8, 64 * GIB, (A100,)),)), "bf16")],
)
def test_precision_is_bf16_only_where_every_device_computes_in_it(inventory, dtype):
    decision = build_plan(recipe(), inventory).generate.dtype
    assert decision.value == dtype
    assert decision.reason


def test_what_the_recipe_says_is_not_decided_again():
    plan = build_plan(
        recipe(model={"dtype": "fp32", "quantization": "int8"}, generate={"slots": 5, "actors": 3}), LAPTOP
    ).generate
    assert (plan.dtype.value, plan.quantization.value, plan.slots.value, plan.actors.value) == ("fp32", "int8", 5, 3)
    assert "recipe" in plan.dtype.reason


def test_engines_without_weights_need_no_precision():
    plan = build_plan(recipe(generate={"engine": "fake"}), MIXED).generate
    assert (plan.dtype.value, plan.quantization.value, plan.gpus_per_actor) == ("fp32", "none", 0)


@pytest.mark.parametrize(("num_shards", "actors"), [(None, 2), (1, 1), (2, 2), (50, 2)])
def test_there_are_never_more_actors_than_shards(num_shards, actors):
    assert build_plan(recipe(), LAPTOP, num_shards).generate.actors.value == actors


@pytest.mark.parametrize(("cpus", "actors", "each"), [(1, "auto", 1.0), (8, "auto", 1.0), (2, 3, 0.666), (1, 4, 0.25)])
def test_an_actor_reserves_a_cpu_or_its_share_where_more_are_asked_for(cpus, actors, each):
    asked = recipe(generate={"actors": actors})
    plan = build_plan(asked, Inventory((Node(cpus, 512 * GIB),)), 1000).generate
    assert plan.cpus_per_actor == each
    assert plan.actors.value * plan.cpus_per_actor <= cpus


def test_every_gpu_gets_an_actor():
    plan = build_plan(recipe(), MIXED, 1000).generate
    assert (plan.actors.value, plan.gpus_per_actor) == (3, 1)


def test_memory_limits_the_actors():
    plan = build_plan(recipe(), Inventory((Node(16, 16 * GIB),)), 1000, weight_bytes=3 * GIB).generate
    assert plan.actors.value == 2
    assert "memory: an actor needs 6.0 GiB" in plan.actors.reason


@pytest.mark.parametrize(
    ("weights", "cache"), [(4_000_000, GIB // 4), (GIB // 4, GIB // 2), (3 * GIB, GIB), (None, GIB)]
)
def test_keys_and_values_of_an_actor_on_a_cpu_are_bounded_by_its_model(weights, cache):
    plan = build_plan(recipe(), Inventory((Node(2, 64 * GIB),)), 1000, weight_bytes=weights).generate
    assert plan.cache_bytes.value == cache


def test_keys_and_values_on_a_gpu_get_a_share_of_the_smallest():
    smallest = min(gpu.memory_bytes for gpu in MIXED.gpus)
    assert build_plan(recipe(), MIXED, 1000).generate.cache_bytes.value == smallest // 4


def test_a_model_that_fits_nowhere_is_refused_with_the_shortest_resource():
    with pytest.raises(InfeasiblePlanError, match="memory is short"):
        build_plan(recipe(), Inventory((Node(16, 4 * GIB),)), 1000, weight_bytes=30 * GIB)
    with pytest.raises(InfeasiblePlanError, match=r"smallest GPU has 16\.0 GiB"):
        build_plan(recipe(), MIXED, 1000, weight_bytes=140 * GIB)


def test_weights_are_quantised_only_where_a_gpu_is_too_small():
    small, large = Inventory((Node(8, 64 * GIB, (T4,)),)), Inventory((Node(8, 64 * GIB, (A100,)),))
    assert build_plan(recipe(), small, 10, weight_bytes=14 * GIB).generate.quantization.value == "nf4"
    assert build_plan(recipe(), large, 10, weight_bytes=14 * GIB).generate.quantization.value == "none"


def test_limits_cut_the_inventory_node_by_node():
    limited = limit_inventory(MIXED, {"CPU": 10, "GPU": 1})
    assert [node.cpus for node in limited.nodes] == [8, 2]
    assert limited.gpus == (A100,)


@pytest.mark.parametrize("plan", [build_plan, plan_training, plan_generation])
def test_no_cpu_is_refused(plan):
    with pytest.raises(InfeasiblePlanError, match="no CPU"):
        plan(recipe(), limit_inventory(LAPTOP, {"CPU": 0}))


def test_a_plan_is_json():
    assert json.loads(json.dumps(build_plan(recipe(), MIXED).as_json()))["train"]["workers"]["reason"]
