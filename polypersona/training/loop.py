"""The training loop: a base model, encoded rows and settings → an adapter, checkpoint by checkpoint.

Runs in one process of a group, or alone; knows torch and the Hugging Face Trainer, no recipe, no run directory and no
Ray. Sample order is a function of the job, dropout of the seed, the step and the worker's rank; so a resumed training
ends where an undisturbed one does. Another number of workers shares out the same examples of a step and draws other
dropout.
"""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from polypersona.errors import ModelError, RunFailedError
from polypersona.models.allocator import keep_freed_memory
from polypersona.models.loading import Dtype, load_base_model, load_tokenizer
from polypersona.models.lora import attach_lora, lora_targets
from polypersona.records import Example, seed_from
from polypersona.training.encoding import EncodedRow, collate, encode_examples
from polypersona.training.job import Outcome, TrainingJob
from polypersona.training.sampling import num_steps, share_batch, steps_per_epoch, training_order

CHECKPOINTS_PER_EPOCH = 4
# A report is a barrier that the controller answers every two seconds.
MIN_STEPS_BETWEEN_CHECKPOINTS = 20
MAX_LOG_POINTS = 500
_LOGGED = ("loss", "eval_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands: its rank among `world_size`, its device, and a fresh local folder."""

    folder: Path
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class Listeners:
    """What the loop tells others.

    `on_step` gets the number of steps done. `on_checkpoint` gets the metrics and the folder, None on all ranks but the
    first; every rank calls it the same number of times.
    """

    on_step: Callable[[int], None] = lambda step: None
    on_checkpoint: Callable[[dict[str, Any], Path | None], None] = lambda metrics, folder: None


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
        RunFailedError: the loss is not finite.
    """
    torch.set_num_threads(job.threads)
    if place.device == "cpu":
        keep_freed_memory()
    settings = job.settings
    tokenizer = load_tokenizer(job.model, revision=job.revision, trust_remote_code=job.trust_remote_code)
    encoded = encode_examples(tokenizer, examples, settings.max_length)
    held_out = encode_examples(tokenizer, validation, settings.max_length)
    model, targets = _build_model(job, place.device)
    micro, accumulation = share_batch(settings.global_batch, settings.batch_size, place.world_size)
    order = training_order(encoded.lengths, settings.global_batch, job.seed, settings.epochs)
    epoch_steps = steps_per_epoch(len(encoded.rows), settings.global_batch)
    steps = num_steps(len(encoded.rows), settings.global_batch, settings.epochs)
    trainer = _OrderedTrainer(
        model=model,
        args=_arguments(job, place, micro, accumulation, steps),
        rows=encoded.rows,
        order=order,
        pad_id=tokenizer.pad_token_id,
        is_head_limited=_can_limit_head(model),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watcher(trainer, job, place, listeners, held_out.rows, epoch_steps))
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return Outcome(
        log=_merged_log(trainer.state.log_history, epoch_steps),
        steps=int(trainer.state.global_step),
        first_step=trainer.first_step,
        seconds=time.perf_counter() - begin,
        tokens=sum(len(encoded.rows[index].ids) for index in order),
        answer_tokens=sum(encoded.rows[index].num_answer for index in order),
        num_shortened=encoded.num_shortened + held_out.num_shortened,
        batch_size=micro,
        accumulation=accumulation,
        world_size=place.world_size,
        num_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        targets=targets.names,
        targets_inferred=targets.is_inferred,
    )


def answer_loss(
    model: Any, rows: Sequence[EncodedRow], pad_id: int, batch_size: int, place: Place, *, is_head_limited: bool
) -> float:
    """Return the mean negative log-likelihood of an answer token over all rows and ranks; NaN without rows."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
    sums = torch.zeros(2, dtype=torch.float64)  # summed loss, answer tokens
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches[place.rank :: place.world_size]:
            inputs = collate(batch, pad_id, is_head_limited=is_head_limited)
            inputs = {
                name: value.to(place.device) if torch.is_tensor(value) else value for name, value in inputs.items()
            }
            num_answer = sum(row.num_answer for row in batch)
            loss = model(**inputs, use_cache=False).loss
            sums += torch.tensor([float(loss) * num_answer, num_answer], dtype=torch.float64)
    model.train(was_training)
    if place.world_size > 1:
        shared = sums.to(place.device)
        distributed.all_reduce(shared)
        sums = shared.cpu()
    return float(sums[0] / sums[1]) if sums[1] else math.nan


class _OrderedTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """The Hugging Face Trainer on rows in a given order: one epoch of it is the whole training."""

    def __init__(
        self, *, rows: Sequence[EncodedRow], order: Sequence[int], pad_id: int, is_head_limited: bool, **options: Any
    ) -> None:
        self.rows = rows
        self.order = order
        self.pad_id = pad_id
        self.is_head_limited = is_head_limited
        self.first_step = 0
        super().__init__(train_dataset=list(rows), **options)

    def get_train_dataloader(self) -> Any:
        """Return the batches of this rank, in order; the library deals out whole micro-batches in turn."""
        rows: Any = [self.rows[index] for index in self.order]
        loader: Any = DataLoader(
            rows,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=False,
            collate_fn=self._collate,
        )
        return self.accelerator.prepare(loader)

    def _collate(self, rows: Sequence[EncodedRow]) -> dict[str, Any]:
        return collate(rows, self.pad_id, is_head_limited=self.is_head_limited)


class _Watcher(TrainerCallback):  # type: ignore[misc]
    """Seeds each step, validates at each epoch's end, asks for checkpoints, stops when the loss is no number."""

    def __init__(
        self,
        trainer: _OrderedTrainer,
        job: TrainingJob,
        place: Place,
        listeners: Listeners,
        held_out: Sequence[EncodedRow],
        epoch_steps: int,
    ) -> None:
        self._trainer = trainer
        self._job = job
        self._place = place
        self._listeners = listeners
        self._held_out = held_out
        self._epoch_steps = epoch_steps
        self._save_steps = max(MIN_STEPS_BETWEEN_CHECKPOINTS, math.ceil(epoch_steps / CHECKPOINTS_PER_EPOCH))

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Note where a resumed training goes on."""
        self._trainer.first_step = int(state.global_step)
        self._listeners.on_step(int(state.global_step))

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Make dropout a function of seed, step and rank, so that a resumed training draws the same."""
        torch.manual_seed(seed_from(self._job.seed, "dropout", state.global_step, self._place.rank))

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Validate and ask for a checkpoint where one is due."""
        step = int(state.global_step)
        is_last = step >= state.max_steps
        is_epoch_end = step % self._epoch_steps == 0
        if self._held_out and (is_last or is_epoch_end):
            was_due = control.should_log  # logging one thing counts as having logged the step
            self._trainer.log({"eval_loss": self._validate()})
            control.should_log = was_due
        control.should_save = is_last or step % self._save_steps == 0
        self._listeners.on_step(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """Stop a training that has diverged."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise RunFailedError(
                f"The training loss is {loss} at step {state.global_step}.",
                "Lower finetune.learning_rate, or use model.dtype: fp32.",
            )

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Hand the checkpoint over; every rank comes here, only the first has a folder to give."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        metrics: dict[str, Any] = {"step": int(state.global_step), "steps": int(state.max_steps)}
        for entry in state.log_history[-3:]:
            metrics.update({name: float(entry[name]) for name in ("loss", "eval_loss") if name in entry})
        self._listeners.on_checkpoint(metrics, folder if self._place.rank == 0 else None)

    def _validate(self) -> float:
        trainer = self._trainer
        with trainer.accelerator.autocast():
            return answer_loss(
                trainer.model,
                self._held_out,
                trainer.pad_id,
                2 * trainer.args.per_device_train_batch_size,
                self._place,
                is_head_limited=trainer.is_head_limited,
            )


