"""The training loop: a base model, encoded rows and settings → an adapter, checkpoint by checkpoint.

Runs in one process of a group, or alone; knows torch, no recipe, no run directory and no Ray. Which rows a step sees is
a function of the job; dropout of the seed, the step and the worker's rank. So a resumed training ends where an
undisturbed one does, bit for bit. Another number of workers, or another micro-batch, shares out the same rows of a
step, adds up the same gradient in another order, and draws other dropout.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from polypersona.errors import RunFailedError
from polypersona.models.allocator import keep_freed_memory, return_freed_memory
from polypersona.models.loading import load_tokenizer
from polypersona.records import Example, seed_from
from polypersona.training.checkpoints import State, load_checkpoint, save_best, save_checkpoint
from polypersona.training.choices import encode_choices
from polypersona.training.encoding import EncodedRow, EncodedRows, encode_examples, num_shared_tokens
from polypersona.training.gradients import ShareOfStep
from polypersona.training.hardware import count_machines
from polypersona.training.job import Outcome, TrainingJob
from polypersona.training.optimizing import build_optimizer, clip, learning_rate
from polypersona.training.sampling import accumulation_of, num_steps, steps_per_epoch, training_order
from polypersona.training.trainable import Trainable, build_trainable
from polypersona.training.validation import (
    Question,
    choose_questions,
    describe_scores,
    validation_loss,
    validation_scores,
)

CHECKPOINTS_PER_EPOCH = 4
# A report is a barrier that the controller answers now and then.
MIN_STEPS_BETWEEN_CHECKPOINTS = 20
MAX_LOG_POINTS = 500


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands: its rank among `world_size`, its device, and a local folder of its own.

    `machine` is what `hardware.describe_machine` says of it; empty where nobody asks what the training ran on.
    """

    folder: Path
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listeners:
    """What the loop tells others.

    `on_step` gets the number of steps done. `on_checkpoint` gets the metrics and the folder, None on all ranks but the
    first; every rank calls it the same number of times. `on_begin` gets the state that training goes on from.
    `on_shortage` gets one entry each time memory ran out: step, rank, micro_batch, next and reason.

    `before_forward` is for tests: it is called with the number of rows before each forward of training, and what it
    raises counts as that forward's own failure. No recipe reaches it.
    """

    on_step: Callable[[int], None] = lambda step: None
    on_checkpoint: Callable[[dict[str, Any], Path | None], None] = lambda metrics, folder: None
    on_begin: Callable[[State], None] = lambda state: None
    on_shortage: Callable[[dict[str, Any]], None] = lambda shortage: None
    before_forward: Callable[[int], None] = lambda rows: None


def train(
    job: TrainingJob,
    examples: Sequence[Example],
    validation: Sequence[Example],
    place: Place,
    listeners: Listeners,
    resume_from: Path | None = None,
) -> Outcome:
    """Train an adapter, from the beginning or from a checkpoint folder.

    Raises:
        ModelError: the base cannot be loaded or trained as asked.
        DatasetError: an example cannot be encoded.
        InfeasiblePlanError: memory does not hold a single row.
        RunFailedError: the loss is not finite, or the metric that chooses the best adapter was never defined.
    """
    torch.set_num_threads(job.threads)
    if place.device == "cpu":
        (keep_freed_memory if job.keeps_freed else return_freed_memory)()
    tokenizer = load_tokenizer(job.model, revision=job.revision, trust_remote_code=job.trust_remote_code)
    encoded = encode_rows(tokenizer, examples, job)
    held_out = encode_rows(tokenizer, validation, job)
    questions = choose_questions(validation, _whole_rows(tokenizer, validation, job), job.settings.validation_rows)
    trainable = build_trainable(job, place.device)
    training = _Training(job, tokenizer, encoded, held_out, questions, trainable, place, listeners)
    first_step = training.resume(resume_from) if resume_from else 0
    training.run()
    return training.outcome(first_step)


def encode_rows(tokenizer: Any, examples: Sequence[Example], job: TrainingJob) -> EncodedRows:
    """Return the examples as rows of the job's loss: one each, or of one card's choices.

    Raises:
        DatasetError: an example cannot be encoded, or is no choice where the loss is on choices.
    """
    if job.settings.loss == "options":
        return EncodedRows(encode_choices(tokenizer, examples, job.settings.max_length, job.seed), 0)
    return encode_examples(tokenizer, examples, job.settings.max_length)


def _whole_rows(tokenizer: Any, examples: Sequence[Example], job: TrainingJob) -> list[EncodedRow]:
    """Return the examples as rows with their whole answers where some will be answered in writing."""
    if not job.settings.validation_rows:
        return []
    found = encode_examples(tokenizer, examples, job.settings.max_length).rows
    return [row for row in found if isinstance(row, EncodedRow)]


