"""The finetune stage: dataset/train and validation → adapter/, by LoRA under Ray Train.

A finished adapter of the same content is left as it is; other content is refused. A training that was interrupted goes
on from its last checkpoint when the same recipe is run again. Knows Ray; the loop itself is `training.loop`.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from polypersona.errors import InfeasiblePlanError, PolypersonaError, RunFailedError, StorageError
from polypersona.events import EventLog
from polypersona.examples import load_examples
from polypersona.fingerprint import digest_of
from polypersona.models.location import TINY, is_hub_id, locate_model
from polypersona.progress import Progress
from polypersona.recipe import Recipe, finetune_settings
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Decision, Inventory
from polypersona.scheduling.policy import choose_dtype, choose_quantization, plan_training
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.training.artifacts import build_training
from polypersona.training.folder import (
    CHECKPOINTS,
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

MAX_THREADS = 8
POLL_S = 0.5
# Waiting OpenMP threads sleep: where they spin, another busy process on the machine slows training tenfold.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# What the checkpoints need not carry: a pickle nobody reads, the library's card, and random states, because every
# step seeds itself.
_NOT_KEPT = ("training_args.bin", "README.md", "rng_state*.pth")


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
    result = _fit(recipe, run_directory, job, fingerprint, scaling, steps)
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


def _fit(
    recipe: Recipe,
    run_directory: RunDirectory,
    job: TrainingJob,
    fingerprint: str,
    scaling: ScalingConfig,
    steps: int,
) -> Any:
    """Run Ray Train to the end. Its run is named by the fingerprint, so the same content resumes and no other."""
    board = ray.remote(num_cpus=0)(_Board).remote()
    storage = run_directory.address(CHECKPOINTS).removeprefix("file://")
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "location": run_directory.location, "board": board},
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=fingerprint,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=recipe.finetune.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[_FailureLog(run_directory.location)],
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    try:
        with _shown(board, steps), _own_interrupt():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _named_failure(error, run_directory) from error
    finally:
        ray.kill(board)
    answer = result.return_value or {}
    if "refused" in answer:
        raise answer["refused"]
    if result.checkpoint is None or "log" not in answer:
        raise RunFailedError("Training ended without a checkpoint.", "Run the same command again.")
    return result


def _train_on_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Run in each Ray Train worker. A user's mistake is returned, not raised, so that Ray does not try it again."""
    from dataclasses import asdict

    from ray.train.torch import get_device
    from transformers.utils import logging

    from polypersona.training.loop import Listeners, Place, train

    logging.set_verbosity_error()
    context = ray.train.get_context()
    rank = context.get_world_rank()
    run_directory = RunDirectory(config["location"])
    board = config["board"]

    def on_step(step: int) -> None:
        if rank == 0:
            board.put.remote(step)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        place = Place(folder, str(get_device()), rank, context.get_world_size())
        try:
            outcome = train(
                config["job"],
                load_examples(run_directory, "train"),
                load_validation(run_directory),
                place,
                Listeners(on_step, _report),
                resume_from,
            )
        except PolypersonaError as error:
            return {"refused": error}
    return asdict(outcome)


def _report(metrics: dict[str, Any], folder: Path | None) -> None:
    """Report on every rank; the first hands over the checkpoint."""
    if folder is None:
        ray.train.report(metrics)
        return
    for pattern in _NOT_KEPT:
        for path in folder.glob(pattern):
            path.unlink()
    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def _named_failure(error: Exception, run_directory: RunDirectory) -> PolypersonaError:
    failures: Sequence[Any] = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        for cause in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(cause, PolypersonaError):
                return cause
    said = [line for line in str(failures[0]).strip().splitlines() if line.strip()] or [type(failures[0]).__name__]
    return RunFailedError(
        f"Training failed more often than finetune.max_failures allows; the last failure: {said[-1][:300]}",
        f"Look into {run_directory.path('events')}, mend the cause and run the same command to resume.",
    )


class _Board:
    """Where the first worker writes how far it is and the driver reads it; None until training begins."""

    def __init__(self) -> None:
        self._step: int | None = None

    def put(self, step: int) -> None:
        """Note the number of steps done."""
        self._step = step

    def get(self) -> int | None:
        """Return the number of steps done, None before the first."""
        return self._step


class _FailureLog(ray.train.UserCallback):  # type: ignore[misc]  # ray is not type-checked here
    """Writes an event for every worker that fails; runs in Ray Train's controller."""

    def __init__(self, location: str) -> None:
        self._location = location

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Write the last line of what each failed worker said."""
        events = EventLog(RunDirectory(self._location), "finetune-controller")
        for rank, error in worker_exceptions.items():
            lines = str(error).strip().splitlines() or [type(error).__name__]
            with contextlib.suppress(StorageError):
                events.write("worker_failed", rank=rank, error=lines[-1][:500])


@contextlib.contextmanager
def _shown(board: Any, steps: int) -> Iterator[None]:
    """Show the board's steps as progress while the body runs."""
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(board, steps, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(timeout=15)


def _follow(board: Any, steps: int, ended: threading.Event) -> None:
    """Advance a bar by the board until the end. It begins when training does: starting up says nothing of the pace."""
    with contextlib.ExitStack() as stack:
        progress: Progress | None = None
        is_last = False
        while not is_last:
            is_last = ended.wait(POLL_S)
            with contextlib.suppress(ray.exceptions.RayError):
                step = ray.get(board.get.remote(), timeout=10)
                if step is None:
                    continue
                if progress is None:
                    progress = stack.enter_context(Progress("finetune", steps, "steps", done=step))
                progress.advance(max(0, step - progress.pace.done))


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Give Ctrl-C its meaning back: Ray Train's handler ends the process with code 0 and stays after the run."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
