"""The decoder of Llama, Mistral and Qwen2 with fewer and larger operations, over the weights of the stock modules.

Queries, keys and values come from one product, so do gate and up; on a CPU the weights are laid out once for oneDNN.
In the last layer only tokens whose hidden state is asked for go through the feed-forward part. Weights that are
quantised or carry an adapter stay with the stock modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from polypersona.decoding.attention import Attention
from polypersona.decoding.cache import CacheShape
from polypersona.decoding.native import Kernels, load_kernels

FUSED_FAMILIES = ("llama", "mistral", "qwen2")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
Linear = Callable[[torch.Tensor], torch.Tensor]


def can_fuse(base: Any) -> bool:
    """Return whether the model's layers are those this decoder computes, in plain weights."""
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in FUSED_FAMILIES or config.hidden_act != "silu":
        return False
    if rope.get("rope_type", "default") not in _STATIC_ROPE:
        return False
    layers = base.get_decoder().layers
    linears = (
        module for layer in layers for module in layer.modules() if hasattr(module, "weight") and module.weight.ndim > 1
    )
    return all(type(module) is nn.Linear for module in linears)


def _suits_kernels(shape: CacheShape) -> bool:
    return shape.device == "cpu" and shape.dtype in (torch.float32, torch.bfloat16) and shape.head_size % 16 == 0


class FusedDecoder:
    """The fused decoder. It takes the weights out of `base`, which cannot run afterwards.

    Args:
        base: a model for which `can_fuse` is true.
        shape: of its cache.
    """

    def __init__(self, base: Any, shape: CacheShape) -> None:
        self.shape = shape
        config = base.config.get_text_config()
        decoder = base.get_decoder()
        self._heads, self._size = config.num_attention_heads, shape.head_size
        self._embedding = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        layers = list(decoder.layers)
        self._layers = [_Layer(layer, is_last=layer is layers[-1]) for layer in layers]
        self._norm = decoder.norm.weight, decoder.norm.variance_epsilon
        self._head = _linear(base.get_output_embeddings())
        library = load_kernels(shape.dtype) if _suits_kernels(shape) else None
        self.is_native = library is not None
        self.name = "native" if self.is_native else "fused"
        self._kernels = None if library is None else Kernels(library, self._heads, shape.num_key_heads, shape.head_size)

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Any, needed: torch.Tensor | None
    ) -> torch.Tensor:
        """Run all layers."""
        states = functional.embedding(ids, self._embedding)
        cosine, sine = self._rotary(states[None], positions[None])
        half = self._size // 2
        if self._kernels is not None:
            turns = cosine[0, :, :half].float().contiguous(), sine[0, :, :half].float().contiguous()
            return self._run_kernels(self._kernels, states, turns, attention, needed)
        turns = cosine[0, :, None, :half].contiguous(), sine[0, :, None, :half].contiguous()
        for index, layer in enumerate(self._layers):
            states = layer.run(states, index, attention, turns, self._heads, self.shape, needed)
        weight, epsilon = self._norm
        return functional.rms_norm(states, weight.shape, weight, epsilon)

    def _run_kernels(
        self,
        kernels: Kernels,
        states: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        attention: Any,
        needed: torch.Tensor | None,
    ) -> torch.Tensor:
        added = None
        for index, layer in enumerate(self._layers):
            packed = layer.project(kernels.add_and_norm(states, added, *layer.before))
            kernels.turn_and_store(packed, attention, index, *turns)
            if layer.is_last and needed is not None:
                packed, states, attention = packed[needed], states[needed], attention.only(needed.numpy())
            mixed = kernels.attend(packed, attention, index, layer.scale)
            between = kernels.add_and_norm(states, layer.out(mixed), *layer.between)
            added = layer.down(kernels.gate(layer.gate_up(between)))
        return kernels.add_and_norm(states, added, *self._norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (tokens, vocabulary)."""
        return self._head(hidden)


class _Layer:
    def __init__(self, layer: Any, *, is_last: bool) -> None:
        attention, forward = layer.self_attn, layer.mlp
        self.project = _linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _linear(attention.o_proj)
        self.gate_up = _linear(forward.gate_proj, forward.up_proj)
        self.down = _linear(forward.down_proj)
        self.scale = attention.scaling
        self.before = layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon
        self.between = layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon
        self.is_last = is_last

    def run(
        self,
        states: torch.Tensor,
        index: int,
        attention: Attention,
        turns: tuple[torch.Tensor, torch.Tensor],
        heads: int,
        shape: CacheShape,
        needed: torch.Tensor | None,
    ) -> torch.Tensor:
        weight, epsilon = self.before
        projected = self.project(functional.rms_norm(states, weight.shape, weight, epsilon))
        key_heads, size = shape.num_key_heads, shape.head_size
        packed = projected.view(states.shape[0], heads + 2 * key_heads, size)
        turned = _turn(packed[:, : heads + key_heads], *turns)
        mixed = attention.attend(
            index, turned[:, :heads], turned[:, heads:], packed[:, heads + key_heads :], self.scale
        ).reshape(states.shape[0], heads * size)
        if self.is_last and needed is not None:
            mixed, states = mixed[needed], states[needed]
        states = states + self.out(mixed)
        weight, epsilon = self.between
        gate_up = self.gate_up(functional.rms_norm(states, weight.shape, weight, epsilon))
        gate, up = gate_up.chunk(2, -1)
        return states + self.down(functional.silu(gate).mul_(up))


def _turn(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate (tokens, heads, size) by position, halves paired as Llama does."""
    first, second = heads.chunk(2, -1)
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    head, tail = out.chunk(2, -1)
    torch.mul(first, cosine, out=head)
    head.addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=tail)
    tail.addcmul_(first, sine)
    return out


def _linear(*modules: Any) -> Linear:
    """Return the product with the modules' weights one above the other; on a CPU laid out for oneDNN."""
    weight = torch.cat([module.weight.detach() for module in modules])
    biases = [module.bias for module in modules]
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    is_tied = len(modules) == 1 and modules[0].weight.shape[0] > 4 * modules[0].weight.shape[1]
    if not is_tied:  # a head may share its weight with the embedding
        for module in modules:
            module.weight = None
    if _suits_mkldnn(weight):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, 128)
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda states: multiply(states, laid_out, bias, "none", [], "")
    return lambda states: functional.linear(states, weight, bias)


def _suits_mkldnn(weight: torch.Tensor) -> bool:
    """Return whether oneDNN multiplies by this weight here: a CPU without AVX-512 has no bf16 of it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
