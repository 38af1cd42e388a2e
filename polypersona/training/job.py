"""What a training is told and what it tells: values only, so that a driver need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polypersona.recipe_sections import FinetuneSettings

# Raised when the same job would make another adapter.
TRAINING_VERSION = 1


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is trained. Everything but `threads` decides the adapter.

    `model` is what `load_model` takes; `base_name` is what the adapter records as its base.
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a training, besides its last checkpoint.

    `log` has one entry per logged step: step, epoch, loss, learning_rate, grad_norm, and eval_loss where it was
    measured. `first_step` is above 0 where a checkpoint was resumed; `seconds` are this attempt's. Token counts are
    those of the whole training, padding excluded. `num_shortened` prompts, of training and validation, were
    longer than a row may be and lost their head.
    """

    log: tuple[dict[str, float], ...]
    steps: int
    first_step: int
    seconds: float
    tokens: int
    answer_tokens: int
    num_shortened: int
    batch_size: int
    accumulation: int
    world_size: int
    num_trainable: int
    targets: tuple[str, ...]
    targets_inferred: bool
