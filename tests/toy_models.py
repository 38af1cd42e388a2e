"""Toy base models with random weights and a small tokenizer, one per family: what a real folder has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen2_moe", "phi")
VOCABULARY = 384
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "You are a survey respondent. Stay in character and answer in the first person.",
    "Persona: age: 44 gender: female work: full time income: middle area: city politics: moderate",
    "Domain: healthcare Question: How satisfied are you with the care? Options: Very dissatisfied; Satisfied; No; Yes.",
    "Satisfied. As a nurse of 44 I see how hard the staff work. Disagree. I am retired and money is tight.",
)


def make_toy_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer of at most 384 entries with ChatML tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = template
    fast.model_max_length = 512
    return fast


def toy_config(family: str, hidden: int = 64) -> Any:
    """A two-layer configuration whose widths suit the 4-bit kernels (multiples of 64)."""
    from transformers import LlamaConfig, MistralConfig, PhiConfig, Qwen2Config, Qwen2MoeConfig

    shared = {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family == "phi":
        return PhiConfig(**{**shared, "num_key_value_heads": 4}, partial_rotary_factor=0.5)
    if family == "qwen2_moe":
        return Qwen2MoeConfig(
            **{**shared, "num_key_value_heads": 4}, moe_intermediate_size=64, shared_expert_intermediate_size=64,
            num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
        )  # fmt: skip
    return {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[family](**shared)


def make_toy_model(family: str, folder: Path, *, seed: int = 0, hidden: int = 64) -> Path:
    """Save a model of the family with random weights and its tokenizer into the folder, and return it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(toy_config(family, hidden))
    model.save_pretrained(folder)
    make_toy_tokenizer().save_pretrained(folder)
    return folder
