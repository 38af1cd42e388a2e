"""The compare stage: a run's closed answers beside those of humans, by item and subgroup.

Reads `run.json`, the committed shards of its fingerprint, a file of coded human data and its codebook. Writes
`scores/human_*.parquet` and, last, `scores/human.json`. Shares rest on the options' probabilities where every answer to
an item has them (their expectation, without the noise of the draw), else on the codes, and always on the codes where
the run's temperature is 0; each row says which. Of quarantined rows the dispositions are counted. All sums of the run
are integers, so any sharding gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polypersona.content import refuse_another_recipe
from polypersona.errors import StorageError, SurveyError
from polypersona.gates import FAILED
from polypersona.ledger import Ledger, committed_shards, ledger_from
from polypersona.location import mask_secrets
from polypersona.population import Population, load_population
from polypersona.progress import Progress
from polypersona.recipe import Recipe, build_recipe
from polypersona.records import DISPOSITIONS
from polypersona.rounds import current_quarantine
from polypersona.storage import RunDirectory, load_run
from polypersona.survey.alignment import Alignment, align
from polypersona.survey.cells import ALL, MIN_CELL, Comparison, Row
from polypersona.survey.frame import Frame, fixed_bits, human_codes
from polypersona.survey.humans import Humans
from polypersona.survey.inference import kish_of
from polypersona.survey.microdata import Survey, load_human
from polypersona.survey.profiles import Profiles, build_groupings, build_profiles, find_twins
from polypersona.survey.responses import batch_rows, build_batches, read_columns_of, tally_responses
from polypersona.survey.structure import regression_summary
from polypersona.survey.tables import build_tables, caption, collapsed_rows, prediction_means
from polypersona.survey.variants import Shards, build_mitigated
from polypersona.training_overlap import TrainingOverlap, find_overlap

HUMAN_VERSION = 1
HUMAN_SCORES = "scores/human.json"
MAX_TABLE_BYTES = 600 << 20


@dataclass(frozen=True, slots=True)
class Sources:
    """Both sides, read and aligned, before anything is counted."""

    recipe: Recipe
    survey: Survey
    population: Population
    alignment: Alignment
    profiles: Profiles
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mitigation:
    """Which mitigations to show: `sample` people rectify the means (0 is none), `beside` are runs with their own."""

    sample: int = 0
    beside: tuple[RunDirectory, ...] = ()


@dataclass(frozen=True)
class Tallied:
    """One run, tallied and set beside the humans."""

    stored: dict[str, Any]
    ledger: Ledger
    sources: Sources
    batches: list[list[str]]
    comparison: Comparison


def run(
    directory: RunDirectory,
    human: str,
    codebook: str,
    by: Sequence[str] | None = None,
    mitigation: Mitigation | None = None,
) -> dict[str, Any]:
    """Compare a run with humans, write `scores/`, and return what `scores/human.json` holds with all tables.

    Args:
        directory: of the run.
        human: the file of coded data, a path or URL.
        codebook: its codebook.
        by: demographics whose groups are compared; None is all that the run's personas have.
        mitigation: also the scores with mitigations, before and after; None is none.

    Raises:
        SurveyError: data, codebook and run do not fit together; all faults are named, by item.
        StorageError: there are no responses.
    """
    tallied = _tally(directory, human, codebook, by)
    comparison, sources = tallied.comparison, tallied.sources
    tables = build_tables(comparison)
    overlap = find_overlap(directory, tallied.stored, sources.recipe, human, str(codebook))
    content = _content(tallied, tables, overlap) | {
        "run": directory.path(),
        "codebook": mask_secrets(str(codebook)),
        "fingerprint": str(tallied.stored["fingerprint"]),
        "num_rows": comparison.tally.num_rows,
        "num_quarantined": comparison.tally.num_quarantined,
        "num_planned": tallied.ledger.num_cells,
    }
    content["mitigation"] = None
    tables |= {"mitigation": [], "rectified": []}
    if mitigation is not None:
        others = [_beside(other, human, codebook, by) for other in mitigation.beside]
        found = build_mitigated(Shards(directory, tallied.batches), comparison, others, mitigation.sample)
        content["mitigation"] = {**found.facts, "rows": found.rows}
        tables |= {"mitigation": found.rows, "rectified": found.rectified}
    _write(directory, content, tables)
    return {**content, "tables": tables}


def _beside(directory: RunDirectory, human: str, codebook: str, by: Sequence[str] | None) -> tuple[str, Comparison]:
    """Return another run's name with what it switches on, and its comparison."""
    tallied = _tally(directory, human, codebook, by)
    generate = tallied.sources.recipe.generate
    switched = {"calibration": generate.calibration, "order": generate.order, "persona": generate.persona}
    idle = {"calibration": "none", "order": "fixed", "persona": "shown"}
    marks = [f"{key} {value}" for key, value in switched.items() if value != idle[key]]
    return ", ".join([directory.path().rstrip("/").rsplit("/", 1)[-1], *marks]), tallied.comparison


