"""Metrics of a run for Prometheus: what actors commit, quarantine and lose, how busy the engine is, what is left.

`RayRecorder` hands them to Ray, which exports them on every node beside its own (`ray_polypersona_…`, with the tags
`run` and `engine`); `NullRecorder` drops them. They are for watching: the last seconds of a killed process are missing,
and what is true of a run stands in its files alone. Takes a shard's tables; knows no file and no engine.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

TAGS = ("run", "engine")
COUNTERS = {
    "polypersona_responses_total": "Responses committed.",
    "polypersona_prompt_tokens_total": "Tokens of the prompts of committed responses, reused ones included.",
    "polypersona_reused_prompt_tokens_total": "Prompt tokens that were not computed again.",
    "polypersona_new_tokens_total": "Tokens that the model wrote in committed responses.",
    "polypersona_shards_total": "Shards committed.",
    "polypersona_shard_failures_total": "Attempts at a shard that failed.",
}
QUARANTINED = "polypersona_quarantined_total"
SHARD_SECONDS = "polypersona_shard_seconds"
BUSY = "polypersona_engine_busy_share"
PENDING = "polypersona_shards_pending"
SHARD_BOUNDARIES_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
# Each reason is a time series of its own in the database of whoever watches.
MAX_REASONS = 20
OTHER = "other"

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_NUMBERED = re.compile(r"\S*\d\S*")


class Recorder(Protocol):
    """Takes note of what one process of a run does."""

    def busy(self) -> AbstractContextManager[None]:
        """Return the context in which the engine works."""
        ...

    def record_commit(self, committed: pa.Table, quarantined: pa.Table, seconds: float) -> None:
        """Note a shard's commit: its two tables, and how long it took from its begin."""
        ...

    def record_failure(self) -> None:
        """Note an attempt at a shard that failed."""
        ...

    def record_pending(self, shards: int) -> None:
        """Note how many shards are still to commit."""
        ...


class NullRecorder:
    """Drops everything."""

    def busy(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def record_commit(self, committed: pa.Table, quarantined: pa.Table, seconds: float) -> None:
        """Do nothing."""

    def record_failure(self) -> None:
        """Do nothing."""

    def record_pending(self, shards: int) -> None:
        """Do nothing."""


class RayRecorder:
    """Hands the metrics to Ray. To be made in the process that records: it cannot be pickled.

    Args:
        run: the run's name.
        engine: the engine's name.
    """

    def __init__(self, run: str, engine: str) -> None:
        from ray.util import metrics

        def tagged(metric: Any) -> Any:
            return metric.set_default_tags({"run": run, "engine": engine})

        self._counters = {name: tagged(metrics.Counter(name, text, TAGS)) for name, text in COUNTERS.items()}
        self._quarantined = tagged(metrics.Counter(QUARANTINED, "Responses quarantined.", (*TAGS, "reason")))
        self._busy_share = tagged(
            metrics.Gauge(BUSY, "Share of the time since the last commit in which the engine worked.", TAGS)
        )
        self._pending = tagged(metrics.Gauge(PENDING, "Shards still to commit.", TAGS))
        self._shard_seconds = tagged(
            metrics.Histogram(SHARD_SECONDS, "Seconds from a shard's begin to its commit.", SHARD_BOUNDARIES_S, TAGS)
        )
        self._reasons: set[str] = set()
        self._since = time.monotonic()
        self._busy_s = 0.0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time spent in this context as the engine's work."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._busy_s += time.monotonic() - begin

    def record_commit(self, committed: pa.Table, quarantined: pa.Table, seconds: float) -> None:
        """Note a shard's commit: its two tables, and how long it took from its begin."""
        self._count("polypersona_responses_total", committed.num_rows)
        self._count("polypersona_prompt_tokens_total", _total(committed, "prompt_tokens"))
        self._count("polypersona_reused_prompt_tokens_total", _total(committed, "reused_prompt_tokens"))
        self._count("polypersona_new_tokens_total", _total(committed, "new_tokens"))
        self._count("polypersona_shards_total", 1)
        for reason, count in Counter(map(reason_class, quarantined.column("reason").to_pylist())).items():
            self._quarantined.inc(count, tags={"reason": self._bounded(reason)})
        self._shard_seconds.observe(seconds)
        now = time.monotonic()
        self._busy_share.set(min(1.0, self._busy_s / max(now - self._since, 1e-9)))
        self._since, self._busy_s = now, 0.0

    def record_failure(self) -> None:
        """Note an attempt at a shard that failed."""
        self._count("polypersona_shard_failures_total", 1)

    def record_pending(self, shards: int) -> None:
        """Note how many shards are still to commit."""
        self._pending.set(shards)

    def _count(self, name: str, value: int) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._counters[name].inc(value)

    def _bounded(self, reason: str) -> str:
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            return OTHER
        self._reasons.add(reason)
        return reason


def reason_class(reason: str) -> str:
    """Return what a reason has in common with others of its kind: no quotes, numbers or details after a colon."""
    kind = reason.split(":", 1)[0].strip()
    if not kind.startswith("HTTP "):
        kind = _NUMBERED.sub("#", _QUOTED.sub("…", kind))
    return kind[:60].strip() or OTHER


def _total(table: pa.Table, column: str) -> int:
    return int(pc.sum(table.column(column)).as_py() or 0)
