"""Two runs on the cells both answered: the difference of every score, with a paired interval. Writes `against-….json`.

Cells meet by persona, item, wave and draw; both answers are measured against the first run's references, and a cell
counts for a metric only where both are defined. Metrics of whole personas look at those cells of a persona that both
runs answered, whatever is defined in them. With the scores S₁ and S₂ of the sums over those cells,

    difference = S₁ − S₂,  its interval the 2.5 and 97.5 percentiles of S₁ᵇ − S₂ᵇ over replicates b,
    effect = difference / (SE · √personas),  p = 2 Φ(−|difference| / SE),  SE the replicates' standard deviation

A replicate weights a persona alike in both runs (Poisson bootstrap by persona), so what the runs share cancels out. The
effect is the difference in units of one persona's (Cohen's d of paired samples): with many personas every p is small,
the effect is not. Tasks bring each persona's rows of both runs together; sums are of integers, so any sharding gives
the same bytes, and no process holds more than one bucket of rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from polypersona.content import refuse_another_recipe
from polypersona.errors import PolypersonaError, StorageError
from polypersona.evaluation.basis import (
    build_settings,
    choose_reference,
    persona_metrics,
    read_columns,
    response_files,
)
from polypersona.evaluation.paired_texts import Side, encode_both
from polypersona.evaluation.personas import committed_blocks
from polypersona.ledger import item_key
from polypersona.metrics.base import FloatArray, IntArray, Metric
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.persona_score import PersonaMetric
from polypersona.metrics.personas import ALL, PersonaMetrics
from polypersona.metrics.sums import GroupKey, Kind, Sums, group_labels
from polypersona.metrics.table import Row, interval, plain
from polypersona.population import load_population
from polypersona.progress import Progress
from polypersona.recipe import Recipe, build_recipe
from polypersona.recipe_text import apply_overrides
from polypersona.records import Item, seed_from
from polypersona.scheduling.inventory import start_ray
from polypersona.scoring import COLUMNS, Scorer, Settings, scored_rows
from polypersona.storage import RunDirectory, load_run

AGAINST_VERSION = 2
TABLES: dict[Kind, str] = {
    "overall": "overall",
    "domain": "by_domain",
    "response_type": "by_response_type",
    "item": "by_item",
}
CELLS_PER_BUCKET = 20_000
TASKS_PER_CPU = 4
_CELL = ("persona_id", "item_id", "wave", "draw")
_READ = tuple(dict.fromkeys((*COLUMNS, *_CELL)))


@dataclass(frozen=True)
class Measures:
    """What both runs are measured with: the first run's settings, and its metrics of whole personas."""

    settings: Settings
    people: PersonaMetrics
    items: Sequence[Item]

    def empty(self) -> Tally:
        """Return sums of nothing."""
        return Tally(Sums(self.settings.seed, self.settings.num_replicates), self.people.empty())


@dataclass
class Tally:
    """Sums over cells both runs answered, the first run's columns before the second's; cells and personas by group.

    `people` are those of whole personas, of `num_people`.

    `measured` counts the personas by metric and group for whom the metric is defined in a cell of both runs.
    """

    sums: Sums
    people: Sums
    num_people: int = 0
    cells: Counter[GroupKey] = field(default_factory=Counter)
    personas: Counter[GroupKey] = field(default_factory=Counter)
    measured: Counter[tuple[str, GroupKey]] = field(default_factory=Counter)

    def merge(self, other: Tally) -> None:
        """Add another bucket's; no persona is in two buckets."""
        self.sums.merge(other.sums)
        self.people.merge(other.people)
        self.num_people += other.num_people
        self.cells.update(other.cells)
        self.personas.update(other.personas)
        self.measured.update(other.measured)


