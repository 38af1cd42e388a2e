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
from polypersona.errors import ModelError

_ROUND = 32
_LEAST_CHUNK = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How much is computed at once. `max_cache_bytes` bounds keys and values; 0 leaves them unbounded."""

    slots: int = 128
    chunk_tokens: int = 512
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
            self._shrink()  # not above: there the error still holds the run's tensors

    def _shrink(self) -> None:
        """Go on with half the slots and chunks."""
        kept, slots = self.settings, self.settings.slots // 2
        _log.warning("Out of memory with %d slots; going on with %d.", kept.slots, slots)
        chunk = max(min(kept.chunk_tokens, _LEAST_CHUNK), kept.chunk_tokens // 2)
        self.settings = replace(kept, slots=slots, chunk_tokens=chunk)
        self._cache, self._root = None, []
        torch.cuda.empty_cache()

    def _run(self, groups: Sequence[PromptGroup]) -> list[list[Written]]:
        results = [[Written() for _ in group.prompts] for group in groups]
        if groups:
            sizes = self.settings.chunk_tokens, self.settings.refill
            machine = Machine(self._decoder, self._sampler, self._is_greedy, self._ends, self._is_stopped, *sizes)
            cache, rooms = self._prepare(machine, groups)
            Run(machine, cache, rooms, groups, results).finish()
        return results

    def _prepare(self, machine: Machine, groups: Sequence[PromptGroup]) -> tuple[KeyValueCache, tuple[int, int]]:
        """Return a cache with the root's keys and values in it, and how many slots and places the run uses of it.

        The cache may have more, from an earlier run; were they used, answers would depend on what ran before.
        """
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
            self._cache.clear_shared(ROOT)
            if root:
                segment = Segment(root, range(len(root)), ROOT, shared_to=ROOT, num_kept=len(root))
                machine.prefill(self._cache, [segment], [0])
            self._cache.shared_lengths[ROOT], self._root = len(root), root
        return self._cache, (rows, places)

    def _within(self, slots: int, places: int, shared: int, own: int) -> tuple[int, int]:
        """Return slots and places that fit the bound on keys and values.

        Raises:
            ModelError: not even one conversation fits.
        """
        limit = self.settings.max_cache_bytes
        if limit:
            tokens = limit // self._decoder.shape.bytes_per_token()
            while slots > 1 and slots * own + places * shared > tokens:
                slots -= max(1, slots // 8)
                places = min(places, slots + 1)
            while places > 2 and slots * own + places * shared > tokens:
                places -= 1
            if slots * own + places * shared > tokens:
                need = (own + places * shared) * self._decoder.shape.bytes_per_token()
                raise ModelError(
                    f"Keys and values of one conversation of {shared} shared and {own} own tokens need {need:,} bytes; "
                    f"the bound is {limit:,}.",
                    "Give the engine more memory, or shorten cards, questions or max_new_tokens.",
                )
        return slots, places

    @property
    def decoder_name(self) -> str:
        """Return how the model runs: `native`, `fused` or `stock`."""
        return self._decoder.name
