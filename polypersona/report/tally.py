"""Response files → counts. Streams the rows once and keeps counters only, so memory does not grow with the run.

Reads columns of `storage.RESPONSE_SCHEMA`; gives counts by domain, response type and disposition, the lengths
of answers as exact histograms, the answers per item and the tokens. Knows no score, no model and no page.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polypersona.errors import StorageError
from polypersona.parquet import open_parquet
from polypersona.records import digest
from polypersona.storage import RunDirectory

COLUMNS = (
    "persona_id", "item_id", "variant", "domain", "response_type", "wave", "draw", "weight", "text", "code", "label",
    "option_probs", "disposition", "prompt_tokens", "reused_prompt_tokens", "new_tokens",
)  # fmt: skip
BATCH_ROWS = 16_384
ANSWERED = ("complete", "truncated")


class BoxStatistics(NamedTuple):
    """What a box plot shows: whiskers reach the last value within 1.5 quartile ranges of the box."""

    n: int
    mean: float
    low: float
    first: float
    median: float
    third: float
    high: float
    outliers: tuple[int, ...]
    num_outliers: int


@dataclass(slots=True)
class ItemTally:
    """The complete answers to one closed item: how often each code came, and how much weight it carries.

    `probability_sum` are the options' probabilities times the weight of who was asked, `probability_weight` those
    weights, of the `num_probable` answers that have them.
    """

    counts: Counter[int] = field(default_factory=Counter)
    weights: Counter[int] = field(default_factory=Counter)
    labels: dict[int, str] = field(default_factory=dict)
    probability_sum: np.ndarray | None = None
    probability_weight: float = 0.0
    num_probable: int = 0

    @property
    def mean_probabilities(self) -> list[float] | None:
        """The options' mean probabilities; None unless every answer has them, as in the comparison with people."""
        if self.probability_sum is None or not self.probability_weight or self.num_probable != self.counts.total():
            return None
        return [float(value) / self.probability_weight for value in self.probability_sum]


@dataclass(slots=True)
class Tally:
    """The counters of one run. Cells that were not asked are counted apart and are in no other counter.

    `is_greedy` says that the answers were given at temperature 0: option probabilities do not describe them and are not
    read.
    """

    is_greedy: bool = False
    cells: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    lengths: dict[tuple[str, bool], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    items: dict[str, ItemTally] = field(default_factory=lambda: defaultdict(ItemTally))
    item_types: dict[str, tuple[str, str]] = field(default_factory=dict)
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    new_tokens: int = 0
    is_weighted: bool = False
    waves: set[int] = field(default_factory=set)
    draws: set[int] = field(default_factory=set)
    num_not_asked: int = 0
    persona_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    @property
    def num_rows(self) -> int:
        """Rows seen, of questions that were asked."""
        return sum(self.cells.values())

    @property
    def num_personas(self) -> int:
        """Distinct personas seen."""
        return len(self.persona_keys)

    def by(self, part: int) -> Counter[str]:
        """Return the rows by domain (0), response type (1) or disposition (2)."""
        totals: Counter[str] = Counter()
        for key, count in self.cells.items():
            totals[key[part]] += count
        return totals

    def add(self, table: pa.Table) -> None:
        """Count some rows, as `stream_rows` gives them."""
        asked = asked_rows(table)
        self.num_not_asked += table.num_rows - asked.num_rows
        table = asked
        _count_cells(self, table)
        _count_lengths(self, table)
        _count_codes(self, table)
        if not self.is_greedy:
            _count_probabilities(self, table)


def item_key(item_id: str, variant: str) -> str:
    """Return how an item and its variant are named on the page."""
    return f"{item_id} · {variant}" if variant else item_id


def asked_rows(table: pa.Table) -> pa.Table:
    """Return the rows without those whose question routing left out."""
    return table.filter(pc.not_equal(table["disposition"], "not_asked"))


def stream_rows(run: RunDirectory, folder: str = "responses") -> Iterator[pa.Table]:
    """Yield the rows of every Parquet file of a folder, some at a time, in the order of the files' names.

    Strings are decoded, and a column `item` names item and variant together.

    Raises:
        StorageError: a file cannot be read as Parquet, or lacks a column.
    """
    fs, root = run.filesystem()
    for name in run.names(folder, ".parquet"):
        try:
            with fs.open_input_file(f"{root}/{name}") as source:
                for batch in open_parquet(source).iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
                    yield _plain_table(batch)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{run.path(name)} cannot be read as a file of responses: {error}.",
                "Delete the file and run the generate stage again.",
            ) from error


def _plain_table(batch: pa.RecordBatch) -> pa.Table:
    table = pa.Table.from_batches([batch])
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(index, column.name, table[column.name].cast(pa.string()))
    has_variant = pc.not_equal(table["variant"], "")
    joined = pc.binary_join_element_wise(table["item_id"], table["variant"], " · ")
    return table.append_column("item", pc.if_else(has_variant, joined, table["item_id"]))


