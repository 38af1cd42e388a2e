"""The shapes of models that memory is planned from: those of the catalogue as data, a folder's from its config.json.

A family that `shape_from_config` does not read is built on torch's meta device, where no weight is read or held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polypersona.errors import ModelError
from polypersona.models.catalogue import FAMILY_TARGETS, SKIPPED_IN_4BIT
from polypersona.models.location import is_hub_id, locate_model, read_config
from polypersona.scheduling.model_shape import HEAD, Linear, ModelShape, shape_from_config

_QWEN2 = {
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "dtype": "bfloat16",
}  # fmt: skip
# The config.json of the catalogue's models, in what decides their memory.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "dtype": "bfloat16",
    },
    "microsoft/phi-2": {
        "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 51200, "dtype": "float16",
    },
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "dtype": "bfloat16",
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {**_QWEN2, "tie_word_embeddings": False},
    "Qwen/Qwen2-1.5B-Instruct": {**_QWEN2, "tie_word_embeddings": True},
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "dtype": "bfloat16",
    },
    "meta-llama/Llama-2-7b-chat-hf": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "dtype": "float16",
    },
}  # fmt: skip


def load_shape(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of a model by name, folder or hub id; reads no weight.

    Raises:
        ModelError: no such model, no configuration in it, or the hub cannot be reached.
    """
    location = locate_model(model)
    if is_hub_id(location):
        config = CONFIGS.get(location, {}) if revision is None else {}
    else:
        config = read_config(Path(location) / "config.json")
    targets = FAMILY_TARGETS.get(str(config.get("model_type")), ())
    try:
        shape = shape_from_config(config, targets, SKIPPED_IN_4BIT) if targets else None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The config.json of {location} does not describe a model: {type(error).__name__} {error}.",
            "Restore the file.",
        ) from error
    return shape or measure_shape(location, revision=revision, trust_remote_code=trust_remote_code)


def measure_shape(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Return a model's shape from its layers on the meta device.

    Raises:
        ModelError: no such model, or the hub cannot be reached.
    """
    from polypersona.models.loading import build_on_meta

    return shape_of(build_on_meta(model, revision=revision, trust_remote_code=trust_remote_code))


def shape_of(model: Any) -> ModelShape:
    """Return the shape of a model that is built, on whatever device.

    Raises:
        ModelError: its configuration names no layers or heads, or it has no linear layer to attach an adapter to.
    """
    from polypersona.models.lora import lora_targets

    config = model.config.get_text_config()
    heads, hidden = _named(config, "num_attention_heads", "n_head"), _named(config, "hidden_size", "n_embd")
    layers, linears = _named(config, "num_hidden_layers", "n_layer"), _linears(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    inner = getattr(config, "intermediate_size", None) or max(linear.out_features for linear in linears[:-1])
    chosen, expert_size, shared = (
        int(getattr(config, name, 0) or 0)
        for name in ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    )
    return ModelShape(
        family=str(config.model_type),
        is_stored_quantised=getattr(config, "quantization_config", None) is not None,
        stored_dtype={"float16": "fp16", "bfloat16": "bf16"}.get(str(config.dtype).removeprefix("torch."), "fp32"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        mlp_size=chosen * expert_size + shared if chosen and expert_size else int(inner),
        is_gated=any("gate" in linear.name for linear in linears),
        vocab_size=int(config.vocab_size),
        linears=linears,
        num_other=total - sum(linear.num_weights for linear in linears),
        lora_targets=lora_targets(model).names,
        unquantised=SKIPPED_IN_4BIT,
    )


def _linears(model: Any) -> tuple[Linear, ...]:
    """Return the linear layers by name and size, the head last; a head that shares the embedding's weights counts 0."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    counts: Counter[tuple[str, int, int, bool]] = Counter()
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and module is not head:
            size = tuple(module.weight.shape)
            rows, columns = size if type(module).__name__ == "Linear" else size[::-1]
            counts[name.rpartition(".")[2], columns, rows, module.bias is not None] += 1
    found = [Linear(name, ins, outs, count, has_bias) for (name, ins, outs, has_bias), count in counts.items()]
    rows, columns = head.weight.shape
    is_tied = head.weight is table.weight
    return (*found, Linear(HEAD, columns, rows, 0 if is_tied else 1, getattr(head, "bias", None) is not None))


def _named(config: Any, *names: str) -> int:
    for name in names:
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(
        f"The configuration of a {config.model_type} model has no {names[0]}, so its memory cannot be planned.",
        "Choose another base model.",
    )
