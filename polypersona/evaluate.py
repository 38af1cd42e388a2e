"""The evaluate stage: responses and references → scores with intervals, floors and ceilings.

Reads `responses/`, `quarantine/` and, by the recipe, the dataset's test split or the panel. Writes `scores/`: one
Parquet file per kind of group and `scores.json`, last. Ray Data maps the shards in parts; a task returns the statistics
of its shards, which add up exactly, so the files are the same bytes for any number of shards, parts or nodes. Where an
encoder is named, its pool has encoded all pairs of texts before. A second run for the same responses and settings does
nothing; one after new ratings adds these to `scores.json`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polypersona.content import refuse_another_recipe
from polypersona.evaluation.basis import (
    build_settings,
    choose_reference,
    file_facts,
    has_rationale,
    persona_metrics,
    read_rows,
    response_files,
)
from polypersona.evaluation.card_pairs import CardPairs
from polypersona.evaluation.parts import map_parts, share_out
from polypersona.evaluation.personas import committed_blocks, score_personas
from polypersona.evaluation.pool import score_pairs
from polypersona.evaluation.ratings import annotations_digest, rated_scores
from polypersona.evaluation.reference_pairs import ReferencePairs
from polypersona.fingerprint import digest_of
from polypersona.location import mask_secrets
from polypersona.metrics.bertscore import encoder_of, with_values
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.sums import Kind, Sums
from polypersona.metrics.table import Row, build_rows, build_set_rows, conditioning
from polypersona.population import load_population
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.records import DISPOSITIONS, Item
from polypersona.scheduling.evaluation_plan import plan_evaluation
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Inventory
from polypersona.scoring import Partial, Scorer, Settings
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.training.card import write_scores_into_cards

SCORES_VERSION = 2
SCORES = "scores/scores.json"
TABLES: dict[Kind, str] = {
    "overall": "overall",
    "domain": "by_domain",
    "response_type": "by_response_type",
    "item": "by_item",
    "model": "by_model",
    "subgroup": "by_subgroup",
}
# A row of fewer answers is not shown by subgroup.
MIN_SUBGROUP = 5
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
    files = response_files(directory, stored)
    reference = choose_reference(recipe)
    population = load_population(recipe, directory)
    refuse_another_recipe(directory.path(), stored, recipe, population)
    settings, basis = build_settings(recipe, directory, reference)
    people = persona_metrics(recipe, population)
    basis["personas"] = people.signatures
    basis["embedding"] = people.similarity.comparison.identity if people.similarity else None
    num_planned = int(stored["ledger"]["num_cells"])
    basis |= {"caption": _caption(recipe, settings, reference), "num_planned": num_planned}
    key = digest_of({"files": file_facts(directory, files), "basis": basis, "version": SCORES_VERSION})
    state: dict[str, Any] = {"key": key, "annotations": annotations_digest(directory)}
    before = stored.get("stages", {}).get("evaluate", {})
    is_measured = before.get("key") == key and directory.exists(SCORES)
    if is_measured and before.get("annotations") == state["annotations"]:
        return {**_summary(directory.read_json(SCORES)), "skipped": True}
    if is_measured:
        scores = directory.read_json(SCORES)
    else:
        inventory = start_ray(recipe.cluster.limits)
        partial, state["bertscore"] = _score_responses(directory, settings, files, num_planned, inventory)
        sums, state["card_similarity"] = _score_people(directory, stored, people, population.items, inventory)
        partial.persona_rows = {kind: people.build_rows(sums, kind, population.items) for kind in TABLES}
        scores = _build_scores(recipe, settings, partial, reference, num_planned)
        for kind, name in TABLES.items():
            directory.write(f"scores/{name}.parquet", _render_rows(_rows_of(settings, partial, kind)))
    directory.write_json(SCORES, {**scores, "annotation": rated_scores(directory)})
    write_scores_into_cards(directory)
    summary = _summary(scores)
    update_run(directory, {"stages": {"evaluate": {**state, **summary}}})
    return {**summary, "skipped": False}


def _measure(job: tuple[RunDirectory, Settings], files: Sequence[str]) -> tuple[int, Partial]:
    """Return how many shards were measured and their statistics, in a Ray task."""
    directory, settings = job
    scorer = Scorer.build(settings)
    for name in files:
        scorer.add(read_rows(directory, name))
    return len(files), scorer.partial


def _score_responses(
    directory: RunDirectory, settings: Settings, files: Sequence[str], num_rows: int, inventory: Inventory
) -> tuple[Partial, dict[str, Any]]:
    """Return the statistics of all files, and what was done for BERTScore; nothing where it is not measured.

    The values of its pairs are held by this call alone.
    """
    encoder = encoder_of(settings.metrics)
    done: dict[str, Any] = {}
    if encoder is not None and settings.references is not None:
        known, summary = score_pairs(directory, ReferencePairs(settings), encoder, files, num_rows, inventory)
        settings, done = replace(settings, metrics=with_values(settings.metrics, known)), summary.as_json()
    return _score_files(directory, settings, files, plan_evaluation(inventory).tasks.value), done


def _score_people(
    directory: RunDirectory,
    stored: dict[str, Any],
    people: PersonaMetrics,
    items: Sequence[Item],
    inventory: Inventory,
) -> tuple[Sums, dict[str, Any]]:
    """Return the sums of whole personas, and what was done for card similarity; nothing where it is not measured.

    The values of its pairs are held by this call alone.
    """
    similarity = people.similarity
    done: dict[str, Any] = {}
    if similarity is not None:
        source, num_rows = CardPairs(similarity, people.seed), int(stored["ledger"]["num_cells"])
        files = [name for block in committed_blocks(directory, stored) for name in block]
        known, summary = score_pairs(directory, source, similarity.comparison, files, num_rows, inventory)
        people, done = people.with_values(known), summary.as_json()
    return score_personas(directory, stored, people, items, plan_evaluation(inventory).tasks.value), done


def _score_files(directory: RunDirectory, settings: Settings, files: Sequence[str], num_cpus: int) -> Partial:
    """Measure all files, a part of them per task, and return the sum."""
    total = Partial.empty(settings)
    with Progress("evaluate", len(files), "shards") as progress:
        for num_files, part in map_parts(_measure, (directory, settings), share_out(files, num_cpus), num_cpus):
            total.merge(part)
            progress.advance(num_files)
    return total


def _rows_of(settings: Settings, partial: Partial, kind: Kind) -> list[Row]:
    has_reference = settings.references is not None
    rows = build_rows(settings.layout, partial.sums, kind)
    rows += build_set_rows(settings.set_metrics, partial.ngrams, kind, has_reference=has_reference)
    rows += partial.persona_rows.get(kind, [])
    if kind == "subgroup":
        rows = [row for row in rows if int(row["n"]) >= MIN_SUBGROUP]
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
    if recipe.generate.persona == "hidden":
        parts.append("The card was hidden from every prompt: what these answers score, they score without the persona.")
    teacher = recipe.dataset.teacher if recipe.dataset.source is None else None
    if reference == "teacher" or (reference == "dataset" and teacher == "rules"):
        whose = "the test split's answers, written by" if reference == "dataset" else "the answers of"
        parts.append(
            f"The references are {whose} the rules teacher: these scores are agreement with a simulator and conclude "
            "nothing about people."
        )
    elif reference == "dataset":
        source = mask_secrets(recipe.dataset.source or f"the teacher {teacher!r}")
        parts.append(f"The references are the test split's answers from {source}.")
    else:
        parts.append("Nothing was compared: only measures that need no reference are shown.")
    if reference != "none":
        if not has_rationale(recipe):
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
    if recipe.evaluate.embedding_model is None:
        parts.append(
            "Card similarity is not in the table: the recipe names no sentence encoder (evaluate.embedding_model)."
        )
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
