"""Causal attention by plain products, for training on a CPU. Registered with transformers as `CAUSAL`.

Rows are padded on the right, so one triangle masks every row. Takes and gives what transformers' attention functions
do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface

from polypersona.models.catalogue import FAMILY_TARGETS

CAUSAL = "polypersona_causal"
_WINDOWS = ("sliding_window", "attention_chunk_size")


def can_attend(base: Any, max_length: int) -> bool:
    """Return whether the model's attention is causal and nothing else for rows of that length."""
    config = base.config.get_text_config()
    if config.model_type not in FAMILY_TARGETS or not base._can_set_attn_implementation():
        return False
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return all(not window or int(window) >= max_length for window in windows)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_rows: tuple[int, int] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally. Tensors are (rows, heads, tokens, head size); the result is (rows, tokens, heads, size).

    With `shared_rows` of (S, R) the tensors are one row: S tokens that R rows begin with, then the rest of each.
    A mask (rows, 1, tokens, tokens), which rows that are trees bring, is added to the scores in the triangle's place.
    """
    rows, heads, length, size = query.shape
    if (shared := heads // key.shape[1]) > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    dtype = value.dtype
    scale = scaling if scaling is not None else size**-0.5
    if shared_rows is not None:
        with torch.autocast(query.device.type, enabled=False):
            return _attend_shared(query.to(dtype), key.to(dtype), value, scale, *shared_rows), None
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.baddbmm(
            _triangle(length, dtype, query.device)
            if attention_mask is None
            else attention_mask.to(dtype).expand(rows, heads, length, length).reshape(rows * heads, length, length),
            query.to(dtype).reshape(rows * heads, length, size),
            key.to(dtype).reshape(rows * heads, length, size).transpose(1, 2),
            alpha=scale,
        )
        weights = torch.nn.functional.dropout(scores.softmax(-1), dropout, training=module.training)
        mixed = weights @ value.reshape(rows * heads, length, size)
    return mixed.view(rows, heads, length, size).transpose(1, 2), None


def _attend_shared(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, shared: int, rows: int
) -> torch.Tensor:
    """Attend where the first `shared` tokens are all rows'; (1, heads, tokens, size) → (1, tokens, heads, size)."""
    heads, size = query.shape[1], query.shape[3]
    head_query, head_key, head_value = (tensor[0, :, :shared] for tensor in (query, key, value))  # (heads, S, size)
    triangle = _triangle(shared, value.dtype, value.device)
    head = torch.baddbmm(triangle, head_query, head_key.transpose(1, 2), alpha=scale).softmax(-1) @ head_value
    own_query, own_key, own_value = (
        tensor[0, :, shared:].reshape(heads * rows, -1, size) for tensor in (query, key, value)
    )
    length = own_query.shape[1]
    asked = own_query.view(heads, rows * length, size)
    to_shared = ((asked @ head_key.transpose(1, 2)) * scale).view(heads * rows, length, shared)
    triangle = _triangle(length, value.dtype, value.device)
    to_own = torch.baddbmm(triangle, own_query, own_key.transpose(1, 2), alpha=scale)
    weights = torch.cat([to_shared, to_own], 2).softmax(-1)
    seen = weights[..., :shared].reshape(heads, rows * length, shared) @ head_value
    own = weights[..., shared:] @ own_value
    whole = torch.cat([head, seen + own.view(heads, rows * length, size)], 1)
    return whole.transpose(0, 1)[None]


AttentionInterface.register(CAUSAL, attend)


@lru_cache(maxsize=64)
def _triangle(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return (1, length, length) of zeros, minus infinity where a token would see a later one."""
    with torch.inference_mode(mode=False):
        return torch.full((1, length, length), float("-inf"), dtype=dtype, device=device).triu(1)
