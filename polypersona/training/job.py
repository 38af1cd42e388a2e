"""What a training is told and what it tells: values only, so that a driver need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polypersona.recipe import Recipe
from polypersona.recipe_sections import FinetuneSettings, finetune_settings

# Raised when the same job would make another adapter.
TRAINING_VERSION = 3


def content_of(recipe: Recipe) -> dict[str, Any]:
    """Return what of an adapter's content the recipe says by itself, flat: all but data, weights and precision."""
    settings = finetune_settings(recipe.finetune).model_dump(mode="json")
    return {
        "model.base": recipe.model.base,
        "seed": recipe.seed,
        **{f"finetune.{name}": value for name, value in settings.items()},
    }


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is trained. Everything up to `trust_remote_code` decides the adapter; the rest is how it is computed.

    `model` is what `load_model` takes; `base_name` is what the adapter records as its base. `micro_batch` are rows of
    one forward on one worker, None for the settings' batch size; a worker that runs out of memory goes on with fewer.
    None for `checkpointing`, `optimizer` and `attention` is by device: a quantised base is checkpointed on a GPU; AdamW
    keeps 8-bit pages on a GPU and plain states on a CPU; a CPU multiplies attention out ("eager"), a GPU fuses it.
    On a CPU `keeps_freed` trades memory for speed (`models.allocator`).
    """

    model: str
    base_name: str
    settings: FinetuneSettings
    seed: int
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    quantization: Literal["none", "int8", "nf4"] = "none"
    revision: str | None = None
    trust_remote_code: bool = False
    threads: int = 1
    micro_batch: int | None = None
    checkpointing: bool | None = None
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"] | None = None
    attention: Literal["eager", "sdpa"] | None = None
    keeps_freed: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a training, besides its last checkpoint.

    `log` has one entry per logged step: step, epoch, loss, learning_rate, grad_norm, and where the adapter was
    validated eval_loss and the scores of what it wrote. `first_step` is above 0 where a checkpoint was resumed;
    `seconds` and `attempt_tokens` are this attempt's; the other token counts are of all steps. Padding is excluded.
    `num_shortened` prompts, of training and validation, were longer than a row may be and lost their head. `batch_size`
    and `accumulation` are those of the last step of the first worker. `shortages` are its changes of the micro-batch
    for want of memory. `attempts` are all starts, as `checkpoints.State` has them. `best` says which step's adapter was
    kept and why, None for the last one's. `is_stopped_early` says that `steps` is less than was planned, because
    validation no longer improved.
    """

    log: tuple[dict[str, float], ...]
    steps: int
    first_step: int
    seconds: float
    tokens: int
    attempt_tokens: int
    answer_tokens: int
    num_shortened: int
    batch_size: int
    accumulation: int
    world_size: int
    num_trainable: int
    targets: tuple[str, ...]
    targets_inferred: bool
    shortages: tuple[dict[str, Any], ...] = ()
    attempts: tuple[dict[str, Any], ...] = ()
    best: dict[str, Any] | None = None
    is_stopped_early: bool = False
