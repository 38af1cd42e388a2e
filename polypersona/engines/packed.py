"""The packed engine: personas and items to prompts, what a causal language model made of them to answers.

Closed cells are scored: the probability of every option from one forward over what the persona's cells share, and a
draw with the cell's own seed. Open cells, and the rationale of closed ones, are written token by token. With
`context: previous` a group is one interview, whose keys and values are kept from question to question. Knows no Ray, no
shard and no file of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from polypersona.chatml import shared_prefix_length, stop_ids
from polypersona.decoding.batching import BatchSettings, TokenEngine
from polypersona.decoding.choice import choose_option
from polypersona.decoding.decoder import StockDecoder
from polypersona.decoding.fused import FusedDecoder, can_fuse
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import Prompt, PromptGroup, Written
from polypersona.decoding.sampling import SamplingSettings
from polypersona.decoding.trial import differs_from_own_forward
from polypersona.engines.base import Answer, EngineSettings, Group, Reproduces
from polypersona.engines.calibration import calibrate, content_free_prompt, rotations
from polypersona.engines.cells import AskedCell, CellReader
from polypersona.engines.interviews import InterviewRunner
from polypersona.interview import check_interviews
from polypersona.models.loading import load_model, load_tokenizer

_WINDOWS = ("sliding_window", "attention_chunk_size")
_UNLIMITED = 1 << 20
_log = logging.getLogger(__name__)


class PackedEngine:
    """Answers with a causal language model in this process, on its GPU where there is one.

    Temperature and filters shape what is written, token by token. A scored option is drawn from the probabilities as
    the model gives them, calibrated where the settings say so; temperature 0 takes the likeliest. With `closed: text`
    the model itself ends its answer with a rationale or without.

    Raises:
        ModelError: the model or adapter cannot be loaded, or its chat template cannot hold an interview.
    """

    name = "packed"
    reproduces: Reproduces = "bytes"

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(settings.threads)
        source: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
        tokenizer = load_tokenizer(settings.model, **source)
        model = load_model(
            settings.model,
            dtype=settings.dtype,
            quantization=settings.quantization,
            adapter=settings.adapter,
            device=device,
            **source,
        )
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._max_tokens = _context_tokens(base.config.get_text_config())
        ends = stop_ids(tokenizer)
        self._cells = CellReader(tokenizer, settings, self._max_tokens)
        self._tokens = _token_engine(model, settings, device, ends, self._cells.is_stopped)
        if settings.context == "previous":
            check_interviews(tokenizer)

    @property
    def decoder(self) -> str:
        """Return how the model runs: `native`, `fused`, `stock` or `plain`."""
        return self._tokens.decoder_name

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order; cells that do not fit the model's context end as `error`."""
        if self._settings.context == "previous":
            return InterviewRunner(self._cells, self._tokens, self._max_tokens).answer(groups)
        asked = [self._cells.ask(group.persona, group.cells) for group in groups]
        if self._settings.calibration == "none":
            self._run([[(cell, cell.prompt) for cell in cells] for cells in asked])
        else:
            self._run_calibrated(asked)
        return [self._cells.read(cell) for cells in asked for cell in cells]

    def close(self) -> None:
        """Free the weights."""
        self._tokens = PlainTokenEngine.closed()

    def _run(self, groups: Sequence[Sequence[tuple[AskedCell, Prompt]]]) -> None:
        """Answer prompts, and give each cell what came of its own."""
        kept = [[(cell, prompt) for cell, prompt in group if not cell.error] for group in groups]
        kept = [group for group in kept if group]
        results = self._tokens.run([_prompt_group([prompt for _, prompt in group]) for group in kept])
        for group, written in zip(kept, results, strict=True):
            for (cell, _), result in zip(group, written, strict=True):
                cell.written = result

    def _run_calibrated(self, asked: Sequence[Sequence[AskedCell]]) -> None:
        """Score closed cells under several orders or against a content-free question, draw, then write what follows."""
        scored = [[cell for cell in cells if cell.prompt.options and not cell.error] for cells in asked]
        shared: dict[object, Prompt] = {}
        if self._settings.calibration == "permute":
            prompts = [[(cell, rotations(self._cells, cell)) for cell in cells] for cells in scored]
            prompts = [[(cell, parts) for cell, parts in group if not cell.error] for group in prompts]
        else:
            prompts = [[(cell, [replace(cell.prompt, max_new_tokens=0)]) for cell in cells] for cells in scored]
            for cells in scored:
                for cell in cells:
                    shared.setdefault(cell.shape, content_free_prompt(self._cells, cell))
        batches = [[prompt for _, parts in group for prompt in parts] for group in prompts]
        baseline = list(shared.values())
        whole = [batch for batch in batches if batch] + ([baseline] if baseline else [])
        results = iter(self._tokens.run([_prompt_group(batch) for batch in whole]))
        scores = [iter(next(results)) if batch else iter(()) for batch in batches]
        empty = dict(zip(shared, next(results), strict=True)) if baseline else {}
        for group, found in zip(prompts, scores, strict=True):
            for cell, parts in group:
                self._draw(cell, [next(found) for _ in parts], empty.get(cell.shape))
        self._run([[(cell, self._continued(cell)) for cell in cells if self._is_written(cell)] for cells in asked])

    def _draw(self, cell: AskedCell, found: Sequence[Written], empty: Written | None) -> None:
        parts = [*found, *([empty] if empty else [])]
        if failed := next((written.error for written in parts if written.error), ""):
            cell.error = failed
            return
        totals = calibrate(cell, found, empty)
        is_greedy = self._settings.temperature == 0
        choice, probs = choose_option(totals, cell.prompt.seed, is_greedy=is_greedy)
        cell.written = Written(choice, totals, probs, num_reused=found[0].num_reused)
        cell.calibrated = cell.written

    def _is_written(self, cell: AskedCell) -> bool:
        return not cell.error and bool(cell.prompt.max_new_tokens)

    def _continued(self, cell: AskedCell) -> Prompt:
        prompt, drawn = cell.prompt, cell.calibrated
        if drawn is None or drawn.choice is None:
            return prompt
        return Prompt([*prompt.ids, *prompt.chosen(drawn.choice)], prompt.seed, prompt.max_new_tokens)


