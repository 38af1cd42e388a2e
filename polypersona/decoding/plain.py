"""The packed engine's stand-in for models that cannot be packed: one prompt at a time through the model's own forward.

Gives the same results for the same prompts, several times more slowly. Knows token ids, no text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from polypersona.decoding.choice import choose_option
from polypersona.decoding.prompts import NOT_FINITE, Prompt, PromptGroup, Written
from polypersona.decoding.sampling import SamplingSettings, TokenSampler


class PlainTokenEngine:
    """Answers prompts one by one.

    Args:
        model: any causal language model of transformers.
        sampling: how tokens are drawn.
        device: where it is.
        ends: ids that end a text.
        is_stopped: given the tokens written so far, says whether a stop string ended them.
    """

    decoder_name = "plain"

    def __init__(
        self,
        model: Any,
        sampling: SamplingSettings,
        device: str,
        ends: frozenset[int] = frozenset(),
        is_stopped: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self._model, self._device, self._ends = model, device, ends
        self._sampler, self._is_greedy = TokenSampler(sampling), sampling.temperature == 0
        self._is_stopped = is_stopped or (lambda _: False)

    @classmethod
    def closed(cls) -> PlainTokenEngine:
        """Return an engine without a model."""
        return cls(None, SamplingSettings(), "cpu")

    @torch.inference_mode()
    def run(self, groups: Sequence[PromptGroup]) -> list[list[Written]]:
        """Return what came of every prompt, group by group."""
        return [[self._converse(prompt) for prompt in group.prompts] for group in groups]

    def _converse(self, prompt: Prompt) -> Written:
        first, ids = Written(), list(prompt.ids)
        written = first
        while True:
            self._answer(prompt, ids, written)
            if written.choice is not None:
                ids += prompt.chosen(written.choice)
            ids += written.tokens[:-1] if written.tokens and written.tokens[-1] in self._ends else written.tokens
            follow = prompt.follow(written) if prompt.follow else None
            if follow is None or written.error:
                return first
            prompt, written = follow, Written()
            del ids[len(ids) - follow.num_taken_back :]
            ids += follow.ids

    def _answer(self, prompt: Prompt, ids: Sequence[int], written: Written) -> None:
        before = list(ids)
        if prompt.options:
            totals = [self._score(before, option) for option in prompt.options]
            if not all(map(math.isfinite, totals)):
                written.error = NOT_FINITE
                return
            written.log_probs = totals
            if prompt.length_norm:
                totals = [total / len(option) for total, option in zip(totals, prompt.options, strict=True)]
            written.choice, written.probs = choose_option(totals, prompt.seed, is_greedy=self._is_greedy)
            before += prompt.chosen(written.choice)
        while len(written.tokens) < prompt.max_new_tokens and not written.is_ended:
            logits = self._logits([*before, *written.tokens])[-1:]
            history = [[*before, *written.tokens]]
            tokens, are_finite = self._sampler.draw(logits, [prompt.seed], [len(written.tokens) + 1], history)
            if not are_finite[0]:
                written.error = NOT_FINITE
                return
            written.tokens.append(tokens[0])
            written.is_ended = tokens[0] in self._ends or self._is_stopped(written.tokens)

    def _score(self, before: Sequence[int], option: Sequence[int]) -> float:
        log_probs = torch.log_softmax(self._logits([*before, *option]).float(), -1)
        places = range(len(before) - 1, len(before) - 1 + len(option))
        return sum(float(log_probs[at, token]) for at, token in zip(places, option, strict=True))

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=torch.tensor([list(ids)], device=self._device)).logits[0]
        return logits
