"""Responses of a run → exact sums by item and profile, batch by batch.

Weights and option probabilities are fixed-point integers, so any sharding, order or number of threads gives the same
sums, and no process holds more than a few batches of rows. A persona's answers to an item are one cluster, so a batch
must hold all rows of its personas; squares are kept in two limbs. Knows no file and no score.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polypersona.errors import StorageError
from polypersona.records import DISPOSITIONS
from polypersona.survey.frame import NO_CODE, Census, Frame, Rows
from polypersona.survey.individuals import PairSums
from polypersona.survey.inference import Moments

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]

# An array by profile, and what a batch adds to its rows.
Part: TypeAlias = tuple[IntArray, IntArray]

_LIMB_BITS = 31


@dataclass
class Side:
    """Sums of one way to count an answer: totals (profiles, items, K), squares (profiles, items, K, K) in two limbs."""

    totals: IntArray
    high: IntArray
    low: IntArray

    @classmethod
    def empty(cls, frame: Frame) -> Side:
        """Return sums of nothing."""
        shape = (frame.num_profiles, len(frame.items), frame.width)
        return cls(np.zeros(shape, np.int64), *(np.zeros((*shape, frame.width), np.int64) for _ in range(2)))

    def parts(self, batch: _Batch, clusters: IntArray) -> Iterator[Part]:
        """Yield what clusters (personas, items, K) add to each of the arrays, by profile."""
        ordered = clusters[batch.order]
        yield self.totals, np.add.reduceat(ordered, batch.starts, axis=0)
        for option in range(ordered.shape[2]):
            squares = np.add.reduceat(ordered * ordered[:, :, option : option + 1], batch.starts, axis=0)
            yield self.high[:, :, option], squares >> _LIMB_BITS
            yield self.low[:, :, option], squares & ((1 << _LIMB_BITS) - 1)

    def squares(self, item: int, bits: int) -> FloatArray:
        """Return Σ t tᵀ of an item by profile as floats."""
        exact = self.high[:, item].astype(np.float64) * (1 << _LIMB_BITS) + self.low[:, item]
        return np.asarray(exact / 4.0**bits)


@dataclass
class Tally:
    """All sums of a run. `by_code` counts the chosen option, `by_probability` its expectation where it is known.

    `pair_options` (profiles, items, 2, K) are how many pairs' human, and how many pairs' synthetic answer is an option.
    `joint_answers` (items, items) are how many interviews hold an answer to both items. `dispositions` (items,
    dispositions) count committed and quarantined rows, `num_rows` the committed ones.
    """

    frame: Frame
    by_code: Side
    by_probability: Side
    answers: IntArray
    probable: IntArray
    clusters: IntArray
    dispositions: IntArray
    joint: FloatArray
    joint_answers: FloatArray
    pairs: IntArray
    pair_options: IntArray
    extremes: IntArray
    num_rows: int = 0
    num_quarantined: int = 0
    num_variants: int = 0
    unshared: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def empty(cls, frame: Frame) -> Tally:
        """Return sums of nothing."""
        shape = (frame.num_profiles, len(frame.items))
        size = int(frame.offsets[frame.num_joint_items])
        answers, probable, clusters = (np.zeros(shape, np.int64) for _ in range(3))
        return cls(
            frame, Side.empty(frame), Side.empty(frame), answers, probable, clusters,
            np.zeros((len(frame.items), len(DISPOSITIONS)), np.int64), np.zeros((size, size)),
            np.zeros((frame.num_joint_items, frame.num_joint_items)),
            np.zeros((*shape, len(fields(PairSums))), np.int64), np.zeros((*shape, 2, frame.width), np.int64),
            _no_extremes(shape[1]),
        )  # fmt: skip

    def basis(self, item: int) -> str:
        """Return what an item's shares rest on: `option_probs` where they are known of every answer, else `codes`."""
        answers = int(self.answers[:, item].sum())
        return "option_probs" if answers and int(self.probable[:, item].sum()) == answers else "codes"

    def moments(self, item: int) -> Moments:
        """Return an item's moments by profile."""
        side = self.by_probability if self.basis(item) == "option_probs" else self.by_code
        count = self.frame.items[item].num_options
        totals = side.totals[:, item, :count] / 2.0**self.frame.bits
        squares = side.squares(item, self.frame.bits)[:, :count, :count]
        return Moments(totals, squares, self.clusters[:, item], self.answers[:, item])

    def pair_sums(self, item: int, members: npt.NDArray[np.bool_]) -> PairSums:
        """Return the sums over pairs of an item for some profiles."""
        return PairSums(*(int(value) for value in self.pairs[members, item].sum(axis=0)))

    def pair_counts(self, item: int, members: npt.NDArray[np.bool_]) -> IntArray:
        """Return the pairs of an item for some profiles by option: the human one, the synthetic one, shape (2, K)."""
        return np.asarray(self.pair_options[members, item, :, : self.frame.items[item].num_options].sum(axis=0))

    def add(self, table: pa.Table) -> None:
        """Add rows of responses, of which `COLUMNS` are read; all rows of their personas. Threads may call it at once.

        Raises:
            StorageError: a persona or a code that the run cannot have.
        """
        rows, census = Rows.read(table, self.frame)
        with self.lock:
            self._count(census)
        if rows is None:
            return
        batch = _Batch.of(rows, len(self.frame.items))
        num = batch.sums(rows.cells)
        chosen = batch.sums(rows.cells, rows.weight, rows.option, self.frame.width)
        parts = [
            (self.answers, batch.by_profile(num)),
            (self.clusters, batch.by_profile((num > 0).astype(np.int64))),
            *self.by_code.parts(batch, chosen),
            *self._probability_parts(rows, batch),
            *self._pair_parts(rows, batch),
        ]
        joint, joint_answers = self._joint_of(rows)
        extremes = self._extremes_of(rows)
        with self.lock:
            for kept, found in parts:
                kept[batch.profiles] += found
            self.joint += joint
            self.joint_answers += joint_answers
            self.extremes[:, 0] = np.minimum(self.extremes[:, 0], extremes[:, 0])
            self.extremes[:, 1] = np.maximum(self.extremes[:, 1], extremes[:, 1])

    def add_quarantined(self, table: pa.Table) -> None:
        """Count quarantined rows by item and disposition; they hold no answer.

        Raises:
            StorageError: as `add`.
        """
        _, census = Rows.read(table, self.frame)
        self.num_quarantined += census.num_rows
        self.dispositions += census.dispositions

    def _count(self, census: Census) -> None:
        self.num_rows += census.num_rows
        self.num_variants += census.num_variants
        self.dispositions += census.dispositions
        for name, count in census.unshared.items():
            self.unshared[name] = self.unshared.get(name, 0) + count

    def _probability_parts(self, rows: Rows, batch: _Batch) -> list[Part]:
        flat, sizes = rows.probabilities, rows.sizes
        if not len(flat):
            return []
        row = np.repeat(np.arange(len(sizes)), sizes)
        shown = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        expected = np.diff(self.frame.offsets)[rows.item]
        wrong = np.flatnonzero((sizes > 0) & (sizes != expected))
        if wrong.size:
            name = self.frame.items[int(rows.item[wrong[0]])].question.item_id
            raise StorageError(
                f"A response to {name!r} has {sizes[wrong[0]]} option probabilities, the item {expected[wrong[0]]}.",
                "Compare with the recipe that the responses were made with.",
            )
        option = self.frame.shown_to_option[rows.item[row], shown]
        amount = np.rint(rows.weight[row] * flat.astype(np.float64))
        clusters = batch.sums(rows.cells[row], amount, option, self.frame.width)
        known = batch.by_profile(batch.sums(rows.cells[sizes > 0]))
        return [*self.by_probability.parts(batch, clusters), (self.probable, known)]

    def _joint_of(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return the joint counts of all pairs of options, weighted, and of items, within interviews; whole numbers."""
        frame = self.frame
        is_kept = rows.item < frame.num_joint_items
        interview = rows.interview[is_kept]
        chosen = np.zeros((len(rows.profiles) * frame.num_waves * frame.num_draws, len(self.joint)))
        chosen[interview, (frame.offsets[rows.item] + rows.option)[is_kept]] = 1.0
        weight = np.zeros(len(chosen))
        weight[interview] = rows.weight[is_kept]
        answered = np.zeros((len(chosen), frame.num_joint_items))
        answered[interview, rows.item[is_kept]] = 1.0
        return np.asarray(chosen.T @ (chosen * weight[:, None])), np.asarray(answered.T @ answered)

    def _pair_parts(self, rows: Rows, batch: _Batch) -> list[Part]:
        known = rows.human != NO_CODE
        if not known.any():
            return []
        cells, h, s = rows.cells[known], rows.human[known].astype(np.float64), rows.code[known].astype(np.float64)
        d, n = batch.sums(cells, np.abs(h - s)), batch.sums(cells)
        simple = [batch.sums(cells, value) for value in ((h == s).astype(np.float64), h, s, h * h, s * s, h * s)]
        stacked = np.stack([n, (n > 0).astype(np.int64), d, *simple, d * d, d * n, n * n], axis=-1)
        low, _ = self.frame.code_range
        human = self.frame.options_of_codes[rows.item[known], rows.human[known] - low]
        counts = [batch.sums(cells, None, option, self.frame.width) for option in (human, rows.option[known])]
        return [
            (self.pairs, batch.by_profile(stacked)),
            (self.pair_options, batch.by_profile(np.stack(counts, axis=-2))),
        ]

    def _extremes_of(self, rows: Rows) -> IntArray:
        """Return the least and largest code of either side of the pairs, by item."""
        known = rows.human != NO_CODE
        found = _no_extremes(len(self.frame.items))
        for codes in (rows.human[known].astype(np.int64), rows.code[known]):
            np.minimum.at(found[:, 0], rows.item[known], codes)
            np.maximum.at(found[:, 1], rows.item[known], codes)
        return found


@dataclass(frozen=True)
class _Batch:
    """How the personas of some rows lie in profiles: `order` sorts them, `starts` are where a profile begins."""

    grid: tuple[int, int]
    order: IntArray
    profiles: IntArray
    starts: IntArray

    @classmethod
    def of(cls, rows: Rows, num_items: int) -> _Batch:
        order = np.argsort(rows.profiles, kind="stable")
        profiles, starts = np.unique(rows.profiles[order], return_index=True)
        return cls((len(rows.profiles), num_items), order, profiles, starts)

    def sums(
        self, cells: IntArray, amounts: FloatArray | None = None, option: IntArray | None = None, width: int = 1
    ) -> IntArray:
        """Return amounts (1 each where None) summed by persona and item, and by option where one is given.

        Amounts are whole numbers whose sums stay below 2**53, so the floats are exact.
        """
        shape = self.grid if option is None else (*self.grid, width)
        places = cells if option is None else cells * width + option
        found = np.bincount(places, weights=amounts, minlength=math.prod(shape)).reshape(shape)
        return np.asarray(found, dtype=np.int64)

    def by_profile(self, values: IntArray) -> IntArray:
        """Return values (personas, …) summed by profile (profiles, …)."""
        return np.add.reduceat(values[self.order], self.starts, axis=0)


def _no_extremes(num_items: int) -> IntArray:
    far = np.iinfo(np.int64).max
    return np.tile(np.array([far, -far], np.int64), (num_items, 1))
