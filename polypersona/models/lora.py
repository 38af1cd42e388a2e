"""Which layers of a model an adapter is attached to, and the attaching itself.

The catalogue's families have fixed target names; any other model gets every linear layer except its head. A name that
matches nothing is refused, because peft ignores it silently where another name matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from polypersona.errors import ModelError, nearest
from polypersona.models.adapters import quiet_peft
from polypersona.models.catalogue import FAMILY_TARGETS, SKIPPED_IN_4BIT
from polypersona.models.quantization import prepare_for_training, quantised_layers

_LINEAR = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """Names of layers, and whether they were read from the model because the catalogue does not know its family."""

    names: tuple[str, ...]
    is_inferred: bool


def lora_targets(model: Any) -> LoraTargets:
    """Return the target names of a model, from its family or from its linear layers.

    Raises:
        ModelError: the family is unknown and the model has no linear layer beside its head.
    """
    family = str(getattr(getattr(model, "config", None), "model_type", ""))
    if family in FAMILY_TARGETS:
        return LoraTargets(FAMILY_TARGETS[family], is_inferred=False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if type(module).__name__ in _LINEAR and module is not head
        }
        - set(SKIPPED_IN_4BIT)
    )
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no linear layer that LoRA could be attached to.", "Choose another base model."
        )
    return LoraTargets(tuple(names), is_inferred=True)


def check_targets(model: Any, names: tuple[str, ...]) -> None:
    """Refuse a target name that matches no layer.

    Raises:
        ModelError: the first such name, with those the model has.
    """
    linear = sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in _LINEAR}
    )
    for name in names:
        if name not in linear:
            raise ModelError(
                f"The LoRA target {name!r} matches no layer of {type(model).__name__}.{nearest(name, linear)}",
                f"Its linear layers are {', '.join(linear)}.",
            )


def attach_lora(
    model: Any,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    names: tuple[str, ...] = (),
    is_checkpointed: bool = False,
) -> Any:
    """Return the model with a new adapter of zero effect on its target layers; only the adapter is trainable, in fp32.

    Each target layer W becomes W + (alpha / rank) B·A with A (rank, in) drawn at random and B (out, rank) zero.

    Raises:
        ModelError: a target that matches no layer, or a 4-bit model that has answered before.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    targets = names or lora_targets(model).names
    check_targets(model, targets)
    prepare_for_training(model)
    if quantised_layers(model):
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=is_checkpointed, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        bias="none",
    )
    with quiet_peft():
        attached = get_peft_model(model, config)
    for parameter in attached.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return attached