def _tally(directory: RunDirectory, human: str, codebook: str, by: Sequence[str] | None) -> Tallied:
    stored = load_run(directory)
    if "ledger" not in stored:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    ledger, fingerprint = ledger_from(stored["ledger"]), str(stored["fingerprint"])
    committed = sorted(committed_shards(directory, fingerprint))
    if not committed:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    sources = load_sources(directory, stored, human, codebook, by)
    frame = build_frame(sources, ledger)
    batches = build_batches(ledger, committed, fingerprint, batch_rows(frame.width))
    with Progress("compare", len(committed), "shards") as progress:
        tally = tally_responses(directory, batches, frame, progress.advance)
    for number, name in current_quarantine(directory, fingerprint).items():
        if number in committed:
            tally.add_quarantined(read_columns_of(directory, name))
    comparison = Comparison(Humans(sources.survey, sources.profiles, sources.alignment.items), tally)
    return Tallied(stored, ledger, sources, batches, comparison)


def load_sources(
    directory: RunDirectory, stored: dict[str, Any], human: str, codebook: str, by: Sequence[str] | None
) -> Sources:
    """Read humans, codebook and the run's population, and align them.

    Raises:
        SurveyError: as `run`.
        RecipeChangedError: the panel's or instrument's files are no longer those that were asked with.
    """
    survey = load_human(human, codebook)
    book = survey.codebook
    recipe = build_recipe(stored["recipe"])
    population = load_population(recipe, directory)
    refuse_another_recipe(directory.path(), stored, recipe, population)
    alignment = align(book, population.items, survey.answers)
    left_out: list[str] = []
    if by is None:
        by = [one.column for one in book.demographics]
        by, left_out = _known_demographics(survey, population, by)
    profiles = build_profiles(survey, build_groupings(survey, by), population.personas)
    return Sources(recipe, survey, population, alignment, profiles, tuple(left_out))


def build_frame(sources: Sources, ledger: Ledger) -> Frame:
    """Return what the run's rows are sorted by.

    Raises:
        SurveyError: the demographics cut people into more profiles than memory should hold.
    """
    items, survey = sources.alignment.items, sources.survey
    boxes = [layer.box for layer in ledger.layers]
    waves, draws = max(box.waves for box in boxes), max(box.draws for box in boxes)
    weights = [persona.weight for persona in sources.population.personas]
    options = {one.question.item_id: survey.answers[one.question.item_id].options for one in items}
    width = max(one.num_options for one in items)
    block = ledger.shard_personas * waves * draws * max(len(box.items) for box in boxes)
    frame = Frame(
        items,
        sources.profiles.of_persona,
        sources.profiles.count,
        waves,
        draws,
        fixed_bits(max(weights), statistics.fmean(weights), waves * draws, 2 * max(batch_rows(width), block)),
        human_codes(items, options, survey.num_respondents),
        sources.profiles.twins,
        is_greedy=sources.recipe.generate.temperature == 0,
    )
    size = 4 * 8 * frame.num_profiles * len(items) * width * width
    if size > MAX_TABLE_BYTES:
        names = ", ".join(grouping.name for grouping in sources.profiles.groupings)
        raise SurveyError(
            f"The demographics {names} cut people into {frame.num_profiles:,} profiles, whose tables would take "
            f"{size >> 20:,} MB (at most {MAX_TABLE_BYTES >> 20:,}).",
            "Name fewer with --by.",
        )
    return frame


def write_csv(folder: str, tables: dict[str, list[Row]], attribution: str) -> list[str]:
    """Write every table that has rows as CSV into a local folder, with the source in `SOURCE.txt`; return the names."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        names = []
        for name, rows in tables.items():
            if rows:
                sink = io.StringIO(newline="")
                writer = csv.DictWriter(sink, list(rows[0]))
                writer.writeheader()
                writer.writerows({key: _blank(value) for key, value in row.items()} for row in rows)
                (place / f"human_{name}.csv").write_text(sink.getvalue(), encoding="utf-8", newline="")
                names.append(f"human_{name}.csv")
        (place / "SOURCE.txt").write_text(f"{attribution}\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror or error}.", "Name a folder you may write to."
        ) from error
    return names


def _blank(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _known_demographics(survey: Survey, population: Population, by: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the demographics that some persona has, and those that none has."""
    twins, _ = find_twins(survey, population.personas)
    if twins:
        return list(by), []
    known: list[str] = []
    unknown: list[str] = []
    for grouping in build_groupings(survey, by):
        one = grouping.demographic
        values = (
            persona.attributes.get(one.attribute, persona.attributes.get(one.column)) for persona in population.personas
        )
        (known if any(grouping.place(value) >= 0 for value in values) else unknown).append(one.column)
    return known, unknown


