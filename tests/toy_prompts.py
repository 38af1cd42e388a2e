"""Lively toy models, prompts of all kinds in token ids, and what plain forwards of the whole prompts make of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

import torch
from toy_models import VOCABULARY, toy_config

from polypersona.decoding.batching import BatchSettings, TokenEngine
from polypersona.decoding.decoder import StockDecoder
from polypersona.decoding.fused import FusedDecoder
from polypersona.decoding.native import SWITCH, load_kernels
from polypersona.decoding.prompts import Prompt, PromptGroup, Written
from polypersona.decoding.sampling import SamplingSettings

END = 2
ENDS = frozenset({END})
GREEDY = SamplingSettings(0.0)
FUSED = ("llama", "mistral", "qwen2")
DECODERS = ("stock", "fused", "native")
CASES = [("qwen2_moe", "stock"), ("phi", "stock"), *((family, name) for family in FUSED for name in DECODERS)]


def lively_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model whose attention and logits depend strongly on the prompt, and which ends some of its answers."""
    from transformers import AutoModelForCausalLM

    config = toy_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for name, weight in model.named_parameters():
            if "bias" in name:
                weight.normal_(0, 0.5)
            elif weight.dim() > 1:
                weight.mul_(30.0 if "embed" in name else 6.0)
        model.get_output_embeddings().weight[END] *= 1.6
    return model.to(dtype)


def make_decoder(model: Any, name: str) -> Any:
    """The stock modules, or a copy's weights fused, with kernels or without."""
    if name == "stock":
        return StockDecoder(copy.deepcopy(model), "cpu")
    shape = StockDecoder(copy.deepcopy(model), "cpu").shape
    with mock.patch.dict(os.environ, {SWITCH: "off" if name == "fused" else "on"}):
        load_kernels.cache_clear()
        decoder = FusedDecoder(copy.deepcopy(model), shape)
    load_kernels.cache_clear()
    assert decoder.name == name
    return decoder


def token_engine(model: Any, name: str = "native", sampling: SamplingSettings = GREEDY, **sizes: Any) -> TokenEngine:
    """An engine with few slots and small chunks, so that slots are filled again and again."""
    return TokenEngine(
        make_decoder(model, name), sampling, ENDS, BatchSettings(**{"slots": 5, "chunk_tokens": 96} | sizes)
    )


def make_prompt(random: Random, shared: Sequence[int], *, limit: int = 8) -> Prompt:
    """A prompt of one of the kinds: written; scored on single tokens or on branches; scored, then written."""
    ids = [*shared, *tokens(random, random.randint(1, 24))]
    seed, kind = random.randrange(1 << 40), random.randrange(4)
    if kind == 0:
        return Prompt(ids, seed, random.randint(1, limit))
    count = random.randint(2, 5)
    options = tuple(tuple(tokens(random, 1 if kind == 1 else random.randint(1, 6))) for _ in range(count))
    written = 0 if kind in (1, 2) else random.randint(1, limit)
    choices = tuple(tuple(tokens(random, random.randint(1, 3))) for _ in options) if random.random() < 0.3 else ()
    return Prompt(ids, seed, written, options, choices, length_norm=random.random() < 0.3)


def make_groups(num_prompts: int, seed: int = 0, *, limit: int = 8) -> list[PromptGroup]:
    """Groups of one to nine prompts behind beginnings of zero to forty tokens; all share the first ones."""
    random, groups = Random(seed), []
    root = tokens(random, 4)
    while num_prompts:
        count = min(num_prompts, random.randint(1, 9))
        num_prompts -= count
        groups.append(group_of(make_prompts(random, count, [*root, *tokens(random, random.randint(1, 40))], limit)))
    return groups


def make_prompts(random: Random, count: int, shared: Sequence[int], limit: int = 8) -> list[Prompt]:
    return [make_prompt(random, shared, limit=limit) for _ in range(count)]


