"""Decoders: token ids and an attention in, hidden states out. Stock transformers modules, or the same weights fused.

A decoder computes packed tokens of many rows at once; which token sees which is the attention's business. Knows no
prompt, no sampling.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from polypersona.decoding.attention import PACKED, Attention, attend_packed
from polypersona.decoding.cache import CacheShape


class Decoder(Protocol):
    """The part of a model that the packed engine runs.

    A native decoder takes a `NativeAttention`, any other one of those in `attention.py`.
    """

    name: str
    shape: CacheShape
    is_native: bool

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Any, needed: torch.Tensor | None
    ) -> torch.Tensor:
        """Return final hidden states (needed, size) of packed tokens; `needed` are their places, None for all."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (tokens, vocabulary) in the model's precision."""


class _Current:
    """Where the stock attention modules find the attention of the forward that runs, and the precision it keeps."""

    current: Attention
    dtype: torch.dtype


class StockDecoder:
    """A transformers model whose attention is replaced and whose modules, LoRA and bitsandbytes among them, are not.

    Args:
        model: a causal language model, or a PeftModel of one.
        device: where it is.
        dtype: of keys and values; None for that of the model's norms.
    """

    name = "stock"
    is_native = False

    def __init__(self, model: Any, device: str, dtype: torch.dtype | None = None) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder, self._head = base.get_decoder(), base.get_output_embeddings()
        config = base.config.get_text_config()
        heads = config.num_attention_heads
        dtype = dtype or next((weight.dtype for name, weight in base.named_parameters() if "norm" in name), base.dtype)
        self.shape = CacheShape(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype,
            device,
        )
        AttentionInterface.register(PACKED, attend_packed)
        self._current = _Current()
        self._current.dtype = self.shape.dtype
        self._base = base
        for module in base.modules():
            if hasattr(module, "layer_idx"):
                module.packed_attention = self._current

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Any, needed: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the model's own modules."""
        self._current.current = attention
        implementation = self._base.config._attn_implementation
        self._base.set_attn_implementation(PACKED)
        try:
            out: torch.Tensor = self._decoder(
                input_ids=ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state[0]
        finally:
            self._base.set_attn_implementation(implementation)
        return out if needed is None else out[needed]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the model's own head."""
        out: torch.Tensor = self._head(hidden)
        return out
