"""What `plan` says of several adapters."""

from polypersona.cli.plan_adapters import adapter_rows, plan_adapters
from polypersona.recipe import build_recipe
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node

LAPTOP = Inventory((Node(2, 8 * GIB),))


def recipe(**finetune):
    return build_recipe({"name": "x", "panel": {"size": 3}, "finetune": {"preset": "tiny", **finetune}})


def test_four_adapters_on_two_cores_are_two_turns_of_two():
    turns = plan_adapters(recipe(sweep={"domains": [["healthcare"], ["finance"]], "rank": [8, 16]}), LAPTOP)
    assert [one.turn for one in turns] == [1, 1, 2, 2]
    assert [one.beside for one in turns] == [1, 1, 1, 1]
    assert {(one.plan.workers.value, one.plan.cpus_per_worker) for one in turns} == {(1, 1.0)}
    name, value, why = adapter_rows(turns)[0]
    assert name == "adapter finance-rank16"
    assert value.startswith("turn 1, 1 × 1 CPU")
    assert why == "finance; rank 16 on tiny; 1 more at the same time"
    assert turns[0].as_json()["plan"]["workers"]["value"] == 1


def test_the_longest_begins_first_and_gpus_are_whole():
    gpus = Inventory((Node(8, 64 * GIB, (Gpu("A100", 80 * GIB, 8.0),) * 2),))
    adapters = [{"name": "short"}, {"name": "long", "epochs": 9}, {"name": "middle", "epochs": 5}]
    turns = plan_adapters(recipe(adapters=adapters), gpus)
    assert [(one.name, one.turn, one.plan.gpus_per_worker) for one in turns] == [
        ("long", 1, 1), ("middle", 1, 1), ("short", 2, 1),
    ]  # fmt: skip


def test_one_adapter_is_no_matter_of_turns():
    assert plan_adapters(recipe(), LAPTOP) == ()
