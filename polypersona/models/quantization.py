"""int8 and 4-bit loading with bitsandbytes, and the guards its CPU kernels need.

On a CPU with AVX512-BF16, bitsandbytes repacks a 4-bit layer at its first forward in eval mode, for a faster kernel.
The kernel wants shapes that not every layer has, has no backward (gradients behind it are None, without an error), and
a merge into repacked weights gives garbage. So it stays on for answering only, and only where the shape allows it.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import torch

from polypersona.errors import ModelError
from polypersona.models.catalogue import SKIPPED_IN_4BIT

Quantization = Literal["none", "int8", "nf4"]
# bitsandbytes.functional: rows are packed by 32; scales are laid out by whole blocks of 64 columns.
_CPU_KERNEL_ROWS = 32
_CPU_KERNEL_COLUMNS = 64


def quantization_config(quantization: Quantization) -> Any:
    """Return the transformers configuration: None, LLM.int8, or nf4 with double quantisation and bf16 compute."""
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(SKIPPED_IN_4BIT))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(SKIPPED_IN_4BIT),
    )


def silence_bitsandbytes() -> None:
    """Drop the warning that int8 layers repeat at every call on a CPU, and the note on an optional kernel package."""
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast", category=UserWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def prepare_for_answering(model: torch.nn.Module) -> None:
    """Keep the repacking CPU kernel to the 4-bit layers whose shape it takes."""
    for layer in linear_4bit_layers(model):
        rows, columns = layer.out_features, layer.in_features
        if rows % _CPU_KERNEL_ROWS or columns % _CPU_KERNEL_COLUMNS:
            layer.support_avx512bf16_for_cpu = False


def prepare_for_training(model: torch.nn.Module) -> None:
    """Switch the repacking CPU kernel off, so that gradients flow and evaluations in between change nothing.

    Raises:
        ModelError: a layer was already repacked by a forward in eval mode.
    """
    for layer in linear_4bit_layers(model):
        _refuse_repacked(layer, "trained")
        layer.support_avx512bf16_for_cpu = False


def refuse_4bit_merge(model: torch.nn.Module) -> None:
    """Refuse to merge an adapter into quantised weights, which would requantise them.

    Raises:
        ModelError: the model has a quantised layer.
    """
    if quantised_layers(model):
        raise ModelError(
            "An adapter cannot be merged into a quantised model without changing its answers.",
            "Load the base with quantization none and merge there.",
        )


def linear_4bit_layers(model: torch.nn.Module) -> list[Any]:
    """Return the model's bitsandbytes 4-bit layers."""
    return [module for module in model.modules() if type(module).__name__ == "Linear4bit"]


def quantised_layers(model: torch.nn.Module) -> list[Any]:
    """Return the model's quantised layers of either width."""
    return [module for module in model.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]


def _refuse_repacked(layer: Any, purpose: str) -> None:
    if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ModelError(
            f"A 4-bit model that has already answered on this CPU cannot be {purpose}: its weights are repacked.",
            "Load the model again.",
        )
