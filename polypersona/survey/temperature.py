"""Temperature of option probabilities, one by response type, fitted to people and applied to items it has not seen.

p_τ ∝ p^{1/τ} makes answers more varied (τ > 1) or less; one number a response type (Guo et al. 2017, *On Calibration of
Modern Neural Networks*, there one for all classes). It is applied to each answer's own probabilities, before they are
averaged, so it widens answers without moving who answers what. For an item, τ is the one of `GRID` that minimises the
cross-entropy −Σ q log E[p_τ] of people's shares q over the *other* items of its type: they are its validation set, and
no item's own human answers are used for it. Items without probabilities, and the only item of a type, keep τ = 1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from polypersona.survey.distribution import shares
from polypersona.survey.frame import FloatArray, Frame, IntArray, Rows, tempered

GRID = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)
NEUTRAL = GRID.index(1.0)
_FLOOR = 1e-6


@dataclass
class TemperatureTally:
    """Sums of E[p_τ] by item and option for every τ of `GRID`: integers, so any sharding gives the same.

    `factors` multiply the weights of each profile: a panel of another composition shall not look like a temperature.
    """

    frame: Frame
    factors: FloatArray
    totals: IntArray
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def empty(cls, frame: Frame, factors: FloatArray) -> TemperatureTally:
        """Return sums of nothing."""
        return cls(frame, factors, np.zeros((len(GRID), len(frame.items), frame.width), np.int64))

    def add(self, table: pa.Table) -> None:
        """Add rows of responses; threads may call it at once."""
        rows, _ = Rows.read(table, replace(self.frame, exponents=None))
        if rows is None or not len(rows.probabilities):
            return
        row = np.repeat(np.arange(len(rows.sizes)), rows.sizes)
        shown = np.arange(len(rows.probabilities)) - np.repeat(np.cumsum(rows.sizes) - rows.sizes, rows.sizes)
        places = rows.item[row] * self.frame.width + self.frame.shown_to_option[rows.item[row], shown]
        shape = self.totals.shape[1:]
        weight = (rows.weight * self.factors[rows.profiles[rows.persona]])[row]
        found = []
        for tau in GRID:
            p = tempered(rows.probabilities, rows.sizes, np.full(len(rows.sizes), 1 / tau))
            amounts = np.rint(weight * p)
            found.append(np.bincount(places, weights=amounts, minlength=math.prod(shape)).reshape(shape))
        with self.lock:
            self.totals += np.stack(found).astype(np.int64)


def fit(totals: IntArray, people: FloatArray, kinds: Sequence[str]) -> FloatArray:
    """Return τ of each item, fitted on the other items of its kind.

    Args:
        totals: (grid, items, K) of a `TemperatureTally`.
        people: (items, K) totals of people; zeros beyond an item's options.
        kinds: the response type of each item.
    """
    p, q = np.clip(np.nan_to_num(shares(totals.astype(float))), _FLOOR, None), np.nan_to_num(shares(people))
    loss = -(q[None] * np.log(p)).sum(axis=-1)
    is_known = (totals[NEUTRAL].sum(axis=-1) > 0) & (people.sum(axis=-1) > 0)
    found = np.ones(len(kinds))
    for item, kind in enumerate(kinds):
        others = [place for place, one in enumerate(kinds) if one == kind and place != item and is_known[place]]
        if others and is_known[item]:
            found[item] = GRID[int(np.argmin(loss[:, others].sum(axis=1)))]
    return found


def basis_of(taus: FloatArray, kinds: Sequence[str]) -> dict[str, list[float]]:
    """Return the temperatures in use by response type, ascending."""
    return {kind: sorted({float(tau) for tau, one in zip(taus, kinds, strict=True) if one == kind}) for kind in kinds}


def exponents_of(taus: FloatArray) -> FloatArray:
    """Return what probabilities are raised to."""
    return np.asarray(1 / taus)
