"""The memory model against what torch keeps: pytest tests/training/test_memory_model.py"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import make_toy_tokenizer, toy_config

from polypersona.models.shapes import load_shape
from polypersona.recipe_sections import FinetuneSettings
from polypersona.scheduling.memory import TrainSetup, adapter_parameters, layer_bytes, train_memory, weight_bytes
from polypersona.training.encoding import EncodedRow, collate
from polypersona.training.job import TrainingJob
from polypersona.training.trainable import build_trainable

ROWS, TOKENS = 2, 96
PLAIN = TrainSetup(ROWS, TOKENS, 8, "fp32", "none", False, "adamw_torch", "eager", False, 8, 0.0)
CASES = [
    ("llama", PLAIN),
    ("llama", replace(PLAIN, dtype="bf16", dropout=0.05)),
    ("qwen2", replace(PLAIN, dtype="bf16", attention="sdpa")),
    ("mistral", replace(PLAIN, dtype="bf16", quantization="nf4")),
    ("phi", PLAIN),
    ("llama", replace(PLAIN, is_checkpointed=True)),
]


def build(family: str, num_layers: int, folder: Path, setup: TrainSetup) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    known = toy_config(family, hidden=128)
    known.num_hidden_layers = num_layers
    if hasattr(known, "layer_types"):
        known.layer_types = [known.layer_types[0]] * num_layers
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(known).save_pretrained(folder)
    make_toy_tokenizer().save_pretrained(folder)
    settings = FinetuneSettings(
        epochs=1, learning_rate=1e-3, rank=setup.rank, alpha=16, dropout=setup.dropout, batch_size=ROWS,
        accumulation=1, max_length=TOKENS,
    )  # fmt: skip
    job: Any = TrainingJob(
        str(folder), str(folder), settings, seed=1, dtype=setup.dtype, quantization=setup.quantization,
        checkpointing=setup.is_checkpointed, attention=setup.attention,
    )  # fmt: skip
    return build_trainable(job, "cpu"), load_shape(str(folder))


def saved_bytes(trainable: Any) -> int:
    """Return the bytes that a forward keeps for its backward, weights and their rounded copies apart."""
    known = {parameter.untyped_storage().data_ptr() for parameter in trainable.model.parameters()}
    weights = {tuple(parameter.shape) for parameter in trainable.model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tuple(tensor.shape) not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    batch = collate([EncodedRow((5,) * TOKENS, 8)] * ROWS, 0)
    trainable.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainable.summed_loss(batch)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("family", "setup"), CASES)
def test_a_layer_keeps_what_the_formula_says(family: str, setup: TrainSetup, tmp_path: Path) -> None:
    few, _ = build(family, 2, tmp_path / "few", setup)
    more, shape = build(family, 4, tmp_path / "more", setup)
    measured = (saved_bytes(more) - saved_bytes(few)) / 2 / (ROWS * TOKENS)
    predicted = 4 * shape.hidden_size if setup.is_checkpointed else layer_bytes(shape, setup)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(("family", "quantization"), [("llama", "none"), ("qwen2_moe", "nf4"), ("phi", "int8")])
def test_weights_and_adapter_take_what_the_formula_says(family: str, quantization: str, tmp_path: Path) -> None:
    setup = replace(PLAIN, dtype="bf16", quantization=quantization)
    trainable, shape = build(family, 2, tmp_path, setup)
    base = [one for name, one in trainable.model.named_parameters() if "lora_" not in name]
    held = sum(one.untyped_storage().nbytes() for one in base)
    for module in trainable.model.modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            held += state.absmax.nbytes + state.state2.absmax.nbytes
        elif type(module).__name__ == "Linear8bitLt":
            held += module.weight.SCB.nbytes
    assert weight_bytes(shape, "bf16", quantization, rest_dtype="fp32", skipped_dtype="bf16") == pytest.approx(
        held, rel=0.02
    )
    assert sum(one.numel() for one in trainable.parameters) == adapter_parameters(shape, setup.rank)


def test_what_should_save_memory_saves_it(tmp_path: Path) -> None:
    _, shape = build("llama", 2, tmp_path, PLAIN)
    large = replace(shape, num_layers=24)
    long = replace(PLAIN, tokens=512, micro_batch=8)
    whole = train_memory(large, long).needed
    for smaller in (
        replace(long, is_checkpointed=True), replace(long, attention="sdpa"), replace(long, micro_batch=4),
        replace(long, tokens=256), replace(long, dtype="bf16"), replace(long, rank=2),
    ):  # fmt: skip
        assert train_memory(large, smaller).needed < whole
    assert train_memory(large, replace(long, keeps_freed=True)).needed > whole
    assert train_memory(large, replace(long, dropout=0.1)).needed > whole
