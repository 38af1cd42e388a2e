"""The evaluate stage: responses and references → scores with intervals, floors and ceilings.

Reads `responses/`, `quarantine/` and, by the recipe, the dataset's test split or the panel. Writes `scores/`: one
Parquet file per kind of group and `scores.json`, last. Ray Data maps the shards in parts; a task returns the statistics
of its shards, which add up exactly, so the files are the same bytes for any number of shards, parts or nodes. A second
run for the same responses and settings does nothing.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from polypersona.content import refuse_another_recipe
from polypersona.errors import PolypersonaError, RecipeError, StorageError
from polypersona.examples import example_persona, load_examples
from polypersona.fingerprint import digest_of
from polypersona.ledger import RESPONSES
from polypersona.metrics.catalogue import choose_metrics
from polypersona.metrics.sums import Kind
from polypersona.metrics.table import Row, build_rows, build_set_rows, conditioning
from polypersona.panel.sources import load_panel
from polypersona.parquet import read_parquet
from polypersona.population import load_population
from polypersona.progress import Progress
from polypersona.questionbank import load_instrument
from polypersona.recipe import Recipe
from polypersona.records import DISPOSITIONS, digest
from polypersona.references import (
    DatasetReferences,
    References,
    TeacherReferences,
    dataset_items,
    is_known_to_teacher,
    refuse_unknown_items,
)
from polypersona.rounds import current_quarantine
from polypersona.scheduling.inventory import start_ray
from polypersona.scoring import COLUMNS, Partial, Scorer, Settings
from polypersona.simulator.traits import SEMANTICS_VERSION
from polypersona.storage import RunDirectory, load_run, update_run

SCORES_VERSION = 1
SCORES = "scores/scores.json"
TABLES: dict[Kind, str] = {
    "overall": "overall",
    "domain": "by_domain",
    "response_type": "by_response_type",
    "item": "by_item",
}
PARTS_PER_CPU = 4
ROW_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("metric", "label", "group")),
        pa.field("n", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("score", "low", "high", "floor")),
        pa.field("floor_name", pa.string(), nullable=False),
        pa.field("ceiling", pa.float64()),
        pa.field("ceiling_name", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("uniform", "gain", "gain_low", "gain_high")),
        pa.field("higher_is_better", pa.bool_(), nullable=False),
        pa.field("signature", pa.string(), nullable=False),
    ],
    metadata={"synthetic": "true", "scores_version": str(SCORES_VERSION)},
)


def run(recipe: Recipe) -> dict[str, Any]:
    """Score the run's responses and return a summary.

    Raises:
        RecipeError: an unknown metric, or a reference that does not fit what was generated.
        RecipeChangedError: the responses were made with another recipe.
        StorageError: there are no responses.
    """
    directory = RunDirectory.at(recipe.location)
    stored = load_run(directory)
    files = _response_files(directory, stored)
    reference = _choose_reference(recipe)
    refuse_another_recipe(directory.path(), stored, recipe, load_population(recipe, directory))
    settings, basis = _build_settings(recipe, directory, reference)
    num_planned = int(stored["ledger"]["num_cells"])
    basis |= {"caption": _caption(recipe, settings, reference), "num_planned": num_planned}
    key = digest_of({"files": _file_facts(directory, files), "basis": basis, "version": SCORES_VERSION})
    if directory.exists(SCORES) and stored.get("stages", {}).get("evaluate", {}).get("key") == key:
        return {**_summary(directory.read_json(SCORES)), "skipped": True}
    partial = _score_files(recipe, directory, settings, files)
    scores = _build_scores(recipe, settings, partial, reference, num_planned)
    for kind, name in TABLES.items():
        directory.write(f"scores/{name}.parquet", _render_rows(_rows_of(settings, partial, kind)))
    directory.write_json(SCORES, scores)
    summary = _summary(scores)
    update_run(directory, {"stages": {"evaluate": {"key": key, **summary}}})
    return {**summary, "skipped": False}


def measure_part(ids: pa.Table, job: Sequence[Any]) -> pa.Table:
    """Measure the shards of some parts, in a Ray task; a named failure comes back as a value.

    Args:
        ids: column `id`, the numbers of the parts.
        job: a reference to (run directory, settings, parts); a part is a list of file names.
    """
    directory, settings, parts = ray.get(job[0])
    scorer = Scorer.build(settings)
    names = [name for part in ids["id"].to_pylist() for name in parts[part]]
    result: Partial | PolypersonaError = scorer.partial
    try:
        for name in names:
            scorer.add(_read_rows(directory, name))
    except PolypersonaError as error:
        result = error
    return pa.table({"num_files": [len(names)], "result": pa.array([pickle.dumps(result)], pa.large_binary())})


def _response_files(directory: RunDirectory, stored: dict[str, Any]) -> list[str]:
    """Return the run's own files of committed shards: what a killed attempt left in quarantine is none."""
    if "ledger" not in stored:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    responses = directory.names(RESPONSES, f"-{stored['fingerprint']}.parquet")
    if not responses:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    return [*responses, *current_quarantine(directory, stored["fingerprint"]).values()]