def _prompt_group(prompts: Sequence[Prompt]) -> PromptGroup:
    rows = [prompt.ids for prompt in prompts]
    shared = shared_prefix_length(rows) if len(rows) > 1 else len(rows[0]) - 1
    longest = max(len(prompt.ids) - shared + prompt.num_kept_tokens for prompt in prompts)
    return PromptGroup(tuple(prompts), shared, longest)


def _token_engine(
    model: Any, settings: EngineSettings, device: str, ends: frozenset[int], is_stopped: Any
) -> TokenEngine | PlainTokenEngine:
    """Return the fastest engine that gives the model's own probabilities."""
    sampling = SamplingSettings(
        settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty
    )
    sizes = BatchSettings(settings.slots, max_cache_bytes=settings.cache_bytes)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, reason = _stock_decoder(model, device)
    if decoder is None:
        _log.warning(
            "A %s cannot be packed (%s); it is asked cell by cell, which takes several times as long.",
            type(base).__name__,
            reason,
        )
        return PlainTokenEngine(model, sampling, device, ends, is_stopped)
    if settings.quantization == "none" and can_fuse(base):
        return TokenEngine(FusedDecoder(base, decoder.shape), sampling, ends, sizes, is_stopped)
    return TokenEngine(decoder, sampling, ends, sizes, is_stopped)


def _stock_decoder(model: Any, device: str) -> tuple[StockDecoder | None, str]:
    """Return the model's modules over packed tokens, or None and why they cannot run so."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not base._can_set_attn_implementation():
        return None, "its attention cannot be replaced"
    try:
        decoder = StockDecoder(model, device)
        reason = differs_from_own_forward(decoder, model, device)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"
    return (None, reason) if reason else (decoder, "")


def _context_tokens(config: Any) -> int:
    """Return how many tokens the model sees at once: its positions, or its attention's window where that is less."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", *_WINDOWS)]
    return min([int(limit) for limit in limits if limit], default=_UNLIMITED)
