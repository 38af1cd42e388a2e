"""From a gradient to a step: the learning rate of each step, clipping, AdamW on either device. Knows no row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from polypersona.recipe_sections import FinetuneSettings
from polypersona.training.job import TrainingJob


def learning_rate(step: int, steps: int, settings: FinetuneSettings) -> float:
    """Return the rate of a step, counted from 0: a linear warm-up from zero, then half a cosine down to zero.

    With w = ⌈warmup_ratio · steps⌉ it is lr · s/w for s < w, else lr · ½(1 + cos(π (s − w)/(steps − w))) (Loshchilov
    and Hutter, 2017), as transformers' `get_cosine_schedule_with_warmup` has it.
    """
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return settings.learning_rate * step / max(1, warmup)
    share = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * share)))


def build_optimizer(job: TrainingJob, parameters: Sequence[torch.nn.Parameter], device: str) -> Any:
    """Return AdamW over the adapter: with plain states, or 8-bit ones in pages that leave the GPU when it is full.

    The pages are CUDA's; on a CPU the 8-bit states only cost precision, so a CPU gets plain ones, whatever is asked.
    """
    kind = job.optimizer or ("adamw_torch" if device == "cpu" else "paged_adamw_8bit")
    options: dict[str, Any] = {"lr": job.settings.learning_rate, "weight_decay": job.settings.weight_decay}
    if kind == "paged_adamw_8bit" and device != "cpu":
        from bitsandbytes.optim import PagedAdamW8bit

        return PagedAdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def clip(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Scale the gradient down to the norm and return the norm it had, without waiting for the device."""
    norm: torch.Tensor = torch.linalg.vector_norm(gradient)
    gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