def _choose_reference(recipe: Recipe) -> str:
    """Return dataset, teacher or none: `auto` resolved, and checked against what was generated."""
    wanted, on = recipe.evaluate.reference, recipe.generate.on
    if wanted == "dataset" and on == "panel":
        raise RecipeError(
            "evaluate.reference is 'dataset', but generate.on is 'panel', whose cells include trained ones.",
            "Set generate.on to test, or evaluate.reference to auto, teacher or none.",
        )
    if wanted != "auto":
        return wanted
    if on == "test":
        return "dataset"
    items = load_instrument(recipe.instrument).items
    return "teacher" if all(is_known_to_teacher(item) for item in items) else "none"


def _build_settings(recipe: Recipe, directory: RunDirectory, reference: str) -> tuple[Settings, dict[str, Any]]:
    """Return what every task needs, and all that the scores depend on beside the responses."""
    metrics, set_metrics = choose_metrics(recipe.evaluate.metrics, recipe.evaluate.bertscore_model)
    references: References | None = None
    has_rationale = _has_rationale(recipe)
    if recipe.generate.on == "test":
        examples = load_examples(directory, "test")
        items = dataset_items(examples)
        source = digest(directory.read("dataset/test.jsonl"))
        if reference == "dataset":
            is_taught_by_rules = recipe.dataset.source is None and recipe.dataset.teacher == "rules"
            references = DatasetReferences.build(
                examples,
                recipe.seed,
                has_rationale=has_rationale,
                is_taught_by_rules=is_taught_by_rules,
                show=recipe.instrument.show_options,
            )
        personas = [example_persona(example) for example in examples]
    else:
        instrument, panel = load_instrument(recipe.instrument), load_panel(recipe.panel, recipe.seed)
        items, personas = instrument.items, list(panel.personas)
        source = digest(instrument.source_hash, panel.source_hash)
    if reference == "teacher":
        refuse_unknown_items(items)
        references = TeacherReferences.build(
            personas, items, recipe.seed, has_rationale=has_rationale, show=recipe.instrument.show_options
        )
    by_id = {item.item_id: item for item in items}
    settings = Settings(metrics, set_metrics, by_id, references, recipe.seed, recipe.evaluate.bootstrap)
    basis = {
        "reference": reference,
        "source": source,
        "signatures": [*(metric.signature for metric in metrics), *(metric.signature for metric in set_metrics)],
        "seed": recipe.seed,
        "bootstrap": recipe.evaluate.bootstrap,
        "rationale": has_rationale,
        "teacher": SEMANTICS_VERSION,
    }
    return settings, basis


def _has_rationale(recipe: Recipe) -> bool:
    """Return whether closed responses are more than their choice: then references keep their rationale too."""
    return recipe.generate.rationale or recipe.generate.closed == "text"


def _file_facts(directory: RunDirectory, files: Sequence[str]) -> list[tuple[str, int, str]]:
    fs, root = directory.filesystem()
    infos = fs.get_file_info([f"{root}/{name}" for name in files])
    return [(name, info.size, str(info.mtime)) for name, info in zip(files, infos, strict=True)]


def _read_rows(directory: RunDirectory, name: str) -> pa.Table:
    try:
        return read_parquet(io.BytesIO(directory.read(name)), COLUMNS)
    except pa.ArrowException as error:
        raise StorageError(
            f"{directory.path(name)} is no file of responses: {error}.", "Delete it and run generate again."
        ) from error


def _score_files(recipe: Recipe, directory: RunDirectory, settings: Settings, files: Sequence[str]) -> Partial:
    """Measure all files, a part of them per task, and return the sum."""
    num_cpus = max(1, int(start_ray(recipe.cluster.limits).cpus))
    num_parts = min(len(files), PARTS_PER_CPU * num_cpus)
    parts = [list(files[first::num_parts]) for first in range(num_parts)]
    total = Partial.empty(settings)
    with Progress("evaluate", len(files), "shards") as progress:
        for num_files, part in _map_parts((directory, settings, parts), num_cpus):
            total.merge(part)
            progress.advance(num_files)
    return total


