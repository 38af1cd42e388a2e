"""Seeded draws of tokens that depend on a cell's own seed and step alone, whatever is computed beside them."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from dataclasses import dataclass

import torch

from polypersona.decoding.choice import uniforms
from polypersona.decoding.native import draw_tokens, load_kernels


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is drawn. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1.0 filter nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class TokenSampler:
    """Draws one token per row.

    Draws invert the cumulative distribution in vocabulary order, so that rounding moves a draw only where it falls on
    an edge. Filters are applied after the repetition penalty and the temperature: top-k, then top-p, then min-p.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings
        self.needs_history = settings.repetition_penalty != 1.0

    def draw(
        self,
        logits: torch.Tensor,
        seeds: Sequence[int],
        steps: Sequence[int],
        history: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Return one token id per row, and whether the row's logits are finite where it matters.

        Args:
            logits: (rows, vocabulary), any floating dtype.
            seeds: one per row.
            steps: one per row; a row's first written token is step 1 (step 0 is the draw of an option).
            history: all tokens of each row so far; needed with a repetition penalty.
        """
        settings = self._settings
        if history is not None and self.needs_history:
            logits = _penalised(logits.float(), history, settings.repetition_penalty)
        if settings.temperature == 0:
            found = logits.max(-1)
            return found.indices.tolist(), found.values.isfinite().tolist()
        noise = uniforms(seeds, steps)
        if (library := self._library(logits)) is not None:
            tokens = draw_tokens(
                library,
                logits.contiguous(),
                noise,
                top_k=settings.top_k,
                temperature=settings.temperature,
                top_p=settings.top_p,
                min_p=settings.min_p,
            )
            return [max(token, 0) for token in tokens], [token >= 0 for token in tokens]
        if settings.top_k and settings.top_k < logits.shape[-1]:
            logits = _only_largest(logits, settings.top_k)
        probs = torch.softmax(logits.double() / settings.temperature, -1)
        chosen = _invert(_filtered(probs, settings), torch.from_numpy(noise).to(logits.device))
        return chosen.tolist(), probs.sum(-1).isfinite().tolist()

    def _library(self, logits: torch.Tensor) -> CDLL | None:
        """Return the compiled sampler where there is one for these logits: on a CPU, with top-k."""
        is_theirs = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
        if not is_theirs or not 0 < self._settings.top_k < logits.shape[-1]:
            return None
        return load_kernels(logits.dtype)


def _invert(probs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return, per row, the first index whose cumulative share exceeds the row's draw."""
    edges = probs.cumsum(-1)
    chosen = torch.searchsorted(edges, draws[:, None] * edges[:, -1:], right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)


def _only_largest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the logits of each row but the `count` largest set to minus infinity; of ties, the lowest ids stay."""
    least = logits.topk(count, -1).values[:, -1:]
    is_above, is_tied = logits > least, logits == least
    num_tied = count - is_above.sum(-1, keepdim=True)
    is_kept = is_above | (is_tied & (is_tied.cumsum(-1) <= num_tied)) | logits.isnan()  # which shall be noticed
    return logits.masked_fill(~is_kept, float("-inf"))


def _penalised(logits: torch.Tensor, history: Sequence[Sequence[int]], penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits of tokens seen (Keskar et al., 2019, section 4.1)."""
    width = max(map(len, history))
    seen = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in history], device=logits.device)
    found = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(found < 0, found * penalty, found / penalty))


def _filtered(probs: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    if settings.top_p < 1.0:
        ordered, indices = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        keep = torch.zeros_like(probs, dtype=torch.bool).scatter(
            -1, indices, before < settings.top_p * ordered.sum(-1, keepdim=True)
        )
        probs = probs.masked_fill(~keep, 0.0)
    if settings.min_p > 0.0:
        probs = probs.masked_fill(probs < settings.min_p * probs.max(-1, keepdim=True).values, 0.0)
    return probs
