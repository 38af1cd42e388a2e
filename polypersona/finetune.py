"""The finetune stage: dataset/train and validation → adapter/, or adapters/<name>/, by LoRA under Ray Train.

A finished adapter of the same content is left as it is; other content is refused. A training that was interrupted goes
on from its last checkpoint when the same recipe is run again. Of several adapters as many are trained at once as the
inventory holds, and one that fails leaves the others. Knows Ray; the loop itself is `training.loop`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig

from polypersona.errors import DatasetError, RecipeError, StorageError
from polypersona.events import EventLog
from polypersona.models.location import TINY, is_hub_id, locate_model
from polypersona.models.shapes import load_shape
from polypersona.planned_training import Found, Planned, frozen_plan, memory_parts, settled_precision
from polypersona.recipe import Recipe
from polypersona.recipe_sections import FinetuneSettings, finetune_settings
from polypersona.roster import ALONE, Member, build_roster, has_several
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.micro_batches import known_micro_batch, remember_micro_batch, set_aside_micro_batches
from polypersona.scheduling.training_pace import LEAST_STEPS, TrainingPace, pace_parts, remember_pace, set_aside_paces
from polypersona.scheduling.training_plan import TrainPlan, plan_training
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.sweep import train_several
from polypersona.training.artifacts import build_training
from polypersona.training.choices import bound_sizes, num_rows
from polypersona.training.folder import (
    commit_adapter,
    drop_checkpoints,
    finished_training,
    load_training,
    load_validation,
    summarise_training,
    training_content,
    training_rendering,
)
from polypersona.training.job import Outcome, TrainingJob
from polypersona.worker_group import RESIZE_CHECK_S, fit_workers

# Decisions of a plan that a worker is told.
_DECIDED = (
    "dtype", "quantization", "threads", "micro_batch", "checkpointing", "optimizer", "attention", "keeps_freed",
)  # fmt: skip
# Trainings side by side remember in the same files.
_REMEMBERING = threading.Lock()


def run(recipe: Recipe) -> dict[str, Any]:
    """Train the recipe's adapters unless they are there already, and return a summary.

    Raises:
        DatasetError, StorageError: the dataset stage has not run, or has nothing for an adapter.
        ModelError: the base model cannot be loaded or trained.
        RecipeChangedError: the run directory holds an adapter of other content.
        InfeasiblePlanError: the workers asked for do not fit.
        RunFailedError: training failed more often than the recipe allows; of several adapters the others are there.
    """
    if recipe.model.adapter != ALONE:
        return {"skipped": True, "reason": f"model.adapter is {recipe.model.adapter!r}"}
    directory = RunDirectory.at(recipe.location)
    stored = load_run(directory)
    found = [_find(one, directory, frozen_plan(stored, one)) for one in build_roster(recipe)]
    if has_several(recipe):
        warnings = _set_aside_damaged(directory) if any(one.training is None for one in found) else {}
        return {**train_several(recipe, directory, found, _plan, _train), **warnings}
    [only] = found
    if only.training is not None:
        if "finetune" not in stored.get("stages", {}):  # killed between the adapter and this
            update_run(directory, {"stages": {"finetune": summarise_training(only.training, is_skipped=False)}})
        return summarise_training(only.training, is_skipped=True)
    warnings = _set_aside_damaged(directory)
    planned = _plan(only, directory, start_ray(recipe.cluster.limits))
    update_run(directory, {"plan": {"finetune": planned.as_json}})
    summary = summarise_training(_train(planned, directory), is_skipped=False)
    update_run(directory, {"stages": {"finetune": summary}})
    return {**summary, **warnings}


def _set_aside_damaged(directory: RunDirectory) -> dict[str, list[str]]:
    """Keep damaged files of what earlier trainings found aside, each with an event; return `warnings` where there are.

    They spare a search for the micro-batch, and tell `plan` the pace: no training stops for want of them.
    """
    found = [one for one in (set_aside_micro_batches(), set_aside_paces()) if one is not None]
    for one in found:
        EventLog(directory, "finetune").write("records_set_aside", reason=one.reason, kept_as=one.kept_as or None)
    return {"warnings": [one.text for one in found]} if found else {}


def _known_micro_batch(parts: Mapping[str, Any]) -> int | None:
    with contextlib.suppress(StorageError):  # an event has told of it
        return known_micro_batch(parts)
    return None


def _find(member: Member, directory: RunDirectory, frozen: Mapping[str, Any]) -> Found:
    """Return what there is of an adapter; `frozen` is its plan as an earlier start wrote it down."""
    content = training_content(member.recipe, directory, member.scope)
    precision = settled_precision(member.recipe, frozen)
    if precision is None:
        return Found(member, content, None, None)
    content = {**content, **precision}
    return Found(member, content, precision, finished_training(directory, content, member.folder))


def _plan(found: Found, directory: RunDirectory, inventory: Inventory) -> Planned:
    """Settle how an adapter is trained.

    Raises:
        InfeasiblePlanError: the workers do not divide the global batch, or do not fit.
        DatasetError, RecipeError: the best adapter is chosen by what no validation row is measured for.
    """
    member, model = found.member, found.member.recipe.model
    examples, settings = load_training(directory, member.scope), finetune_settings(member.recipe.finetune)
    _refuse_unmeasured_best(member, settings, directory)
    parts = memory_parts(member.recipe, found.content["base"], inventory)
    plan = plan_training(
        member.recipe,
        inventory,
        shape=load_shape(model.base, revision=model.revision, trust_remote_code=model.trust_remote_code),
        rows=bound_sizes(examples, settings.loss, member.recipe.seed),
        most_micro_batch=_known_micro_batch(parts),
        frozen=found.precision,
    )
    precision = {"model.dtype": plan.dtype.value, "model.quantization": plan.quantization.value}
    job = _build_job(member.recipe, plan)
    return Planned(
        member=member,
        content={**found.content, **precision},
        plan=plan,
        precision=precision,
        job=job,
        num_examples=len(examples),
        num_rows=num_rows(examples, job.settings.loss, job.seed),
        memory_parts=parts,
    )


def _refuse_unmeasured_best(member: Member, settings: FinetuneSettings, directory: RunDirectory) -> None:
    metric = settings.best_metric
    if metric not in (None, "loss") and not settings.validation_rows:
        raise RecipeError(
            f"finetune.best_metric is {metric!r}, but finetune.validation_rows is 0, so no answer is scored.",
            "Raise finetune.validation_rows, or set finetune.best_metric: loss.",
        )
    if metric is not None and not load_validation(directory, member.scope):
        raise DatasetError(
            f"finetune.best_metric is {metric!r}, but no validation row is for an adapter of {member.scope.text}.",
            "Give that split a larger share in dataset.splits, or leave finetune.best_metric and patience out.",
        )


def _build_job(recipe: Recipe, plan: TrainPlan) -> TrainingJob:
    location = locate_model(recipe.model.base)
    by_name = recipe.model.base == TINY or is_hub_id(location)
    decided: dict[str, Any] = {name: getattr(plan, name).value for name in _DECIDED}
    return TrainingJob(
        model=recipe.model.base if by_name else location,
        base_name=recipe.model.base if by_name else location,
        settings=finetune_settings(recipe.finetune),
        seed=recipe.seed,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        **decided,
    )


def _scaling(plan: TrainPlan) -> ScalingConfig:
    workers, least = plan.workers.value, plan.least_workers.value
    uses_gpu = plan.gpus_per_worker > 0
    return ScalingConfig(
        num_workers=workers if least == workers else (least, workers),
        use_gpu=uses_gpu,
        resources_per_worker={
            "CPU": plan.cpus_per_worker,
            **({"GPU": float(plan.gpus_per_worker)} if uses_gpu else {}),
            **({"memory": float(plan.memory_bytes)} if plan.memory_bytes and not uses_gpu else {}),
        },
        label_selector=dict(plan.selector) or None,
        elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
    )


def _train(planned: Planned, directory: RunDirectory, board: Any = None) -> dict[str, Any]:
    """Train one adapter to the end and commit it; may run in a thread beside others, and touches no run.json."""
    member, scaling, fingerprint = planned.member, _scaling(planned.plan), planned.fingerprint
    events = EventLog(directory, "finetune" if member.name == ALONE else f"finetune-{member.name}")
    events.write("training_planned", adapter=member.name, fingerprint=fingerprint, plan=planned.as_json)
    result = fit_workers(
        member,
        directory,
        planned.job,
        fingerprint,
        scaling,
        planned.steps,
        board,
        remember=lambda micro_batch, reason: _remember(planned, micro_batch, reason, events),
    )
    facts = {
        "adapter": member.name,
        "scope": member.scope.text,
        "preset": member.recipe.finetune.preset,
        "num_examples": planned.num_examples,
        "num_validation": len(load_validation(directory, member.scope)),
        "is_on_gpu": scaling.use_gpu,
        "rendering": training_rendering(member.recipe, directory),
        "plan": planned.as_json,
    }
    outcome = Outcome(**result.return_value)
    training = build_training(planned.job, outcome, planned.content, fingerprint, facts)
    with result.checkpoint.as_directory() as folder:
        training = commit_adapter(directory, Path(folder), training, member.folder)
    events.write(
        "adapter_committed", adapter=member.name, fingerprint=fingerprint, adapter_hash=training["adapter_hash"]
    )
    drop_checkpoints(directory, member.checkpoints)
    _remember_pace(planned, outcome, training, events)
    return training


def _remember_pace(planned: Planned, outcome: Outcome, training: Mapping[str, Any], events: EventLog) -> None:
    """Keep how fast it was, for `plan`; an attempt that only ended an earlier one says nothing."""
    if outcome.first_step or not training["tokens_per_s"] or outcome.steps < LEAST_STEPS:
        return
    tokens_per_row = outcome.tokens / (outcome.steps * planned.job.settings.global_batch)
    pace = TrainingPace(training["tokens_per_s"], tokens_per_row, datetime.now(UTC).date().isoformat())
    parts = pace_parts(planned.member.recipe, planned.plan, planned.memory_parts["hardware"])
    _keep("pace", lambda: remember_pace(parts, pace), events, adapter=planned.member.name)


def _remember(planned: Planned, micro_batch: int, reason: str, events: EventLog) -> None:
    """Keep what memory was found to hold for the next training on this hardware."""
    date = datetime.now(UTC).date().isoformat()
    _keep(
        "micro_batch",
        lambda: remember_micro_batch(planned.memory_parts, micro_batch, reason, date),
        events,
        adapter=planned.member.name,
        micro_batch=micro_batch,
        hardware=planned.memory_parts["hardware"],
        reason=reason,
    )


def _keep(what: str, remember: Callable[[], str], events: EventLog, **facts: Any) -> None:
    """Remember something for later plans, with an event of the file or of why not: no training fails of that."""
    event = f"{what}_remembered"
    try:
        with _REMEMBERING:
            facts["file"] = remember()
    except (StorageError, OSError) as error:
        event, facts["error"] = f"{what}_not_remembered", str(error)
    with contextlib.suppress(StorageError):
        events.write(event, **facts)