def _map_parts(job: tuple[RunDirectory, Settings, list[list[str]]], num_cpus: int) -> Iterator[tuple[int, Partial]]:
    context = ray.data.DataContext.get_current()
    was_shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # A list keeps Ray from putting the value itself in place of its reference.
        reference = [ray.put(job)]
        num_parts = len(job[2])
        parts = ray.data.range(num_parts, override_num_blocks=num_parts).map_batches(
            measure_part,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"job": reference},
            compute=ray.data.TaskPoolStrategy(size=min(num_cpus, num_parts)),
        )
        for row in parts.iter_rows():
            result: Partial | PolypersonaError = pickle.loads(row["result"])
            if isinstance(result, PolypersonaError):
                raise result
            yield row["num_files"], result
    finally:
        context.enable_progress_bars = was_shown


def _rows_of(settings: Settings, partial: Partial, kind: Kind) -> list[Row]:
    has_reference = settings.references is not None
    rows = build_rows(settings.layout, partial.sums, kind)
    rows += build_set_rows(settings.set_metrics, partial.ngrams, kind, has_reference=has_reference)
    return sorted(rows, key=lambda row: str(row["group"]))


def _build_scores(
    recipe: Recipe, settings: Settings, partial: Partial, reference: str, num_planned: int
) -> dict[str, Any]:
    tables = {name: _rows_of(settings, partial, kind) for kind, name in TABLES.items()}
    counts = {name: partial.dispositions[name] for name in DISPOSITIONS if partial.dispositions[name]}
    caption, num_rows = _caption(recipe, settings, reference), sum(counts.values())
    num_not_asked = counts.get("not_asked", 0)
    if num_not_asked:
        caption += (
            f" {num_not_asked:,} cells were not asked, because an earlier answer routes past them; no score has them."
        )
    if num_rows < num_planned:
        caption = f"Generation is not finished: {num_rows:,} of {num_planned:,} planned responses are there. {caption}"
    return {
        "synthetic": True,
        "scores_version": SCORES_VERSION,
        "reference": reference,
        "caption": caption,
        "splits": {"scored": recipe.generate.on},
        "num_rows": num_rows,
        "num_planned": num_planned,
        "num_not_asked": num_not_asked,
        "dispositions": counts,
        "variants_left_out": partial.variants,
        "conditioning": conditioning(tables["overall"]),
        **tables,
    }


def _caption(recipe: Recipe, settings: Settings, reference: str) -> str:
    """Return what a reader must know to read the table."""
    parts = ["Synthetic responses."]
    teacher = recipe.dataset.teacher if recipe.dataset.source is None else None
    if reference == "teacher" or (reference == "dataset" and teacher == "rules"):
        whose = "the test split's answers, written by" if reference == "dataset" else "the answers of"
        parts.append(
            f"The references are {whose} the rules teacher: these scores are agreement with a simulator and conclude "
            "nothing about people."
        )
    elif reference == "dataset":
        source = recipe.dataset.source or f"the teacher {teacher!r}"
        parts.append(f"The references are the test split's answers from {source}.")
    else:
        parts.append("Nothing was compared: only measures that need no reference are shown.")
    if reference != "none":
        if not _has_rationale(recipe):
            parts.append("Closed answers were generated without a rationale and are compared without the reference's.")
        parts.append(
            "The shuffled floor scores each response against another persona's reference to the same item; the gain is "
            "the score minus that floor."
        )
    if settings.references is not None and settings.references.has_retest:
        parts.append("The retest ceiling is the teacher's agreement with itself under another draw of its noise.")
    if settings.num_replicates:
        parts.append(
            f"Intervals are 95 % bootstrap intervals clustered by persona ({settings.num_replicates} replicates, fewer "
            "for single items). Persona weights are not applied."
        )
    if recipe.evaluate.bertscore_model is None:
        parts.append("BERTScore is not in the table: the recipe names no encoder (evaluate.bertscore_model).")
    return " ".join(parts)


def _render_rows(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _summary(scores: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference": scores["reference"],
        "num_rows": scores["num_rows"],
        "conditioning": scores["conditioning"],
        "scores": {row["metric"]: row["score"] for row in scores["overall"]},
    }
