"""The pool: shard numbers → actors on the cluster's nodes → one row of statistics per committed shard.

The one place where generation meets Ray Data. A plan has a pool for each kind of place (all CPUs, or one kind of GPU);
several pools take tickets for the same list of shards.
"""

from __future__ import annotations

import contextlib
import pickle
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polypersona.errors import PolypersonaError
from polypersona.events import EventLog
from polypersona.pool_watch import PoolWatch, forget_watch, register_watch
from polypersona.scheduling.generation_plan import GeneratePlan
from polypersona.scheduling.inventory import alive_nodes, here, is_alive
from polypersona.scheduling.machines import Decision
from polypersona.scheduling.pools import Offer, Pool, count_places
from polypersona.shard_actor import Job, ShardActor
from polypersona.shared_path import held_marker, refuse_unseen
from polypersona.tickets import TicketQueue, Turn

# A block is an object of its own, and putting one takes two milliseconds; beyond this a block is several shards.
MAX_BLOCKS = 1024
WAIT_S = 0.5


class PoolMember:
    """An actor of a pool: a shard actor that knows its node, and takes its shards by ticket where pools share them.

    Args:
        job: what the run is.
        pool: the pool's name.
        tickets: the queue that several pools share; None where a ticket's number is the shard's place itself.
        marker: a file in the run directory that this node must see; None where every node does.
    """

    def __init__(self, job: Job, pool: str, tickets: ActorHandle[TicketQueue] | None, marker: Path | None) -> None:
        self._pool = pool
        self._tickets = tickets
        self._failure = b""
        try:
            refuse_unseen(job.run, marker)
            self._actor = ShardActor(replace(job, where=here, is_alive=is_alive))
        except PolypersonaError as error:  # Ray would end the run with a report of its own; the driver raises this one
            self._failure = pickle.dumps(error)

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Answer the shard of one ticket; no row where all shards are answered."""
        if self._failure:
            return pa.table({"failure": [self._failure]})
        if self._tickets is None:
            return self._actor(batch)
        ticket = int(batch["id"][0])
        place = self._exchange(self._tickets, ticket)
        if place is None:
            return pa.table({"failure": pa.array([], pa.binary())})
        answered = self._actor({"id": [place]})
        ray.get(self._tickets.settle.remote(self._pool, ticket))
        return answered

    def _exchange(self, tickets: ActorHandle[TicketQueue], ticket: int) -> int | None:
        while True:
            turn: Turn = ray.get(tickets.take.remote(self._pool, ticket))
            if not turn.must_wait:
                return turn.place
            time.sleep(WAIT_S)


def answer_shards(job: Job, plan: GeneratePlan) -> Iterator[dict[str, Any]]:
    """Yield one row of statistics per shard, as the shards are committed.

    A consumer that stops early ends the pools at once: what is committed stays, what is in flight is lost.

    Raises:
        StorageError: the run directory is a local path that a node of the pools does not see.
        PolypersonaError: the named failure of an actor.
    """
    log = EventLog(job.run, "driver-pool")
    for one in plan.left_out:
        log.write("left out", pool=one.name, reason=one.reason)
    if len(plan.pools) > 1:
        kinds = ", ".join(pool.name for pool in plan.pools)
        log.write("reproducibility", declared="codes", reason=f"several kinds of GPU answer: {kinds}")
    with contextlib.ExitStack() as stack:
        marker = stack.enter_context(held_marker(job.run, _nodes_of(plan.pools)))
        pools = [_capped(pool, len(job.pending)) for pool in plan.pools]
        tickets = _open_tickets(stack, len(job.pending)) if len(pools) > 1 else None
        watch = PoolWatch(log, pools, len(job.pending), lambda pool: _release(log, tickets, pool))
        context = _quiet_context()
        key = uuid.uuid4().hex
        register_watch(context, key, watch)
        stack.callback(forget_watch, context, key)
        stats = _build_dataset(job, pools, tickets, marker)
        batches = iter(stats.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        stack.callback(batches.close)  # kills the actors; without it they would live until garbage is collected
        settled = set()
        for batch in batches:
            for row in batch.to_pylist():
                if failure := row.pop("failure"):
                    raise pickle.loads(failure)  # our own actor's bytes
                if row["shard"] in settled:
                    continue  # two pools answered it, because the first seemed lost
                settled.add(row["shard"])
                watch.advance()
                yield row
            if len(settled) == len(job.pending):
                break  # a pool whose nodes are gone would never end


def _capped(pool: Pool, count: int) -> Pool:
    """Return the pool with no more actors than there are shards in this part of the run."""
    if pool.actors.value <= count:
        return pool
    return replace(pool, actors=Decision(count, f"{count} shards are left to answer"))


def _build_dataset(
    job: Job, pools: Sequence[Pool], tickets: ActorHandle[TicketQueue] | None, marker: Path | None
) -> Dataset:
    """Return the pools' rows of statistics, still to be computed."""
    parts = [
        _number_shards(len(job.pending)).map_batches(
            PoolMember,
            fn_constructor_args=(job, pool.name, tickets, marker),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=pool.actors.value, max_size=pool.most, initial_size=pool.actors.value),
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            memory=pool.memory_per_actor or None,
            label_selector=dict(pool.selector) or None,
            fallback_strategy=[{"label_selector": dict(labels)} for labels in pool.fallback] or None,
        )
        for pool in pools
    ]
    return reduce(lambda one, other: one.union(other), parts)


def _number_shards(count: int) -> Dataset:
    """Return the numbers below `count` in blocks that the driver puts itself.

    Reading a range takes tasks, and each needs a CPU while the actors may hold them all.
    """
    numbers = [{"id": number} for number in range(count)]
    return ray.data.from_items(numbers, override_num_blocks=min(count, MAX_BLOCKS))


def _quiet_context() -> DataContext:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # a shard may take hours
    return context


def _nodes_of(pools: Sequence[Pool]) -> list[str]:
    """Return the ids of the nodes that could hold an actor."""
    return [
        node["NodeID"]
        for node in alive_nodes()
        if any(count_places(pool, [Offer(node["Resources"], node["Labels"])]) for pool in pools)
    ]


def _open_tickets(stack: contextlib.ExitStack, count: int) -> ActorHandle[TicketQueue]:
    """Start the queue beside the driver, so that no other node's loss takes it along."""
    beside = NodeAffinitySchedulingStrategy(here(), soft=False)
    tickets = ray.remote(num_cpus=0, scheduling_strategy=beside)(TicketQueue).remote(count)
    stack.callback(ray.kill, tickets)
    return tickets


def _release(log: EventLog, tickets: ActorHandle[TicketQueue] | None, pool: str) -> None:
    if tickets is not None:
        shards = ray.get(tickets.release.remote(pool))
        log.write(
            "release", pool=pool, shards=shards, reason="no node of its kind is left; the other pools answer them"
        )
