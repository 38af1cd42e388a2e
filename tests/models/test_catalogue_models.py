"""Each base model of the catalogue at toy size, with its own template: tuned, saved, loaded in plain peft, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_chatml import FAMILIES, make_tokenizer
from toy_models import toy_config
from training_runs import make_examples, make_job, run_training

from polypersona.chatml import encode_example, render_prompt
from polypersona.models.catalogue import BASE_MODELS, SKIPPED_IN_4BIT
from polypersona.models.loading import load_base_model, load_model, load_tokenizer
from polypersona.models.lora import attach_lora, lora_targets
from polypersona.models.quantization import linear_4bit_layers

# What tells a model from others of its family: keys and values of several heads, tied embeddings, its template.
TEMPLATES = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "zephyr",
    "microsoft/phi-2": "none",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral_v7",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "deepseek",
    "Qwen/Qwen2-1.5B-Instruct": "chatml",
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": "chatml",
    "meta-llama/Llama-2-7b-chat-hf": "llama2",
}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-1.5B-Instruct": {"tie_word_embeddings": True},
    "meta-llama/Llama-2-7b-chat-hf": {"num_key_value_heads": 4},
}


def toy_of(model_id: str, folder: Path) -> Path:
    """Save a toy of the model: its class, its peculiarities, its template."""
    from transformers import AutoModelForCausalLM

    template, tokens = FAMILIES[TEMPLATES[model_id]]
    if BASE_MODELS[model_id].thinks:
        template = template.replace(
            "{{ '<｜Assistant｜>' }}{% endif %}", "{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
        )
        assert template.endswith("<think>\\n' }}{% endif %}")
    tokenizer = make_tokenizer(template, tokens)
    config = toy_config(BASE_MODELS[model_id].family)
    for name, value in {**SHAPES.get(model_id, {}), "vocab_size": len(tokenizer) + -len(tokenizer) % 64}.items():
        setattr(config, name, value)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = None, tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == BASE_MODELS[model_id].class_name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return {model_id: toy_of(model_id, folder / str(number)) for number, model_id in enumerate(TEMPLATES)}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 35).reshape(2, 16)).logits.float()


def falls(log: Any) -> bool:
    """Whether the second epoch's loss is below the first's; single steps see different rows."""
    losses = [entry["loss"] for entry in log]
    half = len(losses) // 2
    return sum(losses[half:]) / (len(losses) - half) < sum(losses[:half]) / half


def test_every_model_of_table_two_has_a_toy() -> None:
    assert set(TEMPLATES) == set(BASE_MODELS) - {"tiny"}
    assert {name for name in TEMPLATES if TEMPLATES[name] == "none"} == {
        name for name, model in BASE_MODELS.items() if not model.has_chat_template
    }


@pytest.mark.slow
@pytest.mark.parametrize("model_id", TEMPLATES)
def test_it_is_tuned_loads_in_plain_peft_and_merges_into_the_full_base(
    model_id: str, toys: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = str(toys[model_id])
    outcome, saved = run_training(
        make_job(toys[model_id], epochs=2, learning_rate=2e-2, dropout=0.0, validation_rows=0), tmp_path
    )
    adapter = saved[outcome.steps]
    assert outcome.targets == BASE_MODELS[model_id].lora_targets
    assert not outcome.targets_inferred
    assert falls(outcome.log)
    stored = load_file(adapter / "adapter_model.safetensors")
    reached = {name.rpartition(".lora_B")[0].rpartition(".")[2] for name, weight in stored.items() if "lora_B" in name}
    assert reached == set(BASE_MODELS[model_id].lora_targets)
    assert all(bool(weight.abs().max() > 0) for name, weight in stored.items() if "lora_B" in name)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter).eval()
    merged = load_model(base, dtype="fp32", adapter=str(adapter))
    assert (logits(merged) - logits(plain)).abs().max() <= 1e-5
    assert (logits(merged) - logits(load_base_model(base, dtype="fp32"))).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model_id", TEMPLATES)
def test_it_is_tuned_in_4_bits_with_its_skip_list_in_full_precision(
    model_id: str, toys: dict[str, Path], tmp_path: Path
) -> None:
    job = make_job(toys[model_id], epochs=2, learning_rate=2e-2, quantization="nf4", dropout=0.0, validation_rows=0)
    outcome, saved = run_training(job, tmp_path)
    assert falls(outcome.log)
    answering = load_model(str(toys[model_id]), dtype="fp32", quantization="nf4", adapter=str(saved[outcome.steps]))
    assert linear_4bit_layers(answering)
    kept = {name.rpartition(".")[2] for name, module in answering.named_modules() if type(module).__name__ == "Linear"}
    assert kept & set(SKIPPED_IN_4BIT)
    assert bool(torch.isfinite(logits(answering)).all())


@pytest.mark.parametrize("model_id", TEMPLATES)
def test_its_prompts_follow_its_template_and_open_no_thought(model_id: str, toys: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(str(toys[model_id]))
    messages = make_examples(1)[0].messages
    prompt = render_prompt(tokenizer, messages[:-1])
    openings = {
        "zephyr": "<|assistant|>\n", "none": "<|im_start|>assistant\n", "mistral_v7": "[/INST]",
        "deepseek": "<｜Assistant｜>", "chatml": "<|im_start|>assistant\n", "llama2": "[/INST]",
    }  # fmt: skip
    assert prompt.rstrip(" ").endswith(openings[TEMPLATES[model_id]])
    assert "<think>" not in prompt
    encoded = encode_example(tokenizer, messages)
    assert encoded


def test_the_embedded_model_is_tuned_too(tmp_path: Path) -> None:
    model = attach_lora(load_base_model("tiny", dtype="fp32"), rank=4, alpha=8, dropout=0.0)
    assert lora_targets(model.get_base_model()).names == BASE_MODELS["tiny"].lora_targets
    ids = torch.arange(3, 35).reshape(2, 16)
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    merged = load_model("tiny", dtype="fp32", adapter=str(tmp_path))
    assert (logits(merged) - logits(model)).abs().max() <= 1e-3