def _content(tallied: Tallied, tables: dict[str, list[Row]], overlap: TrainingOverlap | None) -> dict[str, Any]:
    sources, comparison = tallied.sources, tallied.comparison
    shared = [one.question.item_id for one in comparison.items]
    survey, tally, book = sources.survey, comparison.tally, sources.survey.codebook
    bases = [comparison.tally.basis(item) for item in range(len(comparison.items))]
    alarms = [
        f"Variance collapse on {row['item']}: the synthetic answers have {row['score']:.2f} of the humans' variance "
        f"[{row['low']:.2f}, {row['high']:.2f}]."
        for row in collapsed_rows(tables["scores"])
    ]
    return {
        "synthetic": True,
        "human_version": HUMAN_VERSION,
        "human": {
            "title": book.title,
            "source": book.source or survey.location,
            "license": book.license,
            "file": survey.location,
            "respondents": survey.num_respondents,
            "effective_n": kish_of(survey.weights),
        },
        "caption": " ".join(
            [caption(bases, is_greedy=tally.frame.is_greedy), *([overlap.summary(shared)] if overlap else [])]
        ),
        "by": [grouping.name for grouping in sources.profiles.groupings],
        "labels": {grouping.name: grouping.demographic.label for grouping in sources.profiles.groupings},
        "alarms": alarms,
        "notes": [*_notes(tallied), *_pair_notes(tables), *([overlap.note] if overlap else [])],
        "training_overlap": overlap and overlap.as_json,
        "items": {
            "shared": shared,
            "only_human": list(sources.alignment.only_human),
            "only_run": list(sources.alignment.only_run),
        },
        "basis": {name: bases.count(name) for name in sorted(set(bases))},
        "weight_bits": tally.frame.bits,
        "hidden_cells": comparison.hidden,
        "summary": tables["summary"],
        "overall": [row for row in tables["scores"] if row["by"] == ALL],
        "pattern": tables["pattern"][0],
        "regression": regression_summary(tables["regression"]),
        "prediction": prediction_means(tables["prediction"]),
        "individuals": [row for row in tables["individuals"] if row["by"] == ALL],
    }


def _notes(tallied: Tallied) -> list[str]:
    sources, comparison, planned = tallied.sources, tallied.comparison, tallied.ledger.num_cells
    tally, notes = comparison.tally, [*sources.survey.notes, *sources.profiles.notes]
    if tally.num_rows + tally.num_quarantined < planned:
        notes.append(f"generation is not finished: {tally.num_rows:,} of {planned:,} planned responses are there")
    asked = {name: int(count) for name, count in zip(DISPOSITIONS, tally.dispositions.sum(axis=0), strict=True)}
    failed = sum(asked[name] for name in FAILED)
    if failed:
        total = sum(asked.values()) - asked["not_asked"]
        kinds = ", ".join(f"{asked[name]:,} {name}" for name in FAILED if asked[name])
        notes.append(
            f"{failed:,} of {total:,} answers to the shared items ({100 * failed / total:.1f} %) failed and are left "
            f"out: {kinds}"
        )
    if sources.left_out:
        notes.append(f"no persona of the run has {', '.join(sources.left_out)}: not compared by it")
    if comparison.hidden:
        notes.append(f"{comparison.hidden:,} cells of fewer than {MIN_CELL} people or personas are not shown")
    if tally.num_variants:
        notes.append(f"{tally.num_variants:,} answers to changed forms of items are left out")
    if tally.frame.num_joint_items < len(comparison.items):
        notes.append(f"association is compared for the first {tally.frame.num_joint_items} items only")
    return notes


def _pair_notes(tables: dict[str, list[Row]]) -> list[str]:
    (pattern,), shown = tables["pattern"], len(tables["pairs"])
    total = pattern["n"] + pattern["one_sided"]
    if shown == total:
        return []
    return [f"of {total:,} pairs of items the table holds {shown:,}: the most different, and evenly chosen others"]


def _write(directory: RunDirectory, content: dict[str, Any], tables: dict[str, list[Row]]) -> None:
    marks = {"synthetic": "true", "human_version": str(HUMAN_VERSION), "human_source": content["human"]["source"]}
    for name, rows in tables.items():
        file = f"scores/human_{name}.parquet"
        if not rows:
            directory.delete(file)
            continue
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(marks), sink, compression="zstd")
        directory.write(file, sink.getvalue())
    directory.write_json(HUMAN_SCORES, content)
