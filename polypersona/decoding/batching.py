"""Packed continuous batching: groups of prompts in, one result per prompt, with as little computed as possible.

What all groups share is computed once per engine, what a group shares once per group, the rest of a prompt once. Slots
that end are filled again; no linear layer ever sees a pad. Which prompts are computed together is a function of the
groups and the settings alone. Knows token ids, no text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from polypersona.chatml import shared_prefix_length
from polypersona.decoding.attention import Segment
from polypersona.decoding.cache import KeyValueCache
from polypersona.decoding.decoder import Decoder
from polypersona.decoding.prompts import PromptGroup, Written
from polypersona.decoding.run import ROOT, Machine, Run
from polypersona.decoding.sampling import SamplingSettings, TokenSampler

_ROUND = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How much is computed at once. `max_cache_bytes` bounds keys and values; 0 leaves them unbounded."""

    slots: int = 64
    chunk_tokens: int = 1024
    refill: float = 0.25
    max_cache_bytes: int = 0


class TokenEngine:
    """Answers groups of prompts with a decoder.

    Args:
        decoder: the model.
        sampling: how tokens are drawn.
        ends: ids that end a text.
        settings: sizes.
        is_stopped: given the tokens written so far, says whether a stop string ended them; None without any.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampling: SamplingSettings,
        ends: frozenset[int] = frozenset(),
        settings: BatchSettings | None = None,
        is_stopped: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self._decoder, self._sampler, self._is_greedy = decoder, TokenSampler(sampling), sampling.temperature == 0
        self._ends, self._is_stopped = ends, is_stopped or (lambda _: False)
        self.settings = settings or BatchSettings()
        self._cache: KeyValueCache | None = None
        self._root: list[int] = []

    @torch.inference_mode()
    def run(self, groups: Sequence[PromptGroup]) -> list[list[Written]]:
        """Return what came of every prompt, group by group.

        On a GPU that runs out of memory the number of slots is halved, for this and all later runs.
        """
        while True:
            try:
                return self._run(groups)
            except torch.OutOfMemoryError:
                if self.settings.slots == 1:
                    raise
                slots = self.settings.slots // 2
                _log.warning("Out of memory with %d slots; going on with %d.", self.settings.slots, slots)
                kept = self.settings
                self.settings = replace(kept, slots=slots, chunk_tokens=max(256, kept.chunk_tokens // 2))
                self._cache, self._root = None, []
                torch.cuda.empty_cache()

    def _run(self, groups: Sequence[PromptGroup]) -> list[list[Written]]:
        results = [[Written() for _ in group.prompts] for group in groups]
        if groups:
            sizes = self.settings.chunk_tokens, self.settings.refill
            machine = Machine(self._decoder, self._sampler, self._is_greedy, self._ends, self._is_stopped, *sizes)
            Run(machine, self._prepare(machine, groups), groups, results).finish()
        return results

    def _prepare(self, machine: Machine, groups: Sequence[PromptGroup]) -> KeyValueCache:
        """Return a cache with room for the run and the root's keys and values in it."""
        shared = max(group.num_shared for group in groups)
        own = max(group.max_tokens for group in groups)
        shared, own = (-(-size // _ROUND) * _ROUND for size in (shared, own))
        rows = min(sum(len(group.prompts) for group in groups), self.settings.slots)
        fewest = min(len(group.prompts) for group in groups)
        places = 1 + min(len(groups), max(4, -(-rows // fewest) + 2))
        rows, places = self._within(rows, places, shared, own)
        root = [] if len(groups) == 1 else list(groups[0].shared[: shared_prefix_length([g.shared for g in groups])])
        if self._cache is None or not self._cache.holds(places, shared, rows, own):
            self._cache, self._root = None, []
            self._cache = KeyValueCache(self._decoder.shape, places, shared, rows, own)
        if root != self._root:
            self._cache.shared_lengths[ROOT] = 0
            if root:
                segment = Segment(root, range(len(root)), ROOT, shared_to=ROOT, num_kept=len(root))
                machine.prefill(self._cache, [segment], [0])
            self._cache.shared_lengths[ROOT], self._root = len(root), root
        return self._cache

    def _within(self, slots: int, places: int, shared: int, own: int) -> tuple[int, int]:
        """Return slots and places that fit the bound on keys and values."""
        limit = self.settings.max_cache_bytes
        if limit:
            tokens = limit // self._decoder.shape.bytes_per_token()
            while slots > 1 and slots * own + places * shared > tokens:
                slots -= max(1, slots // 8)
                places = min(places, slots + 1)
            while places > 2 and slots * own + places * shared > tokens:
                places -= 1
        return slots, places

    @property
    def decoder_name(self) -> str:
        """Return how the model runs: `native`, `fused` or `stock`."""
        return self._decoder.name