def compare_runs(first: RunDirectory, second: RunDirectory, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compare two runs, write `scores/against-<name of the second>.json` into the first, and return its content.

    Args:
        first: the run whose recipe says what is measured, and against which references.
        second: the run that is subtracted.
        overrides: `section.key=value` of the first run's recipe, such as `evaluate.bootstrap=200`.

    Raises:
        StorageError: a run has no responses, or the runs have no cell in common.
        RecipeChangedError: an override would change what the first run's responses are.
    """
    stored, other = load_run(first), load_run(second)
    files = [response_files(first, stored), response_files(second, other)]
    recipe = build_recipe(apply_overrides(stored["recipe"], overrides), first.path("run.json"))
    population = load_population(recipe, first)
    refuse_another_recipe(first.path(), stored, recipe, population)
    reference = choose_reference(recipe)
    settings, _ = build_settings(recipe, first, reference)
    shared, notes = _shared_items(stored, other)
    if not shared.intersection(settings.items):
        raise _nothing_shared(first, second, "no item")
    inventory = start_ray(recipe.cluster.limits)
    num_cells = min(int(stored["ledger"]["num_cells"]), int(other["ledger"]["num_cells"]))
    sides = [
        Side(run, names, [name for block in committed_blocks(run, facts) for name in block])
        for run, names, facts in zip((first, second), files, (stored, other), strict=True)
    ]
    personas = frozenset(persona.persona_id for persona in population.personas)
    settings, people = encode_both(sides, settings, persona_metrics(recipe, population), personas, num_cells, inventory)
    items = {name: item for name, item in settings.items.items() if name in shared}
    measures = Measures(replace(settings, subgroups={}, items=items), people, population.items)
    buckets = max(1, math.ceil(num_cells / CELLS_PER_BUCKET))
    tally = _tally(sides, measures, buckets, max(1, int(inventory.cpus)))
    if not tally.cells:
        raise _nothing_shared(first, second, "no cell")
    content = {
        "synthetic": True,
        "against_version": AGAINST_VERSION,
        "run": _facts(first, stored),
        "against": _facts(second, other),
        "reference": reference,
        "caption": _caption(recipe, notes),
        "num_cells": tally.cells["overall", "all"],
        "num_personas": tally.personas["overall", "all"],
        "num_items": len(tally.sums.labels("item")),
        **{name: difference_rows(measures, tally, kind) for kind, name in TABLES.items()},
    }
    first.write_json(f"scores/{against_name(second)}", content)
    return content


def against_name(second: RunDirectory) -> str:
    """Return the name of the file that compares with a run."""
    name = second.path().rstrip("/").rpartition("/")[2]
    return f"against-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json"


def measure_bucket(measures: Measures, own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Tally:
    """Measure the cells that both of two sets of rows have. A cell that occurs twice in a set counts once."""
    tally, settings = measures.empty(), measures.settings
    theirs = {tuple(row[name] for name in _CELL): row for row in other}
    mine = {key: row for row in own if (key := tuple(row[name] for name in _CELL)) in theirs}
    if not mine:
        return tally
    keys = sorted(mine)
    rows, others = [mine[key] for key in keys], [theirs[key] for key in keys]
    _add_people(tally, measures, rows, others)
    scorer = Scorer.build(settings)
    left, right = scorer.measure_rows(rows), scorer.measure_rows(others)
    _keep_pairs(left, right, settings)
    personas = [str(row["persona_id"]) for row in rows]
    labels = group_labels(*([row[name] for row in rows] for name in ("domain", "response_type", "item_id")))
    tally.sums.add(np.concatenate([left, right], axis=1), personas, labels)
    for kind, names in labels.items():
        tally.cells.update((kind, name) for name in names)
        tally.personas.update((kind, name) for name, _ in set(zip(names, personas, strict=True)))
        for metric in _metrics(settings):
            is_defined = left[:, settings.layout.columns["score", metric.name].start] > 0
            known = {pair for pair, here in zip(zip(names, personas, strict=True), is_defined, strict=True) if here}
            tally.measured.update((metric.name, (kind, name)) for name, _ in known)
    return tally


def _add_people(
    tally: Tally, measures: Measures, own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> None:
    """Add the statistics of whole personas, of those who answered in both sets of rows."""
    if not measures.people.statistics:
        return
    sides = [Interviews.of(rows, measures.items) for rows in (own, other)]
    found = [dict(zip(side.persona_ids, measures.people.measure(side), strict=True)) for side in sides]
    both = sorted(found[0].keys() & found[1].keys())
    if both:
        rows = np.stack([np.concatenate([side[name] for side in found]) for name in both])
        tally.people.add(rows, both, {"overall": ["all"] * len(both)})
        tally.num_people += len(both)


def _keep_pairs(left: IntArray, right: IntArray, settings: Settings) -> None:
    """Clear a metric's columns where it is undefined for one of the two answers."""
    for metric in _metrics(settings):
        columns = settings.layout.columns["score", metric.name]
        both = ((left[:, columns.start] > 0) & (right[:, columns.start] > 0))[:, None]
        left[:, columns] *= both
        right[:, columns] *= both


def _metrics(settings: Settings) -> list[Metric]:
    return [metric for metric in settings.metrics if settings.layout.blocks_of(metric)]


def _tally(runs: Sequence[Side], measures: Measures, num_buckets: int, cpus: int) -> Tally:
    """Bring each persona's rows of both runs together, and add up what is measured of them."""
    split = ray.remote(_split).options(num_cpus=1, num_returns=num_buckets + 1)
    join = ray.remote(_join).options(num_cpus=1)
    items = sorted(measures.settings.items)
    sides: list[list[list[Any]]] = []
    for run in runs:
        num_tasks = min(len(run.files), TASKS_PER_CPU * cpus)
        sides.append([
            split.remote(run.directory, run.files[first::num_tasks], items, num_buckets) for first in range(num_tasks)
        ])  # fmt: skip
    for error in ray.get([parts[-1] for side in sides for parts in side]):
        if error is not None:
            raise error
    total, shared = measures.empty(), [ray.put(measures)]
    waiting = [[[parts[bucket] for parts in side] for side in sides] for bucket in range(num_buckets)]
    with Progress("difference", num_buckets, "buckets") as progress:
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < cpus:
                running.append(join.remote(shared, *waiting.pop()))
            done, running = ray.wait(running, num_returns=1)
            result: Tally | PolypersonaError = ray.get(done[0])
            if isinstance(result, PolypersonaError):
                raise result
            total.merge(result)
            progress.advance(1)
    return total


def _split(
    directory: RunDirectory, names: Sequence[str], items: Sequence[str], num_buckets: int
) -> tuple[pa.Table | PolypersonaError | None, ...]:
    """Return the rows of some shards about some items, a table a bucket of personas, and a failure that has a name."""
    try:
        tables = [read_columns(directory, name, _READ) for name in names]
    except PolypersonaError as error:
        return *([None] * num_buckets), error
    table = pa.concat_tables(tables)
    table = table.filter(pc.is_in(table["item_id"], pa.array(items, pa.string())))
    people = table["persona_id"].unique().to_pylist()
    place = {person: seed_from("bucket", person) % num_buckets for person in people}
    bucket = np.array([place[person] for person in table["persona_id"].to_pylist()], dtype=np.int64)
    return *(table.filter(pa.array(bucket == number)) for number in range(num_buckets)), None


def _join(measures: Sequence[Any], own: Sequence[Any], other: Sequence[Any]) -> Tally | PolypersonaError:
    """Measure one bucket; a named failure is a value."""
    sides = [scored_rows(pa.concat_tables(ray.get(list(refs))).to_pylist()) for refs in (own, other)]
    try:
        return measure_bucket(ray.get(measures[0]), *sides)
    except PolypersonaError as error:
        return error


def _shared_items(stored: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[set[str], list[str]]:
    """Return the ids of items that ask the same in both runs, and what a reader must know of the others."""
    mine, theirs = stored["content"]["items"], other["content"]["items"]
    same = {key for key in mine if theirs.get(key) == mine[key]}
    changed = sorted(key for key in mine if key in theirs and key not in same)
    notes = []
    if changed:
        named = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        notes.append(
            f"{len(changed)} items of the same id ask something else in the other run and are left out: {named}."
        )
    if stored["recipe"]["panel"] != other["recipe"]["panel"]:
        notes.append("The runs name their panels differently; personas met by id.")
    return {key for key in same if key == item_key(key, "")}, notes


def difference_rows(measures: Measures, tally: Tally, kind: Kind) -> list[Row]:
    """Return one row per group and metric: metrics of pairs by group, then those of whole personas."""
    settings = measures.settings
    rows = [
        _pair_row(settings, tally, metric, (kind, label))
        for label in tally.sums.labels(kind)
        for metric in _metrics(settings)
    ]
    return [*rows, *_people_rows(measures, tally, kind)]


def _pair_row(settings: Settings, tally: Tally, metric: Metric, key: GroupKey) -> Row:
    totals = tally.sums.groups[key]
    columns, width = settings.layout.columns["score", metric.name], settings.layout.width
    own = metric.score(totals[:, columns])
    other = metric.score(totals[:, columns.start + width : columns.stop + width])
    personas, n = tally.measured[metric.name, key], int(totals[0, columns.start])
    return _row(metric, key[1], own, other, n, personas, has_interval=tally.sums.has_interval(key))


def _people_rows(measures: Measures, tally: Tally, kind: Kind) -> list[Row]:
    """Return the rows of whole personas that are defined for both runs; `n` is the first run's."""
    if ALL not in tally.people.groups:
        return []
    people, totals, has_interval = measures.people, tally.people.groups[ALL], tally.people.has_interval(ALL)
    sides = [people.scores(part, kind, measures.items) for part in np.split(totals, 2, axis=1)]
    rows = []
    for (group, metric, own), (_, _, other) in zip(*sides, strict=True):
        if not (math.isnan(own.score[0]) or math.isnan(other.score[0])):
            scores = own.score, other.score
            rows.append(_row(metric, group, *scores, own.n, tally.num_people, has_interval=has_interval))
    return rows


def _row(
    metric: Metric | PersonaMetric,
    group: str,
    own: FloatArray,
    other: FloatArray,
    n: int,
    personas: int,
    *,
    has_interval: bool,
) -> Row:
    differences = own - other
    low, high = interval(differences) if has_interval else (math.nan, math.nan)
    known = differences[1:][~np.isnan(differences[1:])]
    error = float(known.std(ddof=1)) if not math.isnan(low) and len(known) > 1 else math.nan
    difference, is_sure = float(differences[0]), not math.isnan(error) and error > 0
    return {
        "metric": metric.name,
        "label": metric.label,
        "group": group,
        "n": n,
        "personas": personas,
        "score": plain(own[0]),
        "other": plain(other[0]),
        "difference": plain(difference),
        "low": plain(low),
        "high": plain(high),
        "effect": difference / (error * math.sqrt(personas)) if is_sure else None,
        "p": 2 * NormalDist().cdf(-abs(difference) / error) if is_sure else None,
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature,
    }


def _facts(run: RunDirectory, stored: Mapping[str, Any]) -> dict[str, Any]:
    recipe = stored["recipe"]
    return {
        "run": run.path(),
        "name": recipe["name"],
        "fingerprint": stored["fingerprint"],
        "engine": recipe["generate"]["engine"],
        "model": recipe["model"]["base"],
        "adapter": recipe["model"]["adapter"],
    }


def _caption(recipe: Recipe, notes: Sequence[str]) -> str:
    parts = [
        "Synthetic responses. Differences on the cells both runs answered, both measured against the first run's "
        "references. Intervals are 95 % paired bootstrap intervals clustered by persona "
        f"({recipe.evaluate.bootstrap} replicates, fewer for single items); effect is the difference in standard "
        "deviations of one persona's difference. Distinct is not compared.",
        *notes,
    ]
    return " ".join(parts)


def _nothing_shared(first: RunDirectory, second: RunDirectory, what: str) -> StorageError:
    return StorageError(
        f"{first.path()} and {second.path()} have {what} in common.",
        "Compare runs of the same instrument and panel, so that personas and items have the same ids.",
    )