class _Training:
    """One process's part of a training."""

    def __init__(
        self,
        job: TrainingJob,
        tokenizer: Any,
        encoded: EncodedRows,
        held_out: EncodedRows,
        questions: Sequence[Question],
        trainable: Trainable,
        place: Place,
        listeners: Listeners,
    ) -> None:
        settings = job.settings
        self._job, self._tokenizer, self._place, self._listeners = job, tokenizer, place, listeners
        self._encoded, self._held_out, self._questions = encoded, held_out, questions
        self._trainable = trainable
        self._order = training_order(encoded.lengths, settings.global_batch, job.seed, settings.epochs, encoded.weights)
        self._epoch_steps = steps_per_epoch(len(encoded.rows), settings.global_batch)
        self._steps = num_steps(len(encoded.rows), settings.global_batch, settings.epochs)
        self._save_steps = max(MIN_STEPS_BETWEEN_CHECKPOINTS, math.ceil(self._epoch_steps / CHECKPOINTS_PER_EPOCH))
        self._log_steps = max(1, math.ceil(self._steps / MAX_LOG_POINTS))
        self._optimizer = build_optimizer(job, trainable.parameters, place.device)
        self._scaler = torch.amp.GradScaler(place.device.partition(":")[0], enabled=job.dtype == "fp16")
        micro = min(job.micro_batch or settings.batch_size, math.ceil(settings.global_batch / place.world_size))
        self._share = ShareOfStep(
            trainable,
            encoded.rows,
            tokenizer.pad_token_id,
            micro,
            num_shared_tokens(encoded.rows) if trainable.shares_prompts else 0,
            before_forward=listeners.before_forward,
        )
        self._state = State()
        self._window: list[torch.Tensor] = []  # losses since the last logged step
        self._shortages: list[dict[str, Any]] = []
        self._best_file = place.folder / "best.safetensors"
        place.folder.mkdir(parents=True, exist_ok=True)
        self._attempt: dict[str, Any] | None = None
        self._begin = time.perf_counter()

    def resume(self, folder: Path) -> int:
        """Go on from a checkpoint and return its step; a micro-batch it had shrunk to is kept."""
        self._state = load_checkpoint(folder, self._trainable, self._optimizer, self._scaler, self._best_file)
        self._share.micro_batch = min(self._share.micro_batch, self._state.micro_batch)
        self._window = [torch.tensor(loss) for loss in self._state.pending]
        return self._state.step

    def run(self) -> None:
        """Train to the end, or until validation no longer improves."""
        state = self._state
        self._listeners.on_begin(state)
        state.world_size = self._place.world_size
        if not state.is_finished:
            self._begin_attempt()
        self._listeners.on_step(state.step)
        self._trainable.model.train()
        while state.step < self._steps and not state.is_finished:
            norm, rate = self._step()
            state.step += 1
            self._note(norm, rate)
            if self._is_validated():
                self._validate()
            if state.step == self._steps:
                self._refuse_undefined_best()
                state.is_finished = True
            if state.is_finished or state.step % self._save_steps == 0:
                self._save()
            self._listeners.on_step(state.step)

    def _begin_attempt(self) -> None:
        """Note where this start began and what it runs on; every rank takes part."""
        place = self._place
        machines: list[Any] = [place.machine]
        if place.world_size > 1:
            machines = [{} for _ in range(place.world_size)]
            with contextlib.nullcontext() if place.device == "cpu" else torch.cuda.device(place.device):
                distributed.all_gather_object(machines, dict(place.machine))
        facts = {"step": self._state.step, "workers": place.world_size, "seconds": 0.0}
        self._attempt = {**facts, "machines": count_machines(machines)}
        self._state.attempts.append(self._attempt)

    def _seconds(self) -> float:
        """Return how long this start has taken, and note it where there was something left to train."""
        seconds = time.perf_counter() - self._begin
        if self._attempt is not None:
            self._attempt["seconds"] = seconds
        return seconds

    def outcome(self, first_step: int) -> Outcome:
        """Return what came of it."""
        seconds = self._seconds()
        rows, state, place = self._encoded.rows, self._state, self._place
        batch = self._job.settings.global_batch
        done = self._order[: state.step * batch]
        return Outcome(
            log=tuple(state.log),
            steps=state.step,
            first_step=first_step,
            seconds=seconds,
            tokens=sum(len(rows[index].ids) for index in done),
            attempt_tokens=sum(len(rows[index].ids) for index in done[first_step * batch :]),
            answer_tokens=sum(rows[index].num_answer for index in done),
            num_shortened=self._encoded.num_shortened + self._held_out.num_shortened,
            batch_size=self._share.micro_batch,
            accumulation=accumulation_of(batch, place.world_size, self._share.micro_batch),
            world_size=place.world_size,
            num_trainable=sum(parameter.numel() for parameter in self._trainable.parameters),
            targets=self._trainable.targets.names,
            targets_inferred=self._trainable.targets.is_inferred,
            shortages=tuple(self._shortages),
            attempts=tuple(state.attempts),
            best=state.best,
            is_stopped_early=state.step < self._steps,
        )

    def _step(self) -> tuple[torch.Tensor, float]:
        """Make one step; return the gradient's norm before clipping, and the learning rate."""
        job, place, step = self._job, self._place, self._state.step
        batch = job.settings.global_batch
        indices = self._order[step * batch : (step + 1) * batch]
        num_answer = sum(self._encoded.rows[index].num_answer for index in indices)
        for shortage in self._share.compute(
            indices[place.rank :: place.world_size],
            num_answer,
            seed_from(job.seed, "dropout", step, place.rank),
            float(self._scaler.get_scale()) if self._scaler.is_enabled() else 1.0,
        ):
            self._shortages.append({"step": step, "rank": place.rank, **shortage})
            self._listeners.on_shortage(self._shortages[-1])
        gradient = self._share.gradient
        if place.world_size > 1:
            distributed.all_reduce(gradient)
        self._window.append(gradient[-1].clone())
        rate = learning_rate(step, self._steps, job.settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        norm = clip(gradient[:-1], job.settings.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return norm, rate

    def _note(self, norm: torch.Tensor, rate: float) -> None:
        """Log the step where one is due; only then does the host wait for the device."""
        step = self._state.step
        if step % self._log_steps and step < self._steps:
            return
        loss = float(torch.stack(self._window).mean())
        self._window = []
        if not math.isfinite(loss):
            raise RunFailedError(
                f"The training loss is {loss} at step {step}.",
                "Lower finetune.learning_rate, or use model.dtype: fp32.",
            )
        self._entry().update(loss=loss, learning_rate=rate, grad_norm=float(norm))

    def _entry(self) -> dict[str, float]:
        """Return the log's entry of this step."""
        log, step = self._state.log, self._state.step
        if not log or log[-1]["step"] != step:
            log.append({"step": step, "epoch": step / self._epoch_steps})
        return log[-1]

    def _is_validated(self) -> bool:
        if not self._held_out.rows:
            return False
        every = self._job.settings.validate_steps or self._epoch_steps
        return self._state.step % every == 0 or self._state.step == self._steps

    def _validate(self) -> None:
        """Measure the adapter as it stands; keep it where it is the best so far, and stop where that is long ago."""
        place, settings, state = self._place, self._job.settings, self._state
        group = place.rank, place.world_size
        loss = validation_loss(
            self._trainable, self._held_out.rows, self._share.pad_id, 2 * self._share.micro_batch, *group
        )
        scores = {}
        if self._questions:
            scores = validation_scores(self._trainable, self._tokenizer, self._questions, *group)
        measured = describe_scores(loss, scores)
        self._entry().update(measured)
        if settings.best_metric is None:
            return
        value = measured.get(f"eval_{settings.best_metric}", math.nan)
        if state.best is None and not math.isfinite(value):
            return
        sign = 1 if settings.best_metric == "loss" else -1
        if state.best is None or sign * value < sign * state.best["value"]:
            state.best = {"metric": settings.best_metric, "value": value, "step": state.step}
            state.num_bad = 0
            if place.rank == 0:
                save_best(self._best_file, self._trainable)
        else:
            state.num_bad += 1
            state.is_finished = settings.patience is not None and state.num_bad >= settings.patience

    def _refuse_undefined_best(self) -> None:
        name = self._job.settings.best_metric
        if name is not None and self._state.best is None:
            raise RunFailedError(
                f"finetune.best_metric is {name!r}, which was not defined at any validation.",
                "Name another metric, or give the validation split rows that it can be measured on.",
            )

    def _save(self) -> None:
        """Hand a checkpoint over; only the first worker has a folder to give."""
        state = self._state
        metrics: dict[str, Any] = {"step": state.step, "steps": self._steps}
        for entry in state.log[-3:]:
            metrics.update({name: entry[name] for name in ("loss", "eval_loss") if name in entry})
        folder = None
        if self._place.rank == 0:
            folder = self._place.folder / f"checkpoint-{state.step}"
            state.micro_batch = self._share.micro_batch
            state.pending = [float(loss) for loss in self._window]
            self._seconds()
            shutil.rmtree(folder, ignore_errors=True)
            save_checkpoint(folder, self._trainable, self._optimizer, self._scaler, state, self._best_file)
        self._listeners.on_checkpoint(metrics, folder)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
