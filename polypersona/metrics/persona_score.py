"""What a metric of whole personas is: rows by persona that add up, and scores of groups of their columns.

A metric of pairs (`base.Metric`) sees one response; these see all answers of a persona. Their rows are int64 as well,
so any sharding that keeps a persona's rows together gives the same bytes, and the bootstrap clustered by persona is one
more sum. Knows no file and no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from polypersona.metrics.base import FloatArray, IntArray
from polypersona.metrics.interviews import Interviews


@dataclass(frozen=True, slots=True)
class PersonaMetric:
    """One score: its name, its head in tables, its direction, its settings and the name of its floor."""

    name: str
    label: str
    higher_is_better: bool
    signature: str
    floor_name: str = "shuffled"


class Scored(NamedTuple):
    """Scores and floors of summed rows, (replicates,) each; NaN where undefined. `n` is how much the score rests on.

    `matched` is the score of what has a floor, from which that is subtracted; None where that is all.
    """

    score: FloatArray
    floor: FloatArray | None
    n: int
    matched: FloatArray | None = None


class PersonaStatistic(Protocol):
    """Rows by persona, and the metrics that follow from their sum."""

    @property
    def metrics(self) -> Sequence[PersonaMetric]:
        """What is scored."""

    @property
    def width(self) -> int:
        """Columns of a persona's row."""

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona, shape (personas, width)."""

    def members(self, item_id: str | None, domain: str | None) -> IntArray:
        """Return the units (groups of columns) of an item, of a domain, or all where both are None."""

    def score(self, totals: IntArray, members: IntArray) -> Mapping[str, Scored]:
        """Return each metric's score and floor from summed rows, shape (replicates, width), for some units."""
