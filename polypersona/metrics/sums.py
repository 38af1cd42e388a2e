"""Group, sum and resample the rows of metrics; any sharding of the addition gives the same bytes.

A pair is measured up to five times, each a *block* of columns: the response against its reference (`score`), against
another persona's reference (`floor`), the score again where that floor is defined (`matched`, so that the two can be
subtracted), a uniformly random option (`uniform`) and the teacher's second opinion (`retest`).

Intervals are a bootstrap clustered by persona. A persona's weight in replicate b is Poisson(1), derived from (seed,
persona id, b): every shard draws the same weights without knowing the others, and a replicate is one more sum of
integers (Poisson bootstrap; Chamandy et al. 2012). No process holds rows of more than one shard.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal, TypeAlias

import numpy as np

from polypersona.metrics.base import FloatArray, IntArray, Metric, is_agreement

Kind = Literal["overall", "domain", "response_type", "item", "model", "subgroup"]
KINDS: tuple[Kind, ...] = ("overall", "domain", "response_type", "item", "model", "subgroup")
Block = Literal["score", "floor", "matched", "uniform", "retest"]
GroupKey: TypeAlias = tuple[Kind, str]

# Items and subgroups are many and each interval of theirs is rough anyway.
MAX_ITEM_REPLICATES = 200
_LIMB_BITS = 31


@dataclass(frozen=True)
class Layout:
    """Which columns of a row belong to which metric and block."""

    metrics: tuple[Metric, ...]
    has_reference: bool
    has_retest: bool

    @cached_property
    def columns(self) -> Mapping[tuple[Block, str], slice]:
        """Columns of every (block, metric name) there is."""
        found: dict[tuple[Block, str], slice] = {}
        start = 0
        for metric in self.metrics:
            for block in self.blocks_of(metric):
                found[block, metric.name] = slice(start, start + metric.width)
                start += metric.width
        return found

    @property
    def width(self) -> int:
        """Columns of a whole row."""
        return max((columns.stop for columns in self.columns.values()), default=0)

    def blocks_of(self, metric: Metric) -> tuple[Block, ...]:
        """Return the blocks a metric has here."""
        if not metric.needs_reference:
            return ("score",)
        if not self.has_reference:
            return ()
        blocks: tuple[Block, ...] = ("score", "floor", "matched")
        if is_agreement(metric):
            blocks += ("uniform", "retest") if self.has_retest else ("uniform",)
        return blocks


@dataclass
class Sums:
    """Sums of rows by group, and their bootstrap replicates: row 0 of a group is the plain sum.

    `spans` hold the smallest and largest persona hash of a group: equal where it has one persona only.
    """

    seed: int
    num_replicates: int
    groups: dict[GroupKey, IntArray] = field(default_factory=dict)
    spans: dict[GroupKey, tuple[int, int]] = field(default_factory=dict)

    def replicates_of(self, kind: Kind) -> int:
        """Return how many replicates the groups of a kind have."""
        return min(self.num_replicates, MAX_ITEM_REPLICATES) if kind in ("item", "subgroup") else self.num_replicates

    def add(self, rows: IntArray, persona_ids: Sequence[str], labels: Mapping[Kind, Sequence[str]]) -> None:
        """Add rows, shape (num_rows, width), each with its persona and its group label of every kind."""
        names, persona = np.unique(np.asarray(persona_ids, dtype=object), return_inverse=True)
        weights = np.stack([persona_weights(self.seed, name, self.num_replicates) for name in names.tolist()], axis=1)
        hashes = [_persona_hash(name) for name in names.tolist()]
        for kind, group_labels in labels.items():
            groups, group = np.unique(np.asarray(group_labels, dtype=object), return_inverse=True)
            cluster = group.astype(np.int64) * len(names) + persona
            order = np.argsort(cluster, kind="stable")
            starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
            sums = np.add.reduceat(rows[order], starts, axis=0)
            found = cluster[order][starts]
            for index, label in enumerate(groups.tolist()):
                of_group = found // len(names) == index
                members = found[of_group] % len(names)
                chosen = weights[: self.replicates_of(kind) + 1, members]
                spans = [hashes[member] for member in members.tolist()]
                self._add_group((kind, label), exact_matmul(chosen, sums[of_group]), (min(spans), max(spans)))

    def add_subgroups(self, rows: IntArray, persona_ids: Sequence[str], subgroups: Mapping[str, Sequence[str]]) -> None:
        """Add rows to all the subgroups their persona is in; `subgroups` are the labels by persona id."""
        names, persona = np.unique(np.asarray(persona_ids, dtype=object), return_inverse=True)
        members: dict[str, list[int]] = {}
        for place, name in enumerate(names.tolist()):
            for label in subgroups.get(name, ()):
                members.setdefault(label, []).append(place)
        if not members:
            return
        order = np.argsort(persona, kind="stable")
        sums = np.add.reduceat(rows[order], np.flatnonzero(np.diff(persona[order], prepend=-1)), axis=0)
        count = self.replicates_of("subgroup")
        weights = np.stack([persona_weights(self.seed, name, self.num_replicates) for name in names.tolist()], axis=1)
        hashes = [_persona_hash(name) for name in names.tolist()]
        for label, places in members.items():
            spans = [hashes[place] for place in places]
            totals = exact_matmul(weights[: count + 1, places], sums[places])
            self._add_group(("subgroup", label), totals, (min(spans), max(spans)))

    def merge(self, other: Sums) -> None:
        """Add another process's sums."""
        for key, totals in other.groups.items():
            self._add_group(key, totals, other.spans[key])

    def labels(self, kind: Kind) -> list[str]:
        """Return the groups of a kind, sorted."""
        return sorted(label for group_kind, label in self.groups if group_kind == kind)

    def has_interval(self, key: GroupKey) -> bool:
        """Return whether resampling says anything: there are replicates, and two personas or more."""
        low, high = self.spans[key]
        return self.num_replicates > 0 and low != high

    def _add_group(self, key: GroupKey, totals: IntArray, span: tuple[int, int]) -> None:
        if key in self.groups:
            self.groups[key] += totals
            span = min(span[0], self.spans[key][0]), max(span[1], self.spans[key][1])
        else:
            self.groups[key] = totals
        self.spans[key] = span


