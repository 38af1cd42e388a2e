"""What a run is scored with, and what its scores depend on: recipe and run directory → settings, files, their facts.

Reads `run.json`, the panel or the dataset's test split, and one file of responses where it is asked to. Knows no Ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from polypersona.errors import RecipeError, StorageError
from polypersona.evaluation.subgroups import build_subgroups
from polypersona.examples import example_persona, load_examples
from polypersona.ledger import committed_files
from polypersona.metrics.bertscore import encoder_of
from polypersona.metrics.catalogue import choose_comparison, choose_metrics
from polypersona.metrics.personas import PersonaMetrics
from polypersona.panel.sources import load_panel
from polypersona.parquet import read_parquet
from polypersona.population import Population
from polypersona.questionbank import load_instrument
from polypersona.recipe import Recipe
from polypersona.records import digest
from polypersona.references import (
    DatasetReferences,
    References,
    TeacherReferences,
    dataset_items,
    is_known_to_teacher,
    refuse_unknown_items,
    rotation,
)
from polypersona.rounds import current_quarantine
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.scoring import COLUMNS, Settings
from polypersona.simulator.traits import SEMANTICS_VERSION
from polypersona.storage import RunDirectory


def response_files(directory: RunDirectory, stored: dict[str, Any]) -> list[str]:
    """Return the run's own files of committed shards: what a killed attempt left in quarantine is none."""
    if "ledger" not in stored:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    responses = list(committed_files(directory, stored["fingerprint"]).values())
    if not responses:
        raise StorageError(f"There are no responses in {directory.path()}.", "Run generate first.")
    return [*responses, *current_quarantine(directory, stored["fingerprint"]).values()]


def choose_reference(recipe: Recipe) -> str:
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


def build_settings(recipe: Recipe, directory: RunDirectory, reference: str) -> tuple[Settings, dict[str, Any]]:
    """Return what every task needs, and all that the scores depend on beside the responses."""
    asked = recipe.evaluate
    metrics, set_metrics = choose_metrics(asked.metrics, asked.bertscore_model, asked.embedding_model)
    references: References | None = None
    with_rationale = has_rationale(recipe)
    if recipe.generate.on == "test":
        examples = load_examples(directory, "test")
        items = dataset_items(examples)
        source = digest(directory.read("dataset/test.jsonl"))
        if reference == "dataset":
            is_taught_by_rules = recipe.dataset.source is None and recipe.dataset.teacher == "rules"
            references = DatasetReferences.build(
                examples,
                recipe.seed,
                has_rationale=with_rationale,
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
            personas, items, recipe.seed, has_rationale=with_rationale, show=recipe.instrument.show_options
        )
    by_id = {item.item_id: item for item in items}
    subgroups = build_subgroups(personas)
    settings = Settings(
        metrics, set_metrics, by_id, references, recipe.seed, recipe.evaluate.bootstrap, subgroups, _model_name(recipe)
    )
    basis = {
        "reference": reference,
        "source": source,
        "signatures": [*(metric.signature for metric in metrics), *(metric.signature for metric in set_metrics)],
        "encoder": getattr(encoder_of(metrics), "identity", None),
        "seed": recipe.seed,
        "bootstrap": recipe.evaluate.bootstrap,
        "rationale": with_rationale,
        "teacher": SEMANTICS_VERSION,
    }
    return settings, basis


def persona_metrics(recipe: Recipe, population: Population) -> PersonaMetrics:
    """Return the metrics that look at all answers of a persona; the cards of the next one are their floor.

    Raises:
        ModelError: the sentence encoder cannot be read.
    """
    others = rotation((persona.persona_id for persona in population.personas), recipe.seed)
    wanted = recipe.evaluate.metrics
    comparison = choose_comparison(wanted, recipe.evaluate.embedding_model)
    return PersonaMetrics.of(
        population.items, population.personas, others, wanted, recipe.seed, recipe.evaluate.bootstrap, comparison
    )


def has_rationale(recipe: Recipe) -> bool:
    """Return whether closed responses are more than their choice: then references keep their rationale too."""
    return recipe.generate.rationale or recipe.generate.closed == "text"


def file_facts(directory: RunDirectory, files: Sequence[str]) -> list[tuple[str, int, str]]:
    fs, root = directory.filesystem()
    infos = fs.get_file_info([f"{root}/{name}" for name in files])
    return [(name, info.size, str(info.mtime)) for name, info in zip(files, infos, strict=True)]


def read_rows(directory: RunDirectory, name: str) -> pa.Table:
    """Return what is scored of a file of responses.

    Raises:
        StorageError: it is no such file.
    """
    return read_columns(directory, name, COLUMNS)


def read_columns(directory: RunDirectory, name: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of a file of responses, those with dictionaries as plain values.

    Raises:
        StorageError: it is no such file.
    """
    try:
        table = read_parquet(io.BytesIO(directory.read(name)), columns)
    except pa.ArrowException as error:
        raise StorageError(
            f"{directory.path(name)} is no file of responses: {error}.", "Delete it and run generate again."
        ) from error
    kinds = {field.name: field.type for field in table.schema}
    # Shards have dictionaries of their own.
    plain = {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    return pa.table({name: table[name].cast(kind) for name, kind in plain.items()})


def _model_name(recipe: Recipe) -> str:
    """Return who answers where no adapter does."""
    return recipe.model.base if recipe.generate.engine in MODEL_ENGINES else recipe.generate.engine
