"""Attention over packed interviews: many turns after one card, without padding the rest of the network.

A batch is one long row of tokens: all cards, then all turns. Cards attend to themselves; a turn attends to its own
card and itself. Only attention sees padding, in buckets of turns of like length; every other layer of the stock model
works on the packed tokens. Registered with transformers under `INTERVIEW_ATTENTION`; the layout travels as a keyword.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

INTERVIEW_ATTENTION = "polypersona_interviews"
_BUCKET = 32


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One respondent as token ids: the card's, and per turn the question's and the answer's.

    `heads` says how many of a turn's answer tokens belong to its first sentence, which carries the stance.
    """

    card: list[int]
    turns: list[tuple[list[int], list[int]]]
    heads: list[int]

    def __len__(self) -> int:
        return len(self.card) + sum(len(question) + len(answer) for question, answer in self.turns)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments attended together. Index tensors point into the packed tokens; pads point at token 0.

    `tokens` is (segments, width); `flat` lists the places in (segments × width) that are real, in packed order of
    `places`; `bias` is (segments, 1, width, keys); `cards` is (segments, card width), or None for the cards themselves.
    """

    tokens: torch.Tensor
    flat: torch.Tensor
    places: torch.Tensor
    bias: torch.Tensor
    cards: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """`ids` and `positions` are (tokens,); `sources` are the places whose next token belongs to an answer.

    `is_head` is true for those whose next token belongs to an answer's first sentence.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sources: torch.Tensor
    is_head: torch.Tensor
    layout: list[Bucket]


def pack_batch(rows: Sequence[PackedRow]) -> PackedBatch:
    """Lay respondents out as one row of tokens with what attention needs to keep them apart."""
    ids: list[int] = []
    positions: list[int] = []
    cards: list[tuple[int, int]] = []
    for row in rows:
        cards.append((len(ids), len(row.card)))
        positions += range(len(row.card))
        ids += row.card
    turns: list[tuple[int, int, int]] = []
    sources: list[int] = []
    is_head: list[bool] = []
    for owner, row in enumerate(rows):
        for (question, answer), head in zip(row.turns, row.heads, strict=True):
            is_head += [True] * head + [False] * (len(answer) - head)
            size = len(question) + len(answer)
            turns.append((len(ids), size, owner))
            sources += range(len(ids) + len(question) - 1, len(ids) + size - 1)
            positions += range(len(row.card), len(row.card) + size)
            ids += question + answer
    turns.sort(key=lambda turn: turn[1])
    layout = [_bucket([(start, size) for start, size in cards], None)]
    for begin in range(0, len(turns), _BUCKET):
        part = turns[begin : begin + _BUCKET]
        layout.append(_bucket([(start, size) for start, size, _ in part], [cards[owner] for _, _, owner in part]))
    return PackedBatch(torch.tensor(ids), torch.tensor(positions), torch.tensor(sources), torch.tensor(is_head), layout)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    interviews: Sequence[Bucket] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within every bucket. Tensors are (1, heads, tokens, head size); the result is (1, tokens, heads, size)."""
    heads, size = query.shape[1], query.shape[3]
    scale = scaling if scaling is not None else size**-0.5
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    pieces, places = [], []
    for bucket in interviews:
        queries = query[bucket.tokens].transpose(1, 2)
        sees = bucket.tokens if bucket.cards is None else torch.cat([bucket.cards, bucket.tokens], 1)
        keys, values = key[sees].transpose(1, 2), value[sees].transpose(1, 2)
        scores = (queries @ keys.transpose(-1, -2)) * scale + bucket.bias
        mixed = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype) @ values
        pieces.append(mixed.transpose(1, 2).reshape(-1, heads, size)[bucket.flat])
        places.append(bucket.places)
    order = torch.argsort(torch.cat(places))
    return torch.cat(pieces)[order][None], None


AttentionInterface.register(INTERVIEW_ATTENTION, attend)


def _bucket(segments: Sequence[tuple[int, int]], cards: Sequence[tuple[int, int]] | None) -> Bucket:
    tokens, is_real = _indices(segments)
    width = tokens.shape[1]
    seen = torch.ones(width, width, dtype=torch.bool).tril()[None] & is_real[:, None, :]
    card_tokens = None
    if cards is not None:
        card_tokens, card_real = _indices(cards)
        seen = torch.cat([card_real[:, None, :].expand(-1, width, -1), seen], 2)
    bias = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -1e9)[:, None]
    flat = is_real.reshape(-1).nonzero()[:, 0]
    return Bucket(tokens, flat, tokens.reshape(-1)[flat], bias, card_tokens)


def _indices(segments: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (segments, width) indices into the packed tokens, pads at 0, and which are real."""
    starts = torch.tensor([start for start, _ in segments])
    sizes = torch.tensor([size for _, size in segments])
    steps = torch.arange(int(sizes.max()))
    is_real = steps < sizes[:, None]
    return torch.where(is_real, starts[:, None] + steps, 0), is_real
