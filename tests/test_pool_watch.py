"""pytest tests/test_pool_watch.py"""

import pytest
from pool_jobs import cpu_pool, events_of, gpu_pool

from polypersona.events import EventLog
from polypersona.pool_watch import GROWTH_DELAY_S, LOST_AFTER_S, SETTLE_S, PoolWatch
from polypersona.storage import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.at(tmp_path / "run")


def watch_of(run, *pools, num_left=100, lost=None):
    return PoolWatch(EventLog(run, "driver-pool"), pools, num_left, (lost if lost is not None else []).append)


def told(run):
    return [(event["asked"], event["actors"], event["reason"]) for event in events_of(run, "pool")]


def test_a_pool_grows_to_the_places_once_they_have_lasted(run):
    watch = watch_of(run, cpu_pool(2))
    [state] = watch._states
    assert watch.growth(state, 2, 2, 50, 0.0) == 0
    assert watch.growth(state, 2, 5, 50, 1.0) == 0
    assert watch.growth(state, 2, 5, 50, 1.0 + GROWTH_DELAY_S) == 3
    assert state.asked == 5


def test_places_that_come_and_go_let_nothing_grow(run):
    watch = watch_of(run, cpu_pool(2))
    [state] = watch._states
    watch.growth(state, 2, 5, 50, 0.0)
    watch.growth(state, 2, 2, 50, 10.0)
    assert watch.growth(state, 2, 5, 50, GROWTH_DELAY_S + 1) == 0


def test_shards_that_all_have_an_actor_let_nothing_grow(run):
    watch = watch_of(run, cpu_pool(2))
    [state] = watch._states
    watch.growth(state, 2, 5, 0, 0.0)
    assert watch.growth(state, 2, 5, 0, GROWTH_DELAY_S) == 0


@pytest.mark.parametrize(("most", "num_left", "size"), [(3, 100, 3), (None, 4, 4), (None, 100, 9), (2, 100, 2)])
def test_a_pool_never_exceeds_its_bound_its_places_or_the_shards_left(run, most, num_left, size):
    watch = watch_of(run, cpu_pool(2, most=most), num_left=num_left)
    [state] = watch._states
    watch.growth(state, 2, 9, 50, 0.0)
    assert 2 + watch.growth(state, 2, 9, 50, GROWTH_DELAY_S) == size


def test_a_smaller_pool_is_told_with_its_reason_when_it_has_lasted_and_once(run):
    watch = watch_of(run, cpu_pool(4))
    [state] = watch._states
    for moment in (0.0, 1.0, SETTLE_S, SETTLE_S + 1):
        watch.tell(state, (2, 2, 0), 2, moment)
    assert told(run) == [(4, 2, "the cluster has places for 2")]
    watch.tell(state, (2, 0, 2), 4, 10.0)
    watch.tell(state, (2, 0, 2), 4, 10.0 + SETTLE_S)
    assert told(run)[1:] == [(4, 2, "2 start again because their process or node was lost")]
    watch.tell(state, (4, 0, 0), 4, 20.0)
    assert told(run)[2:] == [(4, 4, "all run")]


def test_actors_that_start_quickly_are_no_event_of_their_own(run):
    watch = watch_of(run, cpu_pool(2))
    [state] = watch._states
    for moment, running in ((0.0, 0), (1.0, 1), (2.0, 2)):
        watch.tell(state, (running, 2 - running, 0), 2, moment)
    assert told(run) == [(2, 2, "all run")]


def test_a_pool_without_nodes_is_given_up_after_a_while_and_only_beside_others(run):
    lost = []
    watch = watch_of(run, gpu_pool("T4", 1), gpu_pool("H100", 1), lost=lost)
    state = watch._states[0]
    for moment in (0.0, LOST_AFTER_S - 1, LOST_AFTER_S, LOST_AFTER_S + 9):
        watch._look_for_loss(state, 0, moment)
    assert lost == ["T4"]
    watch._look_for_loss(state, 1, 200.0)
    watch._look_for_loss(state, 0, 300.0)
    watch._look_for_loss(state, 0, 300.0 + LOST_AFTER_S)
    assert lost == ["T4", "T4"]
    alone = watch_of(run, cpu_pool(1), lost=lost)
    alone._look_for_loss(alone._states[0], 0, 0.0)
    alone._look_for_loss(alone._states[0], 0, 2 * LOST_AFTER_S)
    assert len(lost) == 2
