"""The group of Ray Train workers that tunes one adapter: checkpoints, failures, progress, Ctrl-C.

Knows Ray; the loop itself is `training.loop`, what is trained and what becomes of it is `finetune`.
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

from polypersona.errors import PolypersonaError, RunFailedError, StorageError
from polypersona.events import EventLog
from polypersona.examples import load_examples
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.storage import RunDirectory
from polypersona.training.folder import CHECKPOINTS, load_validation
from polypersona.training.job import TrainingJob

POLL_S = 0.5
# Waiting OpenMP threads sleep: where they spin, another busy process on the machine slows training tenfold.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# What the checkpoints need not carry: a pickle nobody reads, the library's card, and random states, because every
# step seeds itself.
_NOT_KEPT = ("training_args.bin", "README.md", "rng_state*.pth")


def fit_workers(
    recipe: Recipe,
    run_directory: RunDirectory,
    job: TrainingJob,
    fingerprint: str,
    scaling: ScalingConfig,
    steps: int,
) -> Any:
    """Run Ray Train to the end. Its run is named by the fingerprint, so the same content resumes and no other.

    Args:
        recipe: what is asked for.
        run_directory: where the dataset is and checkpoints go.
        job: what is trained.
        fingerprint: of what the adapter follows from.
        scaling: how many workers with which resources.
        steps: of the whole training, to show progress by.

    Raises:
        RunFailedError: training failed more often than the recipe allows, or left no checkpoint.
    """
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
