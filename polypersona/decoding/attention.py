"""Attention of packed tokens: what is new beside what a slot holds and what its group shares, in one softmax.

Two shapes: a prefill computes many tokens of some rows, a step one token of every slot. Neither pads a linear layer;
only the small matrices of scores are padded. Registered with transformers under `PACKED`, so that its modules stay as
they are. Knows no sampling and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from polypersona.decoding.cache import KeyValueCache

PACKED = "polypersona_packed"
_MINUS_INF = float("-inf")


class Attention(Protocol):
    """Attention of one forward over packed tokens."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return (tokens, heads, size) for queries (tokens, heads, size) and (tokens, key heads, size)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive new tokens of one row.

    `group` is the shared beginning they follow and `past` how many tokens the slot holds already. The first `num_kept`
    of them are written to `slot`, or to the shared beginning `shared_to` behind what stands there. The others are
    branches of the lengths `branches`, each of which sees the kept tokens and itself; `visible` says the same as
    (tokens, tokens) bool, None for causal.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    group: int
    past: int = 0
    slot: int | None = None
    shared_to: int | None = None
    num_kept: int = 0
    visible: torch.Tensor | None = None
    branches: tuple[int, ...] = ()


class PrefillAttention:
    """Attention of segments, ordered so that those of a group stand together."""

    def __init__(self, cache: KeyValueCache, segments: Sequence[Segment], dtype: torch.dtype) -> None:
        self._cache, self._segments = cache, segments
        device = cache.shape.device
        lengths = [len(segment.ids) for segment in segments]
        rows, width = len(segments), max(lengths)
        steps = torch.arange(width)
        inside = steps < torch.tensor(lengths)[:, None]
        starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
        self._padded = torch.where(inside, starts[:, None] + steps, starts[:, None]).to(device)
        self._flat = (torch.arange(rows)[:, None] * width + steps)[inside].to(device)
        self._is_ragged = not bool(inside.all())
        self._rows, self._width = rows, width
        self._groups = list(_runs([segment.group for segment in segments]))
        self._num_shared = max(cache.shared_lengths[segment.group] for segment in segments)
        self._past = max(segment.past for segment in segments)
        self._slots = torch.tensor([segment.slot or 0 for segment in segments]).to(device)
        # They read slot 0 in vain; hidden or not, what is not finite there must not reach them.
        self._slotless = (
            torch.tensor([row for row, segment in enumerate(segments) if segment.slot is None]).long().to(device)
        )
        self._mask = self._own_mask(segments, width, dtype).to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store what is kept and return (tokens, heads, size)."""
        heads, key_heads, size = query.shape[1], key.shape[1], query.shape[2]
        repeat = heads // key_heads
        # (key heads, rows, repeat × width, size): queries that share a key head stand together.
        rows, width = self._rows, self._width
        asked = self._pad(query * scale).view(rows, width, key_heads, repeat, size).permute(2, 0, 3, 1, 4)
        asked = asked.reshape(key_heads, rows, repeat * width, size)
        keys = self._pad(key).permute(2, 0, 3, 1)
        values = self._pad(value).permute(2, 0, 1, 3)
        self._keep(layer, keys, values)
        if self._past:
            held = self._cache.keys[layer, self._slots, :, :, : self._past].transpose(0, 1)
            held[:, self._slotless] = 0
            keys = torch.cat([held, keys], -1)
            held = self._cache.values[layer, self._slots, :, : self._past].transpose(0, 1)
            held[:, self._slotless] = 0
            values = torch.cat([held, values], -2)
        own = self._past + width
        shared = self._num_shared
        scores = torch.matmul(asked, keys.contiguous()).view(key_heads, rows, repeat, width, own) + self._mask
        scores = scores.view(key_heads, rows, repeat * width, own)
        if shared:
            whole = scores.new_empty(key_heads, rows, repeat * width, own + shared)
            whole[..., :own] = scores
            self._score_shared(layer, asked, whole, own)
            scores = whole
        probs = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(probs[..., :own].contiguous(), values.contiguous())
        if shared:
            self._add_shared(layer, probs, out, own)
        out = out.view(key_heads, rows, repeat, width, size).permute(1, 3, 0, 2, 4)
        return out.reshape(rows * width, heads, size)[self._flat]

    def _pad(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (rows, width, …) of packed tokens; pads repeat the row's first token and are never read."""
        if not self._is_ragged:
            return tokens.view(self._rows, self._width, *tokens.shape[1:])
        return tokens[self._padded]

    def _score_shared(self, layer: int, asked: torch.Tensor, whole: torch.Tensor, own: int) -> None:
        for group, begin, end in self._groups:
            length = self._cache.shared_lengths[group]
            if length:
                queries = asked[:, begin:end].reshape(asked.shape[0], -1, asked.shape[-1])
                keys = self._cache.shared_keys[layer, group, :, :, :length]
                found = torch.matmul(queries, keys)
                whole[:, begin:end, :, own : own + length] = found.view(*whole.shape[:1], end - begin, -1, length)
            whole[:, begin:end, :, own + length :] = _MINUS_INF

    def _add_shared(self, layer: int, probs: torch.Tensor, out: torch.Tensor, own: int) -> None:
        for group, begin, end in self._groups:
            length = self._cache.shared_lengths[group]
            if length:
                weights = probs[:, begin:end, :, own : own + length].reshape(probs.shape[0], -1, length)
                found = torch.matmul(weights, self._cache.shared_values[layer, group, :, :length])
                out[:, begin:end] += found.view(probs.shape[0], end - begin, -1, out.shape[-1])

    def _keep(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write what is kept; keys are (key heads, rows, size, width), values (key heads, rows, width, size)."""
        cache = self._cache
        kept = [row for row, segment in enumerate(self._segments) if segment.slot is not None]
        if kept and not self._past:
            # Tokens beyond a row's own are overwritten before they are read.
            width = min(self._width, cache.num_own)
            slots, rows = self._slots[kept], torch.tensor(kept)
            cache.keys[layer, slots, :, :, :width] = keys[:, rows, :, :width].transpose(0, 1)
            cache.values[layer, slots, :, :width] = values[:, rows, :width].transpose(0, 1)
            kept = []
        for row in kept:
            segment = self._segments[row]
            begin, end = segment.past, segment.past + segment.num_kept
            cache.keys[layer, segment.slot, :, :, begin:end] = keys[:, row, :, : segment.num_kept]
            cache.values[layer, segment.slot, :, begin:end] = values[:, row, : segment.num_kept]
        for row, segment in enumerate(self._segments):
            if segment.shared_to is not None:
                begin = cache.shared_lengths[segment.group]
                end = begin + segment.num_kept
                cache.shared_keys[layer, segment.shared_to, :, :, begin:end] = keys[:, row, :, : segment.num_kept]
                cache.shared_values[layer, segment.shared_to, :, begin:end] = values[:, row, : segment.num_kept]

    def _own_mask(self, segments: Sequence[Segment], width: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask, (rows or 1, 1, width, past + width)."""
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        if not self._past and all(segment.visible is None for segment in segments):
            return torch.zeros(1, 1, width, width, dtype=dtype).masked_fill(~causal, _MINUS_INF)
        visible = torch.zeros(len(segments), 1, width, self._past + width, dtype=torch.bool)
        for row, segment in enumerate(segments):
            visible[row, 0, :, : segment.past] = True
            visible[row, 0, :, self._past :] = causal
            if segment.visible is not None:
                size = len(segment.ids)
                visible[row, 0, :size, self._past : self._past + size] = segment.visible
        return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, _MINUS_INF)


