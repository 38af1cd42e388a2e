"""Several trainings on one inventory: never more than a node has, largest first, nothing idle that would fit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.errors import InfeasiblePlanError
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.packing import Demand, admit, choose_held, pack, place, rooms_of, share_of

T4, A100 = Gpu("T4", 16 * GIB, 7.5), Gpu("A100", 80 * GIB, 8.0)
LAPTOP = Inventory((Node(2, 8 * GIB),))


def nodes() -> st.SearchStrategy[Inventory]:
    one = st.builds(
        lambda cpus, memory, gpus: Node(float(cpus), memory * GIB, (T4,) * gpus),
        st.integers(1, 8),
        st.integers(4, 64),
        st.integers(0, 4),
    )
    return st.lists(one, min_size=1, max_size=4).map(lambda found: Inventory(tuple(found)))


def demands(most_workers: int = 3) -> st.SearchStrategy[list[Demand]]:
    one = st.tuples(
        st.integers(1, most_workers), st.integers(1, 3), st.integers(0, 2), st.integers(0, 8), st.integers(1, 50)
    )
    return st.lists(one, max_size=8).map(
        lambda found: [
            Demand(f"a{index}", workers, float(cpus), gpus, memory * GIB, float(size))
            for index, (workers, cpus, gpus, memory, size) in enumerate(found)
        ]
    )


@given(nodes(), demands())
def test_no_node_ever_holds_more_than_it_has_and_each_training_runs_once(
    inventory: Inventory, wanted: list[Demand]
) -> None:
    fitting = [one for one in wanted if place(one, rooms_of(inventory)) is not None]
    by_name = {one.name: one for one in fitting}
    stretches = pack(fitting, inventory)
    assert sorted(one.name for one in stretches) == sorted(by_name)
    for now in {one.begin for one in stretches}:
        running = [one for one in stretches if one.begin <= now < one.end]
        for index, node in enumerate(inventory.nodes):
            held = [by_name[one.name] for one in running for place_ in one.nodes if place_ == index]
            assert sum(one.cpus for one in held) <= node.cpus
            assert sum(one.gpus for one in held) <= len(node.gpus)
            assert sum(one.memory_bytes for one in held) <= node.memory_bytes
    for stretch in stretches:
        assert len(stretch.nodes) == by_name[stretch.name].workers
        assert stretch.end - stretch.begin == pytest.approx(by_name[stretch.name].size)


@given(nodes(), demands())
def test_nothing_waits_that_would_fit_into_what_is_free(inventory: Inventory, wanted: list[Demand]) -> None:
    started, free = admit(wanted, rooms_of(inventory))
    left = [one for one in wanted if one not in [placed.demand for placed in started]]
    assert all(place(one, free) is None for one in left)


@given(st.integers(1, 6), st.lists(st.integers(1, 100), min_size=1, max_size=12))
def test_the_largest_begin_first_and_the_end_is_within_grahams_bound(cpus: int, sizes: list[int]) -> None:
    wanted = [Demand(f"a{index}", 1, 1.0, size=float(size)) for index, size in enumerate(sizes)]
    stretches = pack(wanted, Inventory((Node(float(cpus), GIB),)))
    in_turn = [one.end - one.begin for one in sorted(stretches, key=lambda one: one.begin)]
    assert in_turn == sorted(in_turn, reverse=True)
    # Graham (1966): a machine is idle only once nothing waits, so the end is within Σ/m + (1 − 1/m) · max.
    assert max(one.end for one in stretches) <= sum(sizes) / cpus + max(sizes) * (1 - 1 / cpus) + 1e-9


@given(nodes(), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 4)))
def test_a_share_lets_as_many_run_at_once_as_there_is_room_for(
    inventory: Inventory, count: int, workers: int | None
) -> None:
    share = share_of(inventory, count, workers)
    if count == 1:
        assert share is inventory
        return
    [part] = share.nodes
    least = workers or 1
    if len(inventory.gpus) >= least:
        lanes = min(count, len(inventory.gpus) // least)
        assert len(part.gpus) * lanes <= len(inventory.gpus)
        assert len(part.gpus) == (least if workers else len(inventory.gpus) // lanes)
        return
    assert not part.gpus
    lanes = max(1, min(count, int(inventory.cpus) // least))
    threads = part.cpus / least
    assert threads == int(threads) >= 1
    if inventory.cpus >= least:
        assert sum(math.floor(node.cpus / threads) for node in inventory.nodes) >= lanes * least


def test_on_two_cores_two_run_at_a_time_with_a_thread_each() -> None:
    assert share_of(LAPTOP, 4).nodes[0].cpus == 1
    stretches = pack([Demand(name, 1, 1.0, size=size) for name, size in zip("abcd", (3, 4, 2, 1), strict=True)], LAPTOP)
    assert [(one.name, one.begin) for one in stretches] == [("b", 0), ("a", 0), ("c", 3), ("d", 4)]


def test_how_long_each_takes_may_be_given_in_place_of_its_size() -> None:
    wanted = [Demand(name, 1, 1.0, size=size) for name, size in zip("abc", (3, 2, 1), strict=True)]
    stretches = pack(wanted, LAPTOP, {"a": 0.5, "b": 4.0, "c": 1.0})
    assert [(one.name, one.begin, one.end) for one in stretches] == [("a", 0, 0.5), ("b", 0, 4.0), ("c", 0.5, 1.5)]


def test_a_share_of_a_machine_is_of_its_kind_however_much_of_its_memory_is_free() -> None:
    shares = [
        share_of(Inventory((Node(4, free * GIB, processor="AMD EPYC", physical_bytes=32 * GIB),)), 4)
        for free in (8, 20)
    ]
    assert [hardware_of(share) for share in shares] == ["AMD EPYC, 8 GiB"] * 2
    assert [share.nodes[0].memory_bytes for share in shares] == [2 * GIB, 5 * GIB]


def test_gpus_are_dealt_out_whole_and_planned_by_the_weakest() -> None:
    mixed = Inventory((Node(8, 64 * GIB, (A100, A100)), Node(4, 32 * GIB, (T4,))))
    assert share_of(mixed, 2).gpus == (T4,)
    assert share_of(mixed, 5).gpus == (T4,)
    assert share_of(Inventory((Node(8, 64 * GIB, (A100,) * 8),)), 2).gpus == (A100,) * 4


def test_a_training_that_never_fits_is_refused() -> None:
    with pytest.raises(InfeasiblePlanError, match=r"'big' needs 3 workers of 1 CPUs; this machine has 2 CPUs"):
        pack([Demand("big", 3, 1.0)], LAPTOP)


def test_as_many_adapters_are_held_as_memory_allows() -> None:
    assert choose_held(LAPTOP, 4, GIB // 1024, GIB // 4).value == 4
    assert choose_held(LAPTOP, 4, GIB, GIB // 2).value == 2  # 4 GiB a CPU; 1.5 + 0.5 each
    assert choose_held(LAPTOP, 4, 40 * GIB, GIB).value == 1
    assert choose_held(LAPTOP, 4, None, GIB).value == 1
    one = Inventory((Node(8, 64 * GIB, (T4,)),))
    assert choose_held(one, 4, 2 * GIB, 4 * GIB).value == 2  # 13.6 GiB of 16; 6 each
