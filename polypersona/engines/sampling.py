"""Seeded choices that depend on a cell's own seed and step alone, whatever is computed beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is drawn. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1.0 filter nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def uniform(seed: int, step: int) -> float:
    """Return a number in [0, 1), a function of (seed, step): the SplitMix64 finaliser of Steele et al. (2014), twice.

    `seed` is in [0, 2**63), `step` counts a cell's draws from 0.
    """
    return (_mix(_mix(seed) + step * 0x9E3779B97F4A7C15) >> 11) / 2.0**53


def choose_option(log_probs: Sequence[float], seed: int, *, is_greedy: bool) -> tuple[int, list[float]]:
    """Return the index drawn and the probabilities (softmax of the log probabilities) it is drawn from."""
    probs = torch.softmax(torch.tensor(log_probs, dtype=torch.float64), 0)
    if is_greedy:
        return int(probs.argmax()), probs.tolist()
    edges = probs.cumsum(0)
    index = int(torch.searchsorted(edges, torch.tensor(uniform(seed, 0), dtype=torch.float64) * edges[-1], right=True))
    return min(index, len(log_probs) - 1), probs.tolist()


def sample_tokens(
    logits: torch.Tensor, seeds: Sequence[int], steps: Sequence[int], settings: SamplingSettings
) -> torch.Tensor:
    """Return one token id per row.

    Draws by inverting the cumulative distribution in vocabulary order, so that rounding moves a draw only where it
    falls on an edge.

    Args:
        logits: (rows, vocabulary), any dtype.
        seeds: one per row.
        steps: one per row; a row's first written token is step 1 (step 0 is the draw of an option).
        settings: filters are applied after the temperature, top-k first, then top-p, then min-p.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.double() / settings.temperature, -1)
    probs = _filtered(probs, settings)
    edges = probs.cumsum(-1)
    draws = torch.tensor(
        [uniform(seed, step) for seed, step in zip(seeds, steps, strict=True)],
        dtype=torch.float64,
        device=logits.device,
    )
    chosen = torch.searchsorted(edges, draws[:, None] * edges[:, -1:], right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)


def _filtered(probs: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    if settings.top_k and settings.top_k < probs.shape[-1]:
        floor = probs.topk(settings.top_k, -1).values[:, -1:]
        is_above, is_tied = probs > floor, probs == floor
        num_tied = settings.top_k - is_above.sum(-1, keepdim=True)  # of ties, those that come first in the vocabulary
        probs = probs.masked_fill(~(is_above | (is_tied & (is_tied.cumsum(-1) <= num_tied))), 0.0)
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


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
