"""The watch over the pools: lets them grow when nodes join, and says why one is smaller than was asked for.

Ray Data calls it at each of its steps, in its own thread. Ray Data's own growth counts the CPUs and GPUs of the whole
cluster whatever their labels, so that one pool would wait for places that only another can use; it is switched off,
and a pool grows here, to the places that nodes with its labels offer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.data import DataContext
from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.context import AutoscalingConfig

from polypersona.errors import StorageError
from polypersona.events import EventLog
from polypersona.scheduling.inventory import alive_nodes
from polypersona.scheduling.pools import Offer, Pool, count_places

STEP_S = 1.0
# Shorter changes, such as an actor that starts, are not worth an event.
SETTLE_S = 3.0
# Ray Data looks for new nodes every 20 s, and drops actors beyond what it knows of.
GROWTH_DELAY_S = 25.0
# Nodes that are replaced come back sooner; after this the other pools answer what a lost pool had begun.
LOST_AFTER_S = 60.0
_KEY = "polypersona.pool_watch"


@dataclass
class _State:
    """What is known of one pool between steps."""

    pool: Pool
    asked: int
    told: tuple[int, int, str] | None = None
    seen: tuple[int, int, str] | None = None
    seen_since: float = 0.0
    more_since: float | None = None
    lost_since: float | None = None
    is_lost: bool = False


@dataclass
class PoolWatch:
    """Watches the pools of one execution.

    Args:
        log: takes an event `pool` with `asked`, `actors` and `reason` whenever they have changed.
        pools: in the order of their operators.
        num_left: how many shards are not answered yet.
        on_lost: called with a pool's name when no node has its labels any more.
    """

    log: EventLog
    pools: Sequence[Pool]
    num_left: int
    on_lost: Callable[[str], None]
    _states: list[_State] = field(init=False)
    _next: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._states = [_State(pool, pool.actors.value) for pool in self.pools]

    def advance(self) -> None:
        """Note that a shard is answered."""
        self.num_left -= 1

    def step(self, executor: Any, now: float) -> None:
        """Look at the pools, if the last look is long enough ago."""
        if now < self._next or self.num_left <= 0:
            return
        self._next = now + STEP_S
        operators = [pair for pair in executor._topology.items() if pair[0].get_autoscaling_actor_pools()]
        offers = [Offer(node["Resources"], node["Labels"]) for node in alive_nodes()]
        for state, (operator, queues) in zip(self._states, operators, strict=True):
            places = count_places(state.pool, offers)
            [actors] = operator.get_autoscaling_actor_pools()
            size, waiting = actors.current_size(), queues.total_enqueued_input_blocks()
            if (delta := self.growth(state, size, places, waiting, now)) > 0:
                actors.scale(ActorPoolScalingRequest.upscale(delta=delta, reason="nodes joined"))
            info = operator.get_actor_info()
            self.tell(state, (info.running, info.pending, info.restarting), places, now)
            self._look_for_loss(state, places, now)

    def growth(self, state: _State, size: int, places: int, waiting: int, now: float) -> int:
        """Return how many actors a pool gets now: those that new places, which have lasted, are there for.

        Args:
            state: the pool.
            size: how many it has, with those that start.
            places: how many the living nodes could hold.
            waiting: shards that no actor has been given yet.
            now: seconds of a clock that only moves forward.
        """
        bounds = (state.pool.most, places, self.num_left, size + waiting)
        most = min(bound for bound in bounds if bound is not None)
        if most <= size:
            state.more_since = None
            return 0
        if state.more_since is None:
            state.more_since = now
        if now - state.more_since < GROWTH_DELAY_S:
            return 0
        state.asked = max(state.asked, most)
        return most - size

    def tell(self, state: _State, counts: tuple[int, int, int], places: int, now: float) -> None:
        """Write an event when the pool's size, or the reason for it, has changed and stayed so."""
        running, pending, restarting = counts
        seen = (state.asked, running, _reason(state, running, pending, restarting, places))
        if seen != state.seen:
            state.seen, state.seen_since = seen, now
        if seen == state.told or (running < state.asked and now - state.seen_since < SETTLE_S):
            return
        named = {"pool": state.pool.name} if len(self.pools) > 1 else {}
        # Raised here, it would end the run with a report of Ray Data's own; it is told at a later step.
        with contextlib.suppress(StorageError):
            self.log.write("pool", **named, asked=seen[0], actors=seen[1], reason=seen[2])
            state.told = seen

    def _look_for_loss(self, state: _State, places: int, now: float) -> None:
        if places or len(self.pools) == 1:
            state.lost_since, state.is_lost = None, False
            return
        if state.lost_since is None:
            state.lost_since = now
        if not state.is_lost and now - state.lost_since >= LOST_AFTER_S:
            state.is_lost = True
            self.on_lost(state.pool.name)


class PoolSteps(ExecutionCallback):  # type: ignore[misc]  # Ray tells no types here
    """What Ray Data makes for each execution and calls at each step; finds the watch by the context's key."""

    def before_execution_starts(self, executor: Any) -> None:
        """Remember whose execution this is."""
        self._watch = _WATCHES.get(executor._data_context.get_config(_KEY, ""))

    def on_execution_step(self, executor: Any) -> None:
        """Pass the step on."""
        if self._watch is not None:
            self._watch.step(executor, time.monotonic())


# The context travels to every actor, so that it holds a key and not the watch itself.
_WATCHES: dict[str, PoolWatch] = {}


def register_watch(context: DataContext, key: str, watch: PoolWatch) -> None:
    """Have Ray Data call a watch at each step of the executions that are planned in this context."""
    _WATCHES[key] = watch
    context.set_config(_KEY, key)
    if PoolSteps not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(PoolSteps)
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=float("inf"), actor_pool_util_downscaling_threshold=-1.0
    )


def forget_watch(context: DataContext, key: str) -> None:
    """Undo `register_watch`."""
    del _WATCHES[key]
    context.remove_config(_KEY)
    context.custom_execution_callback_classes.remove(PoolSteps)
    context.autoscaling_config = AutoscalingConfig()


def _reason(state: _State, running: int, pending: int, restarting: int, places: int) -> str:
    """Return why as many actors run as do."""
    if running >= state.asked:
        return "all run" if running <= state.pool.actors.value else "nodes have joined"
    reasons = []
    if restarting:
        reasons.append(f"{restarting} start again because their process or node was lost")
    if places < state.asked:
        reasons.append(f"the cluster has places for {places}")
    elif pending:
        reasons.append(f"{pending} are starting, or wait until other work leaves their places")
    return "; ".join(reasons) or "few shards are left"
