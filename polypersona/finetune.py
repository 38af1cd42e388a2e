"""The finetune stage: dataset/train and validation → adapter/, by LoRA under Ray Train.

A finished adapter of the same content is left as it is; other content is refused. A training that was interrupted goes
on from its last checkpoint when the same recipe is run again. Knows Ray; the loop itself is `training.loop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig

from polypersona.errors import InfeasiblePlanError
from polypersona.events import EventLog
from polypersona.examples import load_examples
from polypersona.fingerprint import digest_of
from polypersona.models.location import TINY, is_hub_id, locate_model
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Decision, Inventory
from polypersona.scheduling.policy import choose_dtype, choose_quantization, plan_training
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.training.artifacts import build_training
from polypersona.training.folder import (
    commit_adapter,
    drop_checkpoints,
    finished_training,
    load_validation,
    summarise_training,
    training_content,
    training_rendering,
)
from polypersona.training.job import Outcome, TrainingJob
from polypersona.training.sampling import num_steps
from polypersona.worker_group import fit_workers

MAX_THREADS = 8


def run(recipe: Recipe) -> dict[str, Any]:
    """Train the recipe's adapter unless it is there already, and return a summary.

    Raises:
        DatasetError, StorageError: the dataset stage has not run.
        ModelError: the base model cannot be loaded or trained.
        RecipeChangedError: the run directory holds an adapter of other content.
        InfeasiblePlanError: the workers asked for do not fit.
        RunFailedError: training failed more often than the recipe allows.
    """
    if recipe.model.adapter != "run":
        return {"skipped": True, "reason": f"model.adapter is {recipe.model.adapter!r}"}
    run_directory = RunDirectory.at(recipe.location)
    content = training_content(recipe, run_directory)
    precision = _frozen_precision(recipe, run_directory)
    if precision is not None:
        finished = finished_training(run_directory, {**content, **precision})
        if finished is not None:
            if "finetune" not in load_run(run_directory).get("stages", {}):  # killed between the adapter and this
                update_run(run_directory, {"stages": {"finetune": summarise_training(finished, is_skipped=False)}})
            return summarise_training(finished, is_skipped=True)
    inventory = start_ray(recipe.cluster.limits)
    training = _train(recipe, run_directory, content, precision, inventory)
    summary = summarise_training(training, is_skipped=False)
    update_run(run_directory, {"stages": {"finetune": summary}})
    return summary


def _train(
    recipe: Recipe,
    run_directory: RunDirectory,
    content: Mapping[str, Any],
    precision: Mapping[str, str] | None,
    inventory: Inventory,
) -> dict[str, Any]:
    scaling, plan = _plan(recipe, inventory)
    if precision is None:
        precision, reasons = _choose_precision(recipe, inventory)
        plan.update(reasons)
    content = {**content, **precision}
    fingerprint = digest_of(content)
    job = _build_job(recipe, content, plan["threads"])
    update_run(run_directory, {"plan": {"finetune": {**plan, **precision}}})
    events = EventLog(run_directory, "finetune")
    events.write("training_planned", fingerprint=fingerprint, plan={**plan, **precision})
    num_examples = len(load_examples(run_directory, "train"))
    steps = num_steps(num_examples, job.settings.global_batch, job.settings.epochs)
    result = fit_workers(recipe, run_directory, job, fingerprint, scaling, steps)
    outcome = Outcome(**result.return_value)
    facts = {
        "preset": recipe.finetune.preset,
        "num_examples": num_examples,
        "num_validation": len(load_validation(run_directory)),
        "is_on_gpu": scaling.use_gpu,
        "rendering": training_rendering(recipe, run_directory),
    }
    training = build_training(job, outcome, content, fingerprint, facts)
    with result.checkpoint.as_directory() as folder:
        training = commit_adapter(run_directory, Path(folder), training)
    events.write("adapter_committed", fingerprint=fingerprint, adapter_hash=training["adapter_hash"])
    drop_checkpoints(run_directory)
    return training


def _frozen_precision(recipe: Recipe, run_directory: RunDirectory) -> dict[str, str] | None:
    """Return the precision this run trains in: the recipe's, else what `auto` was resolved to at its first start."""
    frozen = load_run(run_directory).get("plan", {}).get("finetune", {})
    asked = {"model.dtype": recipe.model.dtype, "model.quantization": recipe.model.quantization}
    resolved = {name: frozen.get(name) if value == "auto" else value for name, value in asked.items()}
    return {name: str(value) for name, value in resolved.items()} if all(resolved.values()) else None


def _choose_precision(recipe: Recipe, inventory: Inventory) -> tuple[dict[str, str], dict[str, str]]:
    """Decide precision and quantisation for training, whatever engine generates later; the second part are reasons."""
    asked = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"engine": "packed"})})
    dtype, quantization = choose_dtype(asked, inventory), choose_quantization(asked, inventory)
    return (
        {"model.dtype": dtype.value, "model.quantization": quantization.value},
        {"dtype_reason": dtype.reason, "quantization_reason": quantization.reason},
    )


def _plan(recipe: Recipe, inventory: Inventory) -> tuple[ScalingConfig, dict[str, Any]]:
    """Return Ray's scaling and the plan as JSON values, reasons included.

    Raises:
        InfeasiblePlanError: the workers do not divide the global batch, or do not fit.
    """
    asked = recipe.finetune.workers
    plan = plan_training(recipe, inventory)
    workers: Decision[int] = plan.workers
    if asked != "auto" and workers.value != asked:
        batch = finetune_settings(recipe.finetune).global_batch
        raise InfeasiblePlanError(
            f"finetune.workers: {asked} workers do not divide the global batch of {batch} examples.",
            f"Use {workers.value} workers, or change finetune.batch_size or finetune.accumulation.",
        )
    uses_gpu = plan.gpus_per_worker > 0
    available = len(inventory.gpus) if uses_gpu else int(inventory.cpus)
    if workers.value > available:
        raise InfeasiblePlanError(
            f"finetune.workers: {workers.value} workers need as many CPUs; {inventory.source} has {available}.",
            f"Use {max(1, available)} workers or fewer, or add nodes.",
        )
    threads = (
        1 if uses_gpu else max(1, min(MAX_THREADS, int(min(node.cpus for node in inventory.nodes)) // workers.value))
    )
    resources = {"CPU": float(threads), **({"GPU": 1.0} if uses_gpu else {})}
    scaling = ScalingConfig(num_workers=workers.value, use_gpu=uses_gpu, resources_per_worker=resources)
    return scaling, {
        "workers": workers.value,
        "workers_reason": workers.reason,
        "gpus_per_worker": plan.gpus_per_worker,
        "threads": threads,
        "batch_size": plan.batch_size,
        "accumulation": plan.accumulation,
    }


def _build_job(recipe: Recipe, content: Mapping[str, Any], threads: int) -> TrainingJob:
    location = locate_model(recipe.model.base)
    by_name = recipe.model.base == TINY or is_hub_id(location)
    return TrainingJob(
        model=recipe.model.base if by_name else location,
        base_name=recipe.model.base if by_name else location,
        settings=finetune_settings(recipe.finetune),
        seed=recipe.seed,
        dtype=content["model.dtype"],
        quantization=content["model.quantization"],
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        threads=threads,
    )
