"""pytest tests/scheduling/test_pools.py"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.errors import InfeasiblePlanError
from polypersona.models.shapes import load_shape
from polypersona.recipe import build_recipe
from polypersona.scheduling.generation_plan import freeze_plan, plan_generation
from polypersona.scheduling.machines import ACCELERATOR, GIB, MARKET, NODE_ID, Gpu, Inventory, Node, limit_inventory
from polypersona.scheduling.pools import Offer, count_places

T4, A100, H100 = Gpu("T4", 16 * GIB, 7.5), Gpu("A100", 80 * GIB, 8.0), Gpu("H100", 80 * GIB, 9.0)


def node(gpus=(), cpus=8, memory=64 * GIB, **labels):
    return Node(cpus, memory, tuple(gpus), labels={key.replace("_", "/"): word for key, word in labels.items()})


def labelled(gpu, count, name, market=None, node_id=""):
    labels = {ACCELERATOR: name} | ({MARKET: market} if market else {})
    return Node(8, 64 * GIB, (gpu,) * count, labels=labels, node_id=node_id)


MIXED = Inventory((labelled(T4, 2, "T4"), labelled(H100, 4, "H100"), Node(16, 64 * GIB)))


def recipe(**sections):
    return build_recipe({"name": "x", "panel": {"size": 8}, **sections})


def sizes(plan):
    return {pool.name: pool.actors.value for pool in plan.pools}


def test_each_kind_of_gpu_has_its_pool_and_its_labels():
    plan = plan_generation(recipe(), MIXED, 1000)
    assert sizes(plan) == {"H100": 4, "T4": 2}
    assert [dict(pool.selector) for pool in plan.pools] == [{ACCELERATOR: "H100"}, {ACCELERATOR: "T4"}]
    assert all(pool.gpus_per_actor == 1 and pool.actors.reason for pool in plan.pools)
    assert plan.dtype.value == "fp32"


def test_one_kind_of_place_needs_no_labels():
    for inventory in (Inventory((labelled(A100, 2, "A100"),)), Inventory((Node(4, 8 * GIB),))):
        [pool] = plan_generation(recipe(), inventory, 1000).pools
        assert (dict(pool.selector), pool.fallback) == ({}, ())


def test_kinds_without_rays_label_are_chosen_by_node():
    nodes = (Node(8, GIB, (T4,), node_id="aa"), Node(8, GIB, (T4,), node_id="bb"), Node(8, GIB, (H100,), node_id="cc"))
    plan = plan_generation(recipe(), Inventory(nodes), 1000)
    assert [dict(pool.selector) for pool in plan.pools] == [{NODE_ID: "in(cc)"}, {NODE_ID: "in(aa,bb)"}]


@pytest.mark.parametrize(
    ("sections", "words"),
    [({"model": {"dtype": "bf16"}}, "bf16, which the recipe asks for"), ({"model": {"quantization": "int8"}}, None)],
)
def test_a_kind_that_cannot_compute_what_the_recipe_asks_for_is_left_out_with_a_reason(sections, words):
    plan = plan_generation(recipe(**sections), MIXED, 1000)
    if words is None:
        assert plan.left_out == ()
        return
    assert sizes(plan) == {"H100": 4}
    [left] = plan.left_out
    assert left.name == "T4"
    assert words in left.reason
    assert "7.5" in left.reason
    assert dict(plan.pools[0].selector) == {ACCELERATOR: "H100"}


def test_what_a_run_is_frozen_to_decides_which_kinds_answer_later():
    first = plan_generation(recipe(), Inventory((labelled(H100, 1, "H100"),)), 1000)
    frozen = freeze_plan(recipe(), first)
    assert frozen["dtype"] == "bf16"
    later = plan_generation(recipe(), MIXED, 1000, frozen=frozen)
    assert sizes(later) == {"H100": 4}
    assert later.left_out[0].reason.startswith("its compute capability is 7.5, and bf16, frozen at the run's first")
    assert (later.dtype.value, later.cache_bytes.value) == ("bf16", frozen["cache_bytes"])
    with pytest.raises(InfeasiblePlanError, match=r"No GPU can answer: T4: its compute capability is 7\.5"):
        plan_generation(recipe(), Inventory((labelled(T4, 1, "T4"),)), 1000, frozen=frozen)


def test_frozen_weights_that_do_not_fit_a_kind_leave_it_out():
    first = plan_generation(recipe(model={"dtype": "fp16"}), Inventory((labelled(H100, 1, "H100"),)), 9, 14 * GIB)
    frozen = freeze_plan(recipe(model={"dtype": "fp16"}), first)
    [left] = plan_generation(recipe(model={"dtype": "fp16"}), MIXED, 9, 14 * GIB, frozen).left_out
    assert left.reason == "it has 16.0 GiB, and weights and cache, frozen at the run's first start, take 34.0 GiB"


def test_spot_nodes_come_first_where_there_are_others_too():
    both = Inventory((labelled(T4, 1, "T4", "spot"), labelled(T4, 1, "T4", "on-demand"), labelled(H100, 1, "H100")))
    pools = {pool.name: pool for pool in plan_generation(recipe(), both, 1000).pools}
    assert dict(pools["T4"].selector) == {ACCELERATOR: "T4", MARKET: "spot"}
    assert [dict(labels) for labels in pools["T4"].fallback] == [{ACCELERATOR: "T4"}]
    assert pools["H100"].fallback == ()
    only = Inventory((labelled(T4, 1, "T4", "spot"),))
    assert plan_generation(recipe(), only, 1000).pools[0].fallback == ()
    cpus = Inventory((node(ray_io=""), Node(4, GIB, labels={MARKET: "spot"})))
    [pool] = plan_generation(recipe(generate={"engine": "fake"}), cpus, 1000).pools
    assert (dict(pool.selector), [dict(labels) for labels in pool.fallback]) == ({MARKET: "spot"}, [{}])


def test_gpus_that_no_node_can_describe_are_an_error_only_for_engines_that_use_them():
    unknown = Inventory((Node(8, 64 * GIB, unknown_gpus=2, node_id="abc"),))
    with pytest.raises(InfeasiblePlanError, match="abc offers 2 GPUs of unknown kind"):
        plan_generation(recipe(), unknown)
    assert sizes(plan_generation(recipe(generate={"engine": "fake"}), unknown)) == {"CPU": 8}
    assert sizes(plan_generation(recipe(), limit_inventory(unknown, {"GPU": 0}))) == {"CPU": 8}


@pytest.mark.parametrize(
    ("generate", "limits", "shards", "most"),
    [
        ({}, {}, 1000, 1000),
        ({}, {}, None, None),
        ({}, {"CPU": 3}, 1000, 3),
        ({"actors": 5}, {}, 1000, 5),
    ],
)
def test_the_recipe_the_limits_and_the_shards_bound_the_growth(generate, limits, shards, most):
    machines = limit_inventory(Inventory((Node(4, 64 * GIB),)), limits)
    [pool] = plan_generation(recipe(generate={"engine": "fake", **generate}), machines, shards).pools
    assert pool.most == most


def test_memory_is_reserved_so_that_a_node_that_joins_holds_no_more_than_fits():
    [pool] = plan_generation(recipe(), Inventory((Node(16, 16 * GIB),)), 1000, weight_bytes=3 * GIB).pools
    assert (pool.actors.value, pool.memory_per_actor) == (2, 6 * GIB)
    joined = Offer({"CPU": 64.0, "memory": 13.0 * GIB}, {})
    assert count_places(pool, [joined]) == 2


def test_places_are_counted_on_the_nodes_with_the_pools_labels():
    pools = {pool.name: pool for pool in plan_generation(recipe(), MIXED, 1000).pools}
    offers = [
        Offer({"CPU": 8.0, "GPU": 2.0}, {ACCELERATOR: "T4", MARKET: "spot"}),
        Offer({"CPU": 8.0, "GPU": 4.0}, {ACCELERATOR: "H100"}),
        Offer({"CPU": 1.0, "GPU": 4.0}, {ACCELERATOR: "H100"}),
        Offer({"CPU": 64.0}, {}),
    ]
    assert count_places(pools["T4"], offers) == 2
    assert count_places(pools["H100"], offers) == 5


@given(
    st.lists(st.sampled_from([(), (T4,), (T4, T4), (A100,), (H100,) * 8]), min_size=1, max_size=6),
    st.sampled_from(["auto", 1, 3, 20]),
    st.sampled_from([None, 1, 7, 1000]),
)
def test_the_pools_hold_all_actors_and_no_node_more_than_its_share(kinds, actors, shards):
    machines = Inventory(tuple(Node(4, 64 * GIB, gpus) for gpus in kinds))
    plan = plan_generation(recipe(generate={"actors": actors}), machines, shards)
    assert sum(pool.actors.value for pool in plan.pools) == plan.actors.value
    for pool in plan.pools:
        assert pool.actors.value >= 1
        assert pool.most is None or pool.most >= pool.actors.value
        holders = [one for one in machines.nodes if pool.name in ("CPU", one.accelerator)]
        offers = [
            Offer({"CPU": one.cpus, "GPU": float(len(one.gpus)), "memory": float(one.memory_bytes)}, {})
            for one in holders
        ]
        if actors == "auto":
            assert pool.actors.value <= count_places(pool, offers)


def test_quantisation_counts_the_weights_in_the_precision_that_answers():
    shape = load_shape("mistralai/Mistral-7B-Instruct-v0.3")
    v100 = Inventory((Node(8, 64 * GIB, (Gpu("V100", 32 * GIB, 7.0),)),))
    plan = plan_generation(recipe(), v100, weight_bytes=14 * GIB, shape=shape)
    assert (plan.dtype.value, plan.quantization.value) == ("fp32", "nf4")
    again = plan_generation(recipe(), v100, weight_bytes=14 * GIB, frozen=freeze_plan(recipe(), plan), shape=shape)
    assert again.quantization.value == "nf4"
    a100 = Inventory((Node(8, 64 * GIB, (Gpu("A100", 40 * GIB, 8.0),)),))
    assert plan_generation(recipe(), a100, weight_bytes=14 * GIB, shape=shape).quantization.value == "none"
    exact = recipe(model={"dtype": "fp32"})
    assert plan_generation(exact, a100, weight_bytes=14 * GIB, shape=shape).quantization.value == "nf4"


def test_weights_stored_in_32_bits_are_not_quantised_where_they_fit_in_16():
    shape = load_shape("mistralai/Mistral-7B-Instruct-v0.3")
    a10 = Inventory((Node(8, 64 * GIB, (Gpu("A10", 24 * GIB, 8.6),)),))
    assert plan_generation(recipe(), a10, weight_bytes=28 * GIB, shape=shape).quantization.value == "none"


def test_weights_that_are_stored_quantised_count_with_their_files():
    shape = replace(load_shape("mistralai/Mistral-7B-Instruct-v0.3"), is_stored_quantised=True)
    small = Inventory((Node(8, 64 * GIB, (Gpu("T4", 8 * GIB, 8.0),)),))
    asked = recipe(generate={"engine": "vllm"})
    plan = plan_generation(asked, small, weight_bytes=4 * GIB, shape=shape)
    assert plan.quantization.value == "none"
    again = plan_generation(asked, small, weight_bytes=4 * GIB, frozen=freeze_plan(asked, plan), shape=shape)
    assert (again.quantization.value, again.left_out) == ("none", ())
    unknown = plan_generation(asked, small, frozen=freeze_plan(asked, plan), shape=shape)
    assert unknown.left_out == ()
