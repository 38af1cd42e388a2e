"""The shape of a language model, as far as its memory depends on it: layers by size, heads, vocabulary.

`shape_from_config` reads it from the content of a config.json for the families of the catalogue; `models.shapes` knows
those of the catalogue and builds any other model on torch's meta device. Pure: no file, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HEAD = "lm_head"
_Names = tuple[tuple[str, ...], tuple[str, ...]]  # LoRA targets, what stays unquantised


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` linear layers of one name and size; `count` is 0 for a head that shares the embedding's weights."""

    name: str
    in_features: int
    out_features: int
    count: int
    has_bias: bool = False

    @property
    def num_weights(self) -> int:
        """Weights of all of them, biases left out."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model's memory depends on.

    Attributes:
        family: the `model_type` of its config.json.
        stored_dtype: the precision its weights are published in: fp32, bf16 or fp16.
        hidden_size: width of the residual stream.
        num_layers: decoder layers.
        num_heads: attention heads of a layer.
        num_kv_heads: those whose keys and values are kept.
        head_dim: width of a head.
        mlp_size: width between a layer's up and down projections, for one token: all experts that it passes.
        is_gated: whether the MLP multiplies an activated projection with a second one.
        vocab_size: rows of the head.
        linears: the linear layers, the head among them.
        num_other: parameters outside of linear layers' weights: embeddings, norms, biases, fused experts.
        lora_targets: names of the linear layers an adapter is attached to.
        unquantised: names of the linear layers that keep their precision where the others are quantised.
        is_stored_quantised: whether the published weights are quantised already (AWQ, GPTQ and the like), so that their
            size does not follow from the shape.
    """

    family: str
    stored_dtype: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    is_gated: bool
    vocab_size: int
    linears: tuple[Linear, ...]
    num_other: int
    lora_targets: tuple[str, ...]
    unquantised: tuple[str, ...]
    is_stored_quantised: bool = False

    @property
    def num_parameters(self) -> int:
        """All parameters, shared ones once."""
        return self.num_other + sum(linear.num_weights for linear in self.linears)

    @property
    def bytes_16(self) -> int:
        """Bytes of all parameters in 16 bits."""
        return 2 * self.num_parameters

    @property
    def attention_size(self) -> int:
        """Width of all heads of a layer."""
        return self.num_heads * self.head_dim


def shape_from_config(
    config: Mapping[str, Any], targets: tuple[str, ...], unquantised: tuple[str, ...]
) -> ModelShape | None:
    """Return the shape that a config.json describes; None where its family is not one of those read here.

    Args:
        config: its content; a key left out has the default of the transformers library.
        targets: names of the layers an adapter is attached to.
        unquantised: names of the layers that are never quantised.
    """
    read = _READERS.get(str(config.get("model_type")))
    return read(config, (targets, unquantised)) if read else None


def _llama(config: Mapping[str, Any], names: _Names) -> ModelShape:
    """Llama, Mistral and Qwen2: RMS norms, rotary attention, a gated MLP; Qwen2 has biases at q, k and v."""
    hidden, layers, inner = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    has_bias = config["model_type"] == "qwen2" or bool(config.get("attention_bias"))
    attention = _attention(config, "o_proj", has_bias=has_bias, has_out_bias=bool(config.get("attention_bias")))
    mlp = _gated_mlp(hidden, inner, layers, has_bias=bool(config.get("mlp_bias")))
    return _build(config, names, (*attention, *mlp), inner, num_norms=hidden * (2 * layers + 1))


def _qwen2_moe(config: Mapping[str, Any], names: _Names) -> ModelShape | None:
    """Qwen2-MoE: routed experts are fused into parameters of no linear layer; one shared expert is made of linears."""
    if int(config.get("decoder_sparse_step", 1)) != 1 or config.get("mlp_only_layers"):
        return None
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    inner, shared = int(config["moe_intermediate_size"]), int(config["shared_expert_intermediate_size"])
    experts, chosen = int(config["num_experts"]), int(config["num_experts_per_tok"])
    has_bias = bool(config.get("qkv_bias", True))
    linears = (
        *_attention(config, "o_proj", has_bias=has_bias, has_out_bias=False),
        *_gated_mlp(hidden, shared, layers, has_bias=False),
        Linear("shared_expert_gate", hidden, 1, layers),
    )
    routed = layers * (3 * inner * hidden * experts + experts * hidden)
    norms = hidden * (2 * layers + 1)
    return _build(config, names, linears, chosen * inner + shared, num_norms=norms + routed)


def _phi(config: Mapping[str, Any], names: _Names) -> ModelShape:
    """Phi: one layer norm a layer, attention and an ungated MLP beside each other, biases everywhere."""
    hidden, layers, inner = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    linears = (
        *_attention(config, "dense", has_bias=True, has_out_bias=True),
        Linear("fc1", hidden, inner, layers, has_bias=True),
        Linear("fc2", inner, hidden, layers, has_bias=True),
    )
    norms = 2 * hidden * (layers + 1)
    return _build(config, names, linears, inner, num_norms=norms, is_gated=False, has_head_bias=True)


_READERS: Mapping[str, Callable[[Mapping[str, Any], _Names], ModelShape | None]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen2_moe": _qwen2_moe,
    "phi": _phi,
}
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _attention(config: Mapping[str, Any], out: str, *, has_bias: bool, has_out_bias: bool) -> tuple[Linear, ...]:
    hidden, layers, heads = int(config["hidden_size"]), int(config["num_hidden_layers"]), _num_heads(config)
    size, kept = heads * _head_dim(config), _num_kv_heads(config) * _head_dim(config)
    return (
        Linear("q_proj", hidden, size, layers, has_bias),
        Linear("k_proj", hidden, kept, layers, has_bias),
        Linear("v_proj", hidden, kept, layers, has_bias),
        Linear(out, size, hidden, layers, has_out_bias),
    )


def _gated_mlp(hidden: int, inner: int, layers: int, *, has_bias: bool) -> tuple[Linear, ...]:
    return (
        Linear("gate_proj", hidden, inner, layers, has_bias),
        Linear("up_proj", hidden, inner, layers, has_bias),
        Linear("down_proj", inner, hidden, layers, has_bias),
    )


def _build(
    config: Mapping[str, Any],
    names: _Names,
    linears: tuple[Linear, ...],
    mlp_size: int,
    *,
    num_norms: int,
    is_gated: bool = True,
    has_head_bias: bool = False,
) -> ModelShape:
    hidden, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    head = Linear(HEAD, hidden, vocab, 0 if config.get("tie_word_embeddings") else 1, has_head_bias)
    biases = sum(linear.out_features * linear.count for linear in linears if linear.has_bias)
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "float32")
    return ModelShape(
        family=str(config["model_type"]),
        stored_dtype=_DTYPES.get(dtype, "fp32"),
        is_stored_quantised=config.get("quantization_config") is not None,
        hidden_size=hidden,
        num_layers=int(config["num_hidden_layers"]),
        num_heads=_num_heads(config),
        num_kv_heads=_num_kv_heads(config),
        head_dim=_head_dim(config),
        mlp_size=mlp_size,
        is_gated=is_gated,
        vocab_size=vocab,
        linears=(*linears, head),
        num_other=hidden * vocab + num_norms + biases + (vocab if has_head_bias else 0),
        lora_targets=names[0],
        unquantised=names[1],
    )


def _num_heads(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"])


def _num_kv_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or _num_heads(config))


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or int(config["hidden_size"]) // _num_heads(config))