def _count_cells(tally: Tally, table: pa.Table) -> None:
    groups = table.group_by(["domain", "response_type", "disposition"]).aggregate([([], "count_all")])
    for row in groups.to_pylist():
        tally.cells[row["domain"], row["response_type"], row["disposition"]] += row["count_all"]
    for row in table.group_by(["item", "domain", "response_type"]).aggregate([]).to_pylist():
        tally.item_types.setdefault(row["item"], (row["domain"], row["response_type"]))
    tally.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
    tally.reused_prompt_tokens += pc.sum(table["reused_prompt_tokens"]).as_py() or 0
    tally.new_tokens += pc.sum(table["new_tokens"]).as_py() or 0
    tally.is_weighted |= bool(pc.any(pc.not_equal(table["weight"], 1.0)).as_py())
    tally.waves |= set(table["wave"].unique().to_pylist())
    tally.draws |= set(table["draw"].unique().to_pylist())
    keys = [int(digest(persona), 16) for persona in table["persona_id"].unique().to_pylist()]
    tally.persona_keys = np.union1d(tally.persona_keys, np.array(keys, np.uint64))


def _count_lengths(tally: Tally, table: pa.Table) -> None:
    answered = table.filter(pc.is_in(table["disposition"], pa.array(ANSWERED)))
    keys = pa.table(
        {
            "domain": answered["domain"],
            "is_open": pc.equal(answered["response_type"], "open"),
            "length": pc.utf8_length(answered["text"]),
        }
    )
    for row in keys.group_by(["domain", "is_open", "length"]).aggregate([([], "count_all")]).to_pylist():
        tally.lengths[row["domain"], row["is_open"]][row["length"]] += row["count_all"]


def _coded(table: pa.Table) -> pa.Table:
    return table.filter(pc.and_(pc.equal(table["disposition"], "complete"), pc.is_valid(table["code"])))


def _count_codes(tally: Tally, table: pa.Table) -> None:
    coded = _coded(table)
    groups = coded.group_by(["item", "code", "label"]).aggregate([([], "count_all"), ("weight", "sum")])
    for row in groups.to_pylist():
        item = tally.items[row["item"]]
        item.counts[row["code"]] += row["count_all"]
        item.weights[row["code"]] += row["weight_sum"]
        item.labels.setdefault(row["code"], row["label"])


def _count_probabilities(tally: Tally, table: pa.Table) -> None:
    coded = _coded(table)
    known = coded.filter(pc.is_valid(coded["option_probs"])).select(["item", "option_probs", "weight"])
    for item in known["item"].unique().to_pylist():
        rows = known.filter(pc.equal(known["item"], item))
        lists, weights = rows["option_probs"].combine_chunks(), rows["weight"].to_numpy()
        sizes = np.unique(pc.list_value_length(lists).to_numpy())
        if len(sizes) != 1 or sizes[0] == 0:
            continue
        probabilities = pc.list_flatten(lists).to_numpy().astype(np.float64).reshape(-1, int(sizes[0]))
        sums = (probabilities * weights[:, np.newaxis]).sum(axis=0)
        entry = tally.items[item]
        if entry.probability_sum is None:
            entry.probability_sum = np.zeros_like(sums)
        if len(entry.probability_sum) == len(sums):
            entry.probability_sum += sums
            entry.probability_weight += float(weights.sum())
            entry.num_probable += len(rows)


def box_statistics(histogram: Mapping[int, int], max_outliers: int = 40) -> BoxStatistics | None:
    """Return the exact box-plot figures of a histogram (value → count), or None where it is empty.

    Quartiles interpolate linearly between order statistics. Of the distinct outlying values at most `max_outliers`,
    evenly spaced, are kept for drawing; `num_outliers` counts all of them.
    """
    values = sorted(value for value, count in histogram.items() if count)
    if not values:
        return None
    ends = list(itertools.accumulate(histogram[value] for value in values))
    n = ends[-1]
    first, median, third = (_quantile(values, ends, share) for share in (0.25, 0.5, 0.75))
    reach = 1.5 * (third - first)
    inside = [value for value in values if first - reach <= value <= third + reach]
    outside = [value for value in values if not first - reach <= value <= third + reach]
    step = max(1, -(-len(outside) // max_outliers))
    return BoxStatistics(
        n=n,
        mean=sum(value * histogram[value] for value in values) / n,
        low=min(inside[0], first),
        first=first,
        median=median,
        third=third,
        high=max(inside[-1], third),
        outliers=tuple(outside[::step]),
        num_outliers=sum(histogram[value] for value in outside),
    )


def _quantile(values: list[int], ends: list[int], share: float) -> float:
    position = share * (ends[-1] - 1)
    lower = int(position)
    below, above = (values[bisect.bisect_right(ends, index)] for index in (lower, min(lower + 1, ends[-1] - 1)))
    return below + (position - lower) * (above - below)
