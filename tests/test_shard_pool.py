"""pytest tests/test_shard_pool.py"""

import time

import pytest
import ray
from pool_jobs import cpu_pool, events_of, gpu_pool, hashes, make_job, slow_recipe, with_pools

from polypersona.errors import StorageError
from polypersona.scheduling.inventory import here, is_alive
from polypersona.shard_pool import answer_shards

pytestmark = pytest.mark.ray


def living_actors():
    """Return the classes of the pool's actors that the cluster still knows as living."""
    import ray._private.state

    listed = ray._private.state.actors().values()
    return [one["ActorClassName"] for one in listed if one["State"] != "DEAD" and "Member" in one["ActorClassName"]]


def test_each_shard_has_one_row_of_statistics(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 12, 0.0))
    rows = list(answer_shards(job, with_pools(plan, cpu_pool(2))))
    assert sorted(row["shard"] for row in rows) == list(range(12))
    assert sum(row["rows"] for row in rows) == 36
    assert len(hashes(job.run)) == 12
    assert not job.run.local_path("probes").exists()


def test_actors_may_hold_every_cpu(local_ray, tmp_path):
    assert ray.cluster_resources()["CPU"] == 2
    job, plan = make_job(slow_recipe(tmp_path, 6, 0.0))
    assert len(list(answer_shards(job, with_pools(plan, cpu_pool(2))))) == 6


def test_a_consumer_that_stops_ends_the_actors(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 40, 0.5))
    stats = answer_shards(job, with_pools(plan, cpu_pool(2)))
    next(stats)
    begin = time.monotonic()
    stats.close()
    assert time.monotonic() - begin < 10
    end = time.monotonic() + 10
    while living_actors() and time.monotonic() < end:
        time.sleep(0.2)
    assert living_actors() == []
    assert 1 <= len(hashes(job.run)) < 40
    assert not job.run.local_path("probes").exists()


def test_a_pool_that_is_smaller_than_asked_for_says_why(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 20, 0.5))
    rows = list(answer_shards(job, with_pools(plan, cpu_pool(3, most=3))))
    assert len(rows) == 20
    told = [(event["asked"], event["actors"], event["reason"]) for event in events_of(job.run, "pool")]
    assert (3, 2, "the cluster has places for 2") in told


def test_a_pool_of_full_size_says_so_once(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 12, 0.5))
    list(answer_shards(job, with_pools(plan, cpu_pool(1, most=1))))
    told = [(event["asked"], event["actors"], event["reason"]) for event in events_of(job.run, "pool")]
    assert told.count((1, 1, "all run")) == 1
    assert told[-1] == (1, 1, "all run")


def test_the_named_failure_of_an_actor_is_raised_whole(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 4, 0.0))
    job.run.local_path("events").parent.mkdir(parents=True, exist_ok=True)
    job.run.local_path("responses").write_text("a file where the folder of shards should be")
    with pytest.raises(StorageError, match="responses"):
        list(answer_shards(job, with_pools(plan, cpu_pool(1))))


def test_a_pool_bound_to_labels_that_no_node_has_waits_and_can_be_stopped(local_ray, tmp_path):
    job, plan = make_job(slow_recipe(tmp_path, 4, 0.2))
    two = with_pools(plan, cpu_pool(1), gpu_pool("T4", 1))
    rows = list(answer_shards(job, two))
    assert sorted(row["shard"] for row in rows) == [0, 1, 2, 3]
    assert [event["declared"] for event in events_of(job.run, "reproducibility")] == ["codes"]


def test_a_process_knows_its_node_and_whether_it_lives(local_ray):
    assert is_alive(here())
    assert not is_alive("0" * 56)
