"""The pool: shard numbers → actors on the cluster's nodes → one row of statistics per committed shard.

The one place where generation meets Ray Data.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import ray.data

from polypersona.scheduling.policy import GeneratePlan
from polypersona.shard_actor import Job, ShardActor

# Ray Data plans one read task a block; more blocks than this cost more than they give.
MAX_BLOCKS = 4096


def answer_shards(job: Job, plan: GeneratePlan) -> Iterator[dict[str, Any]]:
    """Yield one row of statistics per shard, as the shards are committed; raise the named failure of an actor."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1  # a shard may take hours
    count = len(job.pending)
    stats = ray.data.range(count, override_num_blocks=min(count, MAX_BLOCKS)).map_batches(
        ShardActor,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=plan.actors.value),
        num_cpus=plan.cpus_per_actor,
        num_gpus=plan.gpus_per_actor,
    )
    for batch in stats.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            failure = row.pop("failure")
            if failure:
                raise pickle.loads(failure)  # our own actor's bytes
            yield row