def persona_weights(seed: int, persona_id: str, num_replicates: int) -> IntArray:
    """Return 1 and then the persona's Poisson(1) weight in each replicate, shape (num_replicates + 1,)."""
    stream = hashlib.shake_128(f"{seed}\x1f{persona_id}".encode()).digest(2 * num_replicates)
    draws = _poisson_table()[np.frombuffer(stream, dtype="<u2")]
    return np.concatenate([np.ones(1, dtype=np.int64), draws])


def exact_matmul(weights: IntArray, sums: IntArray) -> IntArray:
    """Return weights @ sums in exact integer arithmetic, at the speed of floating point.

    Each sum is split in two limbs small enough for every partial product to be an exact float64.
    """
    high, low = sums >> _LIMB_BITS, sums & ((1 << _LIMB_BITS) - 1)
    factors = weights.astype(np.float64)
    return _exact(factors, high) * (1 << _LIMB_BITS) + _exact(factors, low)


def _exact(factors: FloatArray, limb: IntArray) -> IntArray:
    bound = float(factors.sum(axis=1).max(initial=0)) * float(np.abs(limb).max(initial=0))
    if bound >= 2**53:
        return np.asarray(factors.astype(np.int64) @ limb)
    return np.asarray(np.rint(factors @ limb.astype(np.float64)), dtype=np.int64)


def _persona_hash(persona_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(persona_id.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def _poisson_table() -> IntArray:
    """Return the Poisson(1) quantiles at (i + ½) / 2**16."""
    cumulative = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
    return np.searchsorted(cumulative, (np.arange(2**16) + 0.5) / 2**16).astype(np.int64)


def group_labels(
    domains: Iterable[str], response_types: Iterable[str], items: Iterable[str], models: Iterable[str] | None = None
) -> dict[Kind, list[str]]:
    """Return the group label of every kind for some rows, except subgroups, of which a row may have several.

    Without `models`, which weights answered each row, there is no such kind.
    """
    by_item = list(items)
    labels: dict[Kind, list[str]] = {
        "overall": ["all"] * len(by_item),
        "domain": list(domains),
        "response_type": list(response_types),
        "item": by_item,
    }
    return labels if models is None else labels | {"model": list(models)}