def group_of(prompts: Sequence[Prompt], num_shared: int | None = None, more: int = 0) -> PromptGroup:
    """A group whose prompts share what they can, with room for exactly what they need and `more`."""
    least = min(len(prompt.ids) for prompt in prompts) - 1
    first = prompts[0].ids
    same = next((at for at in range(least) if any(p.ids[at] != first[at] for p in prompts)), least)
    shared = same if num_shared is None else num_shared
    longest = max(len(prompt.ids) - shared + prompt.num_kept_tokens for prompt in prompts)
    return PromptGroup(tuple(prompts), shared, longest + more)


def tokens(random: Random, count: int) -> list[int]:
    return [random.randrange(3, VOCABULARY) for _ in range(count)]


@dataclass
class Expected:
    """What plain forwards give."""

    log_probs: list[float] = field(default_factory=list)
    choice: int | None = None
    tokens: list[int] = field(default_factory=list)


class Forwards:
    """A model's own forwards over whole sequences, many at once: pads stand behind what is read and reach nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def log_probs(self, rows: Sequence[Sequence[int]], begins: Sequence[int]) -> list[torch.Tensor]:
        """Return, per row, the log-probabilities (double) after its tokens from `begin` on."""
        out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(rows), 128):
            part = order[start : start + 128]
            width = max(len(rows[row]) for row in part)
            ids = torch.tensor([[*rows[row], *[0] * (width - len(rows[row]))] for row in part])
            logits = self._model(input_ids=ids, use_cache=False).logits
            for at, row in enumerate(part):
                out[row] = logits[at, begins[row] : len(rows[row])].double().log_softmax(-1)
        return out

    def answer(self, prompts: Sequence[Prompt]) -> list[Expected]:
        """Return what greedy decoding makes of every prompt, computed alone and unshared."""
        found = [Expected() for _ in prompts]
        pairs = [(at, option) for at, prompt in enumerate(prompts) for option in prompt.options]
        rows = [[*prompts[at].ids, *option] for at, option in pairs]
        for (at, option), log_probs in zip(
            pairs, self.log_probs(rows, [len(prompts[at].ids) - 1 for at, _ in pairs]), strict=True
        ):
            found[at].log_probs.append(sum(float(log_probs[i, token]) for i, token in enumerate(option)))
        before = []
        for prompt, expected in zip(prompts, found, strict=True):
            before.append(list(prompt.ids))
            if prompt.options:
                sizes = [len(option) if prompt.length_norm else 1 for option in prompt.options]
                weighed = [total / size for total, size in zip(expected.log_probs, sizes, strict=True)]
                expected.choice = weighed.index(max(weighed))
                before[-1] += prompt.chosen(expected.choice)
        self._write(prompts, before, found)
        return found

    def _write(self, prompts: Sequence[Prompt], before: list[list[int]], found: list[Expected]) -> None:
        left = [at for at, prompt in enumerate(prompts) if prompt.max_new_tokens]
        while left:
            rows = [[*before[at], *found[at].tokens] for at in left]
            for at, log_probs in zip(left, self.log_probs(rows, [len(row) - 1 for row in rows]), strict=True):
                found[at].tokens.append(int(log_probs[0].argmax()))
            left = [
                at for at in left if found[at].tokens[-1] != END and len(found[at].tokens) < prompts[at].max_new_tokens
            ]


def flat(groups: Sequence[PromptGroup]) -> list[Prompt]:
    return [prompt for group in groups for prompt in group.prompts]


def run_flat(engine: TokenEngine, groups: Sequence[PromptGroup]) -> list[Written]:
    return [written for group in engine.run(groups) for written in group]


def farthest(found: Sequence[Written], expected: Sequence[Any]) -> float:
    """The largest difference between option log-probabilities."""
    pairs = zip(found, expected, strict=True)
    return max(
        (abs(a - b) for one, other in pairs for a, b in zip(one.log_probs, other.log_probs, strict=True)), default=0.0
    )


def outcomes(found: Sequence[Any]) -> list[tuple[int | None, list[int]]]:
    return [(one.choice, one.tokens) for one in found]
