"""What `plan` says of one adapter's training: what a start would find and settle, and how long it is to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polypersona.errors import ModelError, StorageError
from polypersona.examples import load_examples
from polypersona.models.location import is_hub_id, locate_model, model_hash
from polypersona.models.shapes import load_shape
from polypersona.planned_training import memory_parts
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.records import Example
from polypersona.scheduling.estimate import TrainingEstimate, estimate_training
from polypersona.scheduling.machines import GIB, Inventory
from polypersona.scheduling.micro_batches import hardware_of, has_record, known_micro_batch
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.training_pace import known_pace, pace_parts
from polypersona.scheduling.training_plan import RowSizes, TrainPlan
from polypersona.scopes import Scope
from polypersona.storage import RunDirectory
from polypersona.training.choices import bound_sizes, num_rows

TRAIN = "dataset/train.jsonl"
_NOTHING_LEFT = "nothing is tuned"


def load_training_rows(run: RunDirectory) -> list[Example] | None:
    """Return the rows of the training split; None where the dataset is not there yet."""
    return load_examples(run, "train") if run.exists(TRAIN) else None


def find_shape(recipe: Recipe) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Return the base model's shape; None, and why, where it cannot be read here.

    Raises:
        ModelError: it is no model of a hub, and cannot be read.
    """
    model = recipe.model
    try:
        return load_shape(model.base, revision=model.revision, trust_remote_code=model.trust_remote_code), ()
    except ModelError as error:
        if not is_hub_id(locate_model(model.base)):
            raise
        return None, (f"memory is not planned, because the model's shape is not known here: {error}",)


def row_sizes(recipe: Recipe, examples: Sequence[Example] | None) -> RowSizes | None:
    """Return how long the rows of an adapter are; None where there are none yet."""
    return bound_sizes(examples, finetune_settings(recipe.finetune).loss, recipe.seed) if examples else None


def known_rows(recipe: Recipe, inventory: Inventory, shape: ModelShape | None) -> tuple[int | None, tuple[str, ...]]:
    """Return the most rows at once that this hardware was found to hold, and a note where its file cannot be used.

    None where nothing is known. Records are by the hash of the weights: it is taken only where this hardware has a
    record, and of no hub's model.
    """
    if shape is None or is_hub_id(locate_model(recipe.model.base)):
        return None, ()
    try:
        if not has_record(hardware_of(inventory)):
            return None, ()
        base = model_hash(recipe.model.base, recipe.model.revision)
        return known_micro_batch(memory_parts(recipe, base, inventory)), ()
    except StorageError as error:
        return None, (str(error),)


def count_rows(recipe: Recipe, scope: Scope, examples: Sequence[Example] | None) -> int | None:
    """Return how many rows an adapter learns from in an epoch; None where the dataset stage has yet to say so.

    Before that the rows of a taught dataset are those the recipe asks for, unless questions share a row.
    """
    loss = finetune_settings(recipe.finetune).loss
    if examples is not None:
        return num_rows(examples, loss, recipe.seed)
    if recipe.dataset.source is not None or loss == "options" or not scope.is_everything:
        return None
    return round(recipe.dataset.records * recipe.dataset.splits[0])


def estimate_adapter(
    recipe: Recipe,
    plan: TrainPlan,
    share: Inventory,
    rows: int | None,
    inventory: Inventory,
    prices: Mapping[str, float],
) -> TrainingEstimate:
    """Return what tuning one adapter is expected to take.

    Args:
        recipe: the adapter's.
        plan: how it is tuned.
        share: the part of the inventory that the plan is for, whose hardware paces are kept for.
        rows: of an epoch, as `count_rows` has them.
        inventory: what is paid for.
        prices: per hour, by Ray resource name.
    """
    if not rows:
        what = "the dataset stage makes its rows first" if rows is None else "no row of the training split is for it"
        return TrainingEstimate(what)
    try:
        pace = known_pace(pace_parts(recipe, plan, hardware_of(share)))
    except StorageError as error:
        return TrainingEstimate(str(error))
    epochs = finetune_settings(recipe.finetune).epochs
    return estimate_training(pace, rows * epochs, inventory, prices)


def nothing_left(what: str) -> TrainingEstimate:
    """Return the estimate where what is asked for is trained already."""
    return TrainingEstimate(f"{what}: {_NOTHING_LEFT}", rows=0, tokens=0, hours=0.0)


def nothing_asked(adapter: str) -> TrainingEstimate:
    """Return the estimate where the recipe brings its adapter, or answers without one."""
    return TrainingEstimate(f"model.adapter is {adapter}: {_NOTHING_LEFT}")


def training_rows(train: TrainPlan, estimate: TrainingEstimate) -> list[tuple[str, str, str]]:
    """Return how the adapter is tuned as rows of the plan's table; one alone where none is."""
    if estimate.reason.endswith(_NOTHING_LEFT):
        is_there = estimate.hours is not None
        precision = f"finished, {train.dtype.value}, {train.quantization.value}"
        return [("training", precision if is_there else "none", estimate.reason)]
    least, most = train.least_workers, train.workers
    count = str(most.value) if least.value == most.value else f"{least.value} to {most.value}"
    where = ", ".join(f"{key}={value}" for key, value in train.selector.items())
    memory = "not known" if train.memory_bytes is None else in_gib(train.memory_bytes)
    return [
        ("training workers", count, f"{most.reason}; {least.reason}"),
        *([("training nodes", where, "one kind of GPU: a step waits for its slowest worker")] if where else []),
        ("threads a worker", str(train.threads.value), train.threads.reason),
        (
            "global batch",
            f"{most.value} × {train.micro_batch.value} × {train.accumulation.value}",
            "workers × micro-batch × accumulation; the recipe's, whatever the workers",
        ),
        ("micro-batch", str(train.micro_batch.value), train.micro_batch.reason),
        ("training precision", train.dtype.value, train.dtype.reason),
        ("training quantization", train.quantization.value, train.quantization.reason),
        ("checkpointing", "yes" if train.checkpointing.value else "no", train.checkpointing.reason),
        ("optimizer", train.optimizer.value, train.optimizer.reason),
        ("attention", train.attention.value, train.attention.reason),
        ("memory a worker", memory, "expected at the fullest moment, of its GPU or of the node"),
        *hours_rows(estimate),
    ]


def hours_rows(estimate: TrainingEstimate) -> list[tuple[str, str, str]]:
    """Return what training is expected to take as rows of the plan's table; what was not measured is not known."""
    if estimate.hours is None or estimate.tokens is None or estimate.rows is None:
        return [("training hours", "not known", estimate.reason)]
    if not estimate.rows:
        return [("training hours", "0", estimate.reason)]
    pace = "" if estimate.tokens_per_s is None else f", {estimate.tokens_per_s:,.0f} a second"
    rows = [
        ("training tokens", f"{estimate.tokens:,}", f"{estimate.rows:,} rows{pace}"),
        ("training hours", f"{estimate.hours:.3g}", estimate.reason),
    ]
    return rows + (
        [("training cost", f"{estimate.cost:.4g}", estimate.cost_reason)] if estimate.cost is not None else []
    )


def in_gib(size: int) -> str:
    """Return a size in memory for the table."""
    return f"{size / GIB:.1f} GiB" if size else "–"