class StepAttention:
    """Attention of one new token for each of the first slots."""

    def __init__(self, cache: KeyValueCache, groups: Sequence[int], dtype: torch.dtype) -> None:
        self._cache, self._dtype = cache, dtype
        device = cache.shape.device
        members: dict[int, list[int]] = {}
        for row, group in enumerate(groups):
            members.setdefault(group, []).append(row)
        most = max(map(len, members.values()))
        padded = [rows + rows[:1] * (most - len(rows)) for rows in members.values()]
        place = {row: index * most + at for index, rows in enumerate(members.values()) for at, row in enumerate(rows)}
        lengths = torch.tensor([cache.shared_lengths[group] for group in groups])
        self._count, self._most, self._num_groups = len(groups), most, len(members)
        self._members = torch.tensor(padded).flatten().to(device)
        self._place = torch.tensor([place[row] for row in range(len(groups))]).to(device)
        self._num_shared = int(lengths.max())
        self._groups = torch.tensor(list(members)).to(device)
        shared = torch.arange(self._num_shared)
        hidden = (shared >= lengths[:, None])[:, None, None].to(device)
        self._shared_mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, _MINUS_INF)
        self._rows = torch.arange(len(groups), device=device)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many tokens each slot holds before the new one."""
        device = self._cache.shape.device
        self._own, self._at = max(lengths) + 1, torch.tensor(lengths).to(device)
        hidden = (torch.arange(self._own, device=device) > self._at[:, None])[:, None, None]
        own = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, _MINUS_INF)
        self._mask = torch.cat([own, self._shared_mask], -1)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new keys and values and return (slots, heads, size)."""
        cache, count, own = self._cache, self._count, self._own
        heads, key_heads, size = query.shape[1], key.shape[1], query.shape[2]
        repeat = heads // key_heads
        keys, values = cache.keys[layer], cache.values[layer]
        keys[self._rows, :, :, self._at] = key
        values[self._rows, :, self._at] = value
        query = query * scale
        scores = torch.matmul(query.view(count, key_heads, repeat, size), keys[:count, :, :, :own])
        if not self._num_shared:
            probs = torch.softmax(scores + self._mask, -1, dtype=torch.float32).to(query.dtype)
            return torch.matmul(probs, values[:count, :, :own]).view(count, heads, size)
        grouped = self._group(query.view(count, key_heads, repeat, size))
        length = self._num_shared
        found = torch.matmul(grouped, cache.shared_keys[layer][self._groups, :, :, :length])
        whole = torch.cat([scores, self._ungroup(found, key_heads, repeat)], -1).add_(self._mask)
        probs = torch.softmax(whole, -1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(probs[..., :own].contiguous(), values[:count, :, :own])
        weights = self._group(probs[..., own:])
        found = torch.matmul(weights, cache.shared_values[layer][self._groups, :, :length])
        return (out + self._ungroup(found, key_heads, repeat)).view(count, heads, size)

    def _group(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (groups, key heads, members × repeat, …) of (slots, key heads, repeat, …)."""
        key_heads, repeat, last = rows.shape[1:]
        grouped = rows[self._members].view(self._num_groups, self._most, key_heads, repeat, last)
        return grouped.transpose(1, 2).reshape(self._num_groups, key_heads, self._most * repeat, last)

    def _ungroup(self, grouped: torch.Tensor, key_heads: int, repeat: int) -> torch.Tensor:
        """Return (slots, key heads, repeat, …) of what `_group` gives."""
        last = grouped.shape[-1]
        rows = grouped.view(self._num_groups, key_heads, self._most, repeat, last).transpose(1, 2)
        return rows.reshape(self._num_groups * self._most, key_heads, repeat, last)[self._place]


def attend_packed(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within transformers' modules: (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast, which validation within a training runs in, the three need not come in one precision.
    packed = [tensor[0].transpose(0, 1).to(module.packed_attention.dtype) for tensor in (query, key, value)]
    return module.packed_attention.current.attend(module.layer_idx, *packed, scale)[None], None


def _runs(groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (group, begin, end) of neighbours that are of one group."""
    runs: list[tuple[int, int, int]] = []
    for row, group in enumerate(groups):
        if runs and runs[-1][0] == group:
            runs[-1] = (group, runs[-1][1], row + 1)
        else:
            runs.append((group, row, row + 1))
    return runs
