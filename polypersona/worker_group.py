"""The group of Ray Train workers that tunes one adapter: checkpoints, failures, progress, Ctrl-C.

Knows Ray; the loop itself is `training.loop`, what is trained and what becomes of it is `finetune`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polypersona.errors import InfeasiblePlanError, PolypersonaError, RunFailedError, StorageError
from polypersona.events import EventLog
from polypersona.progress import Progress
from polypersona.roster import Member
from polypersona.scheduling.inventory import here
from polypersona.storage import RunDirectory
from polypersona.training.folder import load_training, load_validation
from polypersona.training.job import TrainingJob
from polypersona.training.sampling import accumulation_of

POLL_S = 0.5
# How often the first worker says how far it is.
TELL_S = 0.3
# Waiting OpenMP threads sleep: where they spin, another busy process on the machine slows training tenfold.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# How often Ray Train's controller looks at its workers, and so how long they wait at a checkpoint, where the user has
# not set it. Its own two seconds are a tenth of a small training.
_POLL_VARIABLE, _CONTROLLER_POLL_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
# How often a training whose workers are a range looks for more of them.
RESIZE_CHECK_S = 30.0


def fit_workers(
    member: Member,
    run_directory: RunDirectory,
    job: TrainingJob,
    fingerprint: str,
    scaling: ScalingConfig,
    steps: int,
    board: Any = None,
    *,
    remember: Callable[[int, str], None] = lambda micro_batch, reason: None,
    before_forward: Callable[[int], None] | None = None,
) -> Any:
    """Run Ray Train to the end. Its run is named by the fingerprint, so the same content resumes and no other.

    Args:
        member: which of the run's adapters, with its part of the dataset and the place of its checkpoints.
        run_directory: where the dataset is and checkpoints go.
        job: what is trained.
        fingerprint: of what the adapter follows from.
        scaling: how many workers with which resources.
        steps: of the whole training, to show progress by.
        board: a caller's own board, who shows the progress of several trainings at once; None shows this one's.
        remember: is told the micro-batch that a training went on with after memory ran out, and why.
        before_forward: for tests, see `loop.Listeners`; no recipe reaches it.

    Raises:
        RunFailedError: training failed more often than the recipe allows, or left no checkpoint.
    """
    os.environ.setdefault(_POLL_VARIABLE, _CONTROLLER_POLL_S)
    own = open_board() if board is None else None
    board = own if board is None else board
    shown = contextlib.nullcontext() if own is None else _shown(own, steps)
    storage = run_directory.address(member.checkpoints).removeprefix("file://")
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={
            "job": job,
            "location": run_directory.location,
            "scope": member.scope,
            "adapter": member.name,
            "board": board,
            "before_forward": before_forward,
        },
        scaling_config=scaling,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=fingerprint,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=member.recipe.finetune.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[_FailureLog(run_directory.location, member.name, board)],
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    try:
        with shown, _own_interrupt():
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _named_failure(error, run_directory) from error
    finally:
        if (shortage := _shortage_of(board)) is not None:
            remember(*shortage)
        if own is not None:
            ray.kill(own)
    answer = result.return_value or {}
    if "refused" in answer:
        raise answer["refused"]
    if result.checkpoint is None or "log" not in answer:
        raise RunFailedError("Training ended without a checkpoint.", "Run the same command again.")
    return result


def _train_on_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Run in each Ray Train worker. A user's mistake is returned, not raised, so that Ray does not try it again."""
    from ray.train.torch import get_device
    from transformers.utils import logging

    from polypersona.training.hardware import describe_machine
    from polypersona.training.loop import Place, train

    logging.set_verbosity_error()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    run_directory = RunDirectory(config["location"])
    board = config["board"]
    job: TrainingJob = config["job"]
    if (shortage := _shortage_of(board)) is not None:
        job = replace(job, micro_batch=min(job.micro_batch or job.settings.batch_size, shortage[0]))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        device = str(get_device())
        place = Place(folder, device, rank, world_size, describe_machine(device, here()))
        try:
            outcome = train(
                job,
                load_training(run_directory, config["scope"]),
                load_validation(run_directory, config["scope"]),
                place,
                _listeners(config, job, run_directory, rank, world_size),
                resume_from,
            )
        except PolypersonaError as error:
            if isinstance(error, InfeasiblePlanError) and world_size > 1:
                raise  # the other workers wait for this one's gradient
            return {"refused": error}
    return asdict(outcome)