def _build_model(job: TrainingJob, device: str) -> tuple[Any, Any]:
    if job.dtype == "fp16" and device == "cpu":
        raise ModelError("A CPU does not train in fp16.", "Set model.dtype to bf16, fp32 or auto.")
    # On a CPU the frozen weights stay in fp32 and autocast rounds them as they are used; on a GPU memory decides.
    stored: Dtype = "fp32" if device == "cpu" else job.dtype
    base = load_base_model(
        job.model,
        dtype=stored,
        quantization=job.quantization,
        revision=job.revision,
        trust_remote_code=job.trust_remote_code,
        device=device,
    )
    if device == "cpu":
        # The fused kernel's backward pass costs twice the plain products on a CPU.
        base.set_attn_implementation("eager")
    base.config.use_cache = False
    targets = lora_targets(base)
    set_seed(seed_from(job.seed, "lora") % 2**32)
    model = attach_lora(
        base,
        rank=job.settings.rank,
        alpha=job.settings.alpha,
        dropout=job.settings.dropout,
        names=targets.names,
        is_checkpointed=job.quantization != "none" and device != "cpu",
    )
    return model, targets


def _arguments(job: TrainingJob, place: Place, micro: int, accumulation: int, steps: int) -> Any:
    settings = job.settings
    is_on_cpu = place.device == "cpu"
    return TrainingArguments(
        output_dir=str(place.folder),
        use_cpu=is_on_cpu,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_ratio,  # below one it is a share of all steps
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch" if is_on_cpu else "paged_adamw_8bit",
        bf16=job.dtype == "bf16",
        fp16=job.dtype == "fp16",
        seed=seed_from(job.seed, "trainer") % 2**32,
        data_seed=seed_from(job.seed, "trainer") % 2**32,
        logging_strategy="steps",
        logging_steps=max(1, math.ceil(steps / MAX_LOG_POINTS)),
        logging_nan_inf_filter=False,
        save_strategy="no",  # the watcher asks for checkpoints
        save_total_limit=1,
        eval_strategy="no",  # the watcher validates
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not is_on_cpu,
    )


def _can_limit_head(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


def _merged_log(history: Sequence[dict[str, Any]], epoch_steps: int) -> tuple[dict[str, float], ...]:
    """Return one entry per step with step, epoch and what was logged of it; later entries win."""
    entries: dict[int, dict[str, float]] = {}
    for logged in history:
        kept: dict[str, float] = {name: float(logged[name]) for name in _LOGGED if name in logged}
        if kept:
            step = int(logged["step"])
            entries.setdefault(step, {"step": step, "epoch": step / epoch_steps}).update(kept)
    return tuple(entries[step] for step in sorted(entries))
