"""Every family of the catalogue at toy size: attach, train a step, save, load in plain peft, merge, train in 4 bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import FAMILIES, make_toy_model, toy_config

from polypersona.errors import ModelError
from polypersona.models.catalogue import BASE_MODELS, FAMILY_TARGETS
from polypersona.models.loading import load_base_model, load_model, num_parameters
from polypersona.models.lora import attach_lora, check_targets, lora_targets
from polypersona.models.quantization import linear_4bit_layers

IDS = torch.arange(3, 35).reshape(2, 16)


def train_steps(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    model.train()
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: make_toy_model(family, folder / family) for family in FAMILIES}


def make_adapter(base: Path, folder: Path) -> tuple[Path, torch.Tensor]:
    model = attach_lora(load_base_model(str(base), dtype="fp32"), rank=4, alpha=8, dropout=0.05)
    train_steps(model)
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_trains_saves_loads_in_plain_peft_and_merges(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, trained = make_adapter(bases[family], tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[family], dtype="float32"), adapter)
    assert (logits(plain.eval()) - trained).abs().max() <= 1e-5
    merged = load_model(str(bases[family]), dtype="fp32", adapter=str(adapter))
    assert not hasattr(merged, "peft_config")
    assert (logits(merged) - trained).abs().max() <= 1e-5
    assert (logits(load_base_model(str(bases[family]), dtype="fp32")) - trained).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_target_name_reaches_a_layer(family: str, bases: dict[str, Path]) -> None:
    model = attach_lora(load_base_model(str(bases[family]), dtype="fp32"), rank=4, alpha=8, dropout=0)
    reached = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert reached == set(FAMILY_TARGETS[family])
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_trains_with_gradients_even_after_an_evaluation(family: str, bases: dict[str, Path]) -> None:
    model = load_base_model(str(bases[family]), dtype="fp32", quantization="nf4")
    model = attach_lora(model, rank=4, alpha=8, dropout=0.0)
    assert len(linear_4bit_layers(model)) > 0
    before = logits(model.eval())
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if "lora_B" in name}
    silent = [name for name, gradient in gradients.items() if gradient is None or gradient.abs().max() == 0]
    assert gradients
    assert silent == []
    train_steps(model)
    assert (logits(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_model_keeps_its_adapter_beside_it(
    quantization: Any, bases: dict[str, Path], tmp_path: Path
) -> None:
    adapter, trained = make_adapter(bases["llama"], tmp_path / "adapter")
    model = load_model(str(bases["llama"]), dtype="bf16", quantization=quantization, adapter=str(adapter))
    assert hasattr(model, "peft_config")
    bare = logits(load_model(str(bases["llama"]), dtype="bf16", quantization=quantization))
    assert (logits(model) - trained).abs().mean() < (bare - trained).abs().mean()


def test_nf4_answers_with_layers_whose_shape_the_cpu_kernel_refuses(tmp_path: Path) -> None:
    base = make_toy_model("llama", tmp_path / "odd", hidden=48)
    model = load_model(str(base), dtype="fp32", quantization="nf4")
    full = logits(load_model(str(base), dtype="fp32"))
    assert (logits(model) - full).abs().max() < 0.2


def test_a_4bit_model_that_has_answered_is_not_trained(bases: dict[str, Path]) -> None:
    model = load_base_model(str(bases["llama"]), dtype="fp32", quantization="nf4")
    layer = linear_4bit_layers(model)[0]
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="already answered"):
        attach_lora(model, rank=4, alpha=8, dropout=0.0)


def test_the_merged_weights_are_rounded_once(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter, _ = make_adapter(bases["llama"], tmp_path / "adapter")
    exact = load_model(str(bases["llama"]), dtype="fp32", adapter=str(adapter))
    rounded = load_model(str(bases["llama"]), dtype="bf16", adapter=str(adapter))
    for (name, one), (_, other) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other), name
    assert {buffer.dtype for buffer in rounded.buffers()} == {torch.float32}


def test_a_target_that_matches_nothing_is_an_error(bases: dict[str, Path]) -> None:
    model = load_base_model(str(bases["phi"]), dtype="fp32")
    with pytest.raises(ModelError, match="'o_proj' matches no layer of PhiForCausalLM"):
        check_targets(model, FAMILY_TARGETS["llama"])


def test_another_family_gets_every_linear_layer_but_the_head() -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    targets = lora_targets(AutoModelForCausalLM.from_config(config))
    assert targets.is_inferred
    assert set(targets.names) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_without_weights(family: str, bases: dict[str, Path]) -> None:
    model = load_base_model(str(bases[family]), dtype="fp32")
    assert num_parameters(str(bases[family])) == sum(weight.numel() for weight in model.parameters())


def test_the_catalogue_knows_the_seven_models_and_tiny() -> None:
    assert len(BASE_MODELS) == 8
    assert {model.family for model in BASE_MODELS.values()} == set(FAMILIES)
    for model in BASE_MODELS.values():
        assert toy_config(model.family).architectures in (None, [model.class_name])