def _listeners(
    config: Mapping[str, Any], job: TrainingJob, run_directory: RunDirectory, rank: int, world_size: int
) -> Any:
    """Return what the loop tells: the board its steps, the run's events who trains and where memory ran out."""
    from polypersona.training.loop import Listeners

    adapter, board = config["adapter"], config["board"]
    events = EventLog(run_directory, f"finetune-worker-{adapter}-{rank}")
    told_at = -TELL_S

    def on_begin(state: Any) -> None:
        if rank:
            return
        micro = job.micro_batch or job.settings.batch_size
        board.begin.remote(micro)
        reason = "a fresh start"
        if state.step:
            reason = f"resumed from the checkpoint of step {state.step}"
            if state.world_size != world_size:
                reason += f", with {world_size} workers in place of {state.world_size}"
        with contextlib.suppress(StorageError):
            events.write(
                "workers_began",
                adapter=adapter,
                workers=world_size,
                workers_before=state.world_size if state.step else None,
                step=state.step,
                micro_batch=micro,
                accumulation=accumulation_of(job.settings.global_batch, world_size, micro),
                reason=reason,
            )

    def on_step(step: int) -> None:
        nonlocal told_at
        if rank == 0 and (time.monotonic() - told_at >= TELL_S or step == 0):
            told_at = time.monotonic()
            board.put.remote(step)

    def on_shortage(shortage: Mapping[str, Any]) -> None:
        board.shrink.remote(shortage["next"], shortage["reason"])
        with contextlib.suppress(StorageError):
            accumulation = accumulation_of(job.settings.global_batch, world_size, shortage["next"])
            events.write("memory_ran_out", adapter=adapter, **shortage, accumulation=accumulation)

    listeners = Listeners(on_step, _report, on_begin, on_shortage)
    injected = config["before_forward"]
    return listeners if injected is None else replace(listeners, before_forward=injected)


def _report(metrics: dict[str, Any], folder: Path | None) -> None:
    """Report on every rank; the first hands over the checkpoint."""
    checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
    ray.train.report(metrics, checkpoint=checkpoint)


def _shortage_of(board: Any) -> tuple[int, str] | None:
    """Return the micro-batch that memory allows and why; None where memory never ran out, or the board is gone."""
    with contextlib.suppress(ray.exceptions.RayError):
        found: tuple[int, str] | None = ray.get(board.shortage.remote(), timeout=10)
        return found
    return None


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


def open_board() -> Any:
    """Return a new board: an actor that the first worker tells its steps, and the driver asks for them."""
    beside_me = NodeAffinitySchedulingStrategy(here(), soft=False)  # a node of the workers may go
    return ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=beside_me).remote()


class _Board:
    """Where the first worker writes how far it is and the driver reads it, and how many rows memory was found to hold.

    It outlives the workers, so that those who come after a shortage know of it.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._micro_batch: int | None = None
        self._shortage: tuple[int, str] | None = None

    def put(self, step: int) -> None:
        """Note the number of steps done."""
        self._step = step

    def get(self) -> int | None:
        """Return the number of steps done, None before training begins."""
        return self._step

    def begin(self, micro_batch: int) -> None:
        """Note the micro-batch that workers begin with."""
        self._micro_batch = micro_batch

    def shrink(self, micro_batch: int, reason: str) -> None:
        """Note that memory ran out and `micro_batch` is what a worker goes on with."""
        if self._shortage is None or micro_batch < self._shortage[0]:
            self._shortage = (micro_batch, reason)

    def killed(self, reason: str) -> tuple[int, int] | None:
        """Halve the micro-batch for a worker that the system killed for memory; return it before and after."""
        before = self._shortage[0] if self._shortage else self._micro_batch
        if before is None or before == 1:
            return None
        self.shrink(before // 2, reason)
        return before, before // 2

    def shortage(self) -> tuple[int, str] | None:
        """Return the micro-batch that memory allows and why, None where it never ran out."""
        return self._shortage


class _FailureLog(ray.train.UserCallback):  # type: ignore[misc]  # ray is not type-checked here
    """Writes an event for every worker that fails, and shrinks what was killed for memory; runs in the controller."""

    def __init__(self, location: str, adapter: str, board: Any) -> None:
        self._location = location
        self._adapter = adapter
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Write the last line of what each failed worker said."""
        events = EventLog(RunDirectory(self._location), f"finetune-controller-{self._adapter}")
        for rank, error in worker_exceptions.items():
            lines = str(error).strip().splitlines() or [type(error).__name__]
            with contextlib.suppress(StorageError):
                events.write("worker_failed", adapter=self._adapter, rank=rank, error=lines[-1][:500])
        if any(_is_killed_for_memory(error) for error in worker_exceptions.values()):
            reason = "the node ran out of memory and the worker was killed"
            with contextlib.suppress(StorageError, ray.exceptions.RayError):
                if changed := ray.get(self._board.killed.remote(reason), timeout=10):
                    events.write(
                        "memory_ran_out",
                        adapter=self._adapter,
                        micro_batch=changed[0],
                        next=changed[1],
                        reason=reason,
                    )


def _is_killed_for_memory(error: BaseException) -> bool:
    """Return whether Ray's memory monitor ended the worker; Ray Train wraps what a health check met."""
    causes = (error, getattr(error, "health_check_failure", None), error.__cause__)
    return any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes)


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
