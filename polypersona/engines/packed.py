"""The packed engine: a Hugging Face causal model that answers all cells of a persona over one shared prefix.

The persona's part of the prompt is computed once; every cell continues from its keys and values. Closed cells are
scored: one forward gives the probability of every option, and the cell's own seed draws one. Open cells, and the
rationale of closed ones, are written token by token. Takes messages' text through `chatml` alone; knows no Ray, no
shard and no file of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache

from polypersona.chatml import (
    build_messages,
    encode,
    encode_prompt,
    end_of_turn_ids,
    render_answer,
    render_choice,
    shared_prefix_length,
)
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.engines.base import Answer, Cell, EngineSettings, Group, Reproduces
from polypersona.engines.option_tree import lay_out, option_tree
from polypersona.engines.sampling import SamplingSettings, choose_option, sample_tokens
from polypersona.errors import ModelError
from polypersona.models.loading import load_model, load_tokenizer

_WINDOWS = ("sliding_window", "attention_chunk_size")
_UNLIMITED = 1 << 20
_NOT_FINITE = "the model's logits are not finite"


@dataclass(slots=True)
class _Row:
    """A cell on its way through the engine. `suffix` is the prompt after what the persona's cells share."""

    cell: Cell
    prompt: list[int]
    options: list[list[int]]
    suffix: list[int] = field(default_factory=list)
    reused: int = 0
    choice: int | None = None
    probs: list[float] | None = None
    written: list[int] = field(default_factory=list)
    is_ended: bool = False
    error: str = ""


class PackedEngine:
    """Answers with a causal language model in this process, on its GPU where there is one.

    Temperature and filters shape what is written, token by token. A scored option is drawn from the probabilities as
    the model gives them; temperature 0 takes the likeliest. With `closed: text` the model itself ends its answer with a
    rationale or without.

    Raises:
        ModelError: the model or adapter cannot be loaded, or is of a kind whose answers this engine would change.
    """

    name = "packed"
    reproduces: Reproduces = "bytes"

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(settings.threads)
        self._tokenizer = load_tokenizer(
            settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        self._model = load_model(
            settings.model,
            dtype=settings.dtype,
            quantization=settings.quantization,
            adapter=settings.adapter,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            device=self._device,
        )
        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        self._decoder = base.get_decoder()
        self._head = base.get_output_embeddings()
        self._max_tokens = _context_tokens(base.config.get_text_config())
        self._ends = end_of_turn_ids(self._tokenizer)
        self._sampling = SamplingSettings(settings.temperature, settings.top_k, settings.top_p, settings.min_p)
        self._check_model()

    @torch.inference_mode()
    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order; cells that do not fit the model's context end as `error`."""
        return [answer for group in groups for answer in self._answer_group(group)]

    def close(self) -> None:
        """Free the weights."""
        self._model = self._decoder = self._head = None

    @torch.inference_mode()
    def _check_model(self) -> None:
        """Compare a branch over a cached prefix with the model's own forward, on a few tokens."""
        ids = [index % self._head.weight.shape[0] for index in range(3, 15)]
        tree = option_tree(ids[2:8], [ids[::-1], [*ids[8:], 0]])
        end = tree.options[1][-1][0]
        try:
            cache = self._expanded(self._prefix_cache(ids[:2]), 1)
            ours = self._logits(self._forward(cache, *lay_out([tree], 2))[0, end]).softmax(-1)
            own = self._model(input_ids=torch.tensor([ids], device=self._device)).logits[0, -1].float().softmax(-1)
            is_same = bool((ours - own).abs().sum() <= (1e-3 if self._settings.dtype == "fp32" else 0.2))
        except (AttributeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise self._other_kind(f"{type(error).__name__}: {error}") from error
        if not is_same and bool(own.isfinite().all()):
            raise self._other_kind("its own forward gives other probabilities")

    def _other_kind(self, reason: str) -> ModelError:
        return ModelError(
            f"The packed engine cannot continue from a shared prefix with {self._settings.model!r}, a "
            f"{type(self._model).__name__}: {reason}.",
            "Choose a decoder with rotary positions, such as Llama, Mistral, Qwen2 or Phi.",
        )

    def _answer_group(self, group: Group) -> list[Answer]:
        rows = [self._build_row(group, cell) for cell in group.cells]
        kept = [row for row in rows if not row.error]
        if kept:
            shared = shared_prefix_length([row.prompt for row in kept]) if len(kept) > 1 else len(kept[0].prompt) - 1
            for row in kept:
                row.suffix = row.prompt[shared:]
                row.reused = 0 if row is kept[0] else shared
            prefix = self._prefix_cache(kept[0].prompt[:shared])
            for chunk in _chunks(kept, self._settings.slots):
                self._score(prefix, shared, [row for row in chunk if row.options])
                self._write(prefix, shared, [row for row in chunk if self._max_written(row) and not row.error])
        return [self._finish(row) for row in rows]

    def _build_row(self, group: Group, cell: Cell) -> _Row:
        messages = build_messages(group.persona, cell.item, self._settings.show_options, cell.order)
        is_scored = cell.item.is_closed and self._settings.closed == "score"
        labels = cell.item.options if is_scored else ()
        row = _Row(
            cell,
            encode_prompt(self._tokenizer, messages),
            [encode(self._tokenizer, render_choice(label)) for label in labels],
        )
        need = len(row.prompt) + max(map(len, row.options), default=0) + self._max_written(row)
        if need > self._max_tokens:
            row.error = (
                f"the prompt has {len(row.prompt)} tokens, {need} with its answer; "
                f"the model has room for {self._max_tokens}"
            )
        return row

    def _max_written(self, row: _Row) -> int:
        return 0 if row.options and not self._settings.rationale else self._settings.max_new_tokens

    def _prefix_cache(self, ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return keys and values of the shared tokens, (1, heads, tokens, head size) per layer; empty without any."""
        if not ids:
            return []
        cache = DynamicCache()
        self._decoder(input_ids=torch.tensor([list(ids)], device=self._device), past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _expanded(self, prefix: Sequence[tuple[torch.Tensor, torch.Tensor]], count: int) -> DynamicCache:
        cache = DynamicCache()
        for index, (keys, values) in enumerate(prefix):
            cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), index)
        return cache

    def _forward(
        self, cache: DynamicCache, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden states (rows, tokens, size). `visible` is (rows, tokens, cached + tokens) bool."""
        dtype = self._head.weight.dtype if self._head.weight.is_floating_point() else torch.float32
        bias = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        hidden: torch.Tensor = self._decoder(
            input_ids=ids.to(self._device),
            position_ids=positions.to(self._device),
            attention_mask=bias[:, None].to(self._device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden)
        return logits.float()

    def _score(self, prefix: Sequence[tuple[torch.Tensor, torch.Tensor]], shared: int, rows: list[_Row]) -> None:
        """Give every row the probabilities of its options and its choice, from one forward.

        A row's tokens are its suffix and, as branches that see the suffix and themselves only, every option but its
        last token.
        """
        if not rows:
            return
        trees = [option_tree(row.suffix, row.options) for row in rows]
        hidden = self._forward(self._expanded(prefix, len(rows)), *lay_out(trees, shared))
        where = [(index, parent) for index, tree in enumerate(trees) for option in tree.options for parent, _ in option]
        tokens = [token for tree in trees for option in tree.options for _, token in option]
        picked = hidden[torch.tensor([row for row, _ in where]), torch.tensor([at for _, at in where])]
        log_probs = torch.log_softmax(self._logits(picked), -1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        values = iter(log_probs.double().tolist())
        for row, tree in zip(rows, trees, strict=True):
            totals = [sum(next(values) for _ in option) for option in tree.options]
            if not all(map(math.isfinite, totals)):
                row.error = _NOT_FINITE
                continue
            row.choice, row.probs = choose_option(totals, row.cell.seed, is_greedy=self._settings.temperature == 0)

    def _write(self, prefix: Sequence[tuple[torch.Tensor, torch.Tensor]], shared: int, rows: list[_Row]) -> None:
        """Write every row's text: after its choice where it has one, else from the start of the answer."""
        if not rows:
            return
        starts = [row.suffix + (row.options[row.choice] if row.choice is not None else []) for row in rows]
        lengths = torch.tensor([len(start) for start in starts])
        width = int(lengths.max())
        count, limit = len(rows), self._settings.max_new_tokens
        ids = torch.zeros(count, width, dtype=torch.long)
        for index, start in enumerate(starts):
            ids[index, : len(start)] = torch.tensor(start)
        cache = self._expanded(prefix, count)
        steps = torch.arange(width)
        visible = torch.ones(count, width, shared + width, dtype=torch.bool)
        visible[:, :, shared:] = torch.ones(width, width, dtype=torch.bool).tril()
        hidden = self._forward(cache, ids, (steps + shared).expand(count, -1), visible)
        last = hidden[torch.arange(count), lengths - 1]
        seen = torch.zeros(count, shared + width + limit, dtype=torch.bool)
        seen[:, : shared + width] = True
        seen[:, shared : shared + width] = steps < lengths[:, None]
        for step in range(1, limit + 1):
            logits = self._logits(last)
            tokens = sample_tokens(logits, [row.cell.seed for row in rows], [step] * count, self._sampling)
            are_finite = logits.logsumexp(-1).isfinite().tolist()
            for row, token, is_finite in zip(rows, tokens.tolist(), are_finite, strict=True):
                if not row.is_ended and is_finite:
                    row.written.append(token)
                elif not row.is_ended:
                    row.error = _NOT_FINITE
                row.is_ended |= token in self._ends or not is_finite
            if step == limit or all(row.is_ended for row in rows):
                return
            seen[:, shared + width + step - 1] = True
            last = self._forward(
                cache,
                tokens[:, None].cpu(),
                (shared + lengths + step - 1)[:, None],
                seen[:, None, : shared + width + step],
            )[:, 0]

    def _finish(self, row: _Row) -> Answer:
        answer = self._read(row)
        return replace(
            answer, prompt_tokens=len(row.prompt), reused_prompt_tokens=row.reused, new_tokens=len(row.written)
        )

    def _read(self, row: _Row) -> Answer:
        item, cell_id = row.cell.item, row.cell.assignment_id
        if row.error:
            return Answer(cell_id, "", "error", error=row.error)
        ids = row.written[:-1] if row.is_ended else row.written
        text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        if row.choice is not None:
            label, probs = item.options[row.choice], tuple(row.probs or ())
            whole = render_answer(label, text)
            return Answer(cell_id, whole, "complete", text, item.codes[row.choice], label, probs)
        disposition = disposition_of(item, text, is_truncated=not row.is_ended)
        order = row.cell.order
        code = code_answer(item, text, order) if item.is_closed and disposition == "complete" else None
        label, rationale = split_rationale(item, text, order) if code is not None else ("", "")
        return Answer(cell_id, text, disposition, rationale, code, label)


def _context_tokens(config: Any) -> int:
    """Return how many tokens the model sees at once: its positions, or its attention's window where that is less."""
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", *_WINDOWS)]
    return min([int(limit) for limit in limits if limit], default=_UNLIMITED)


def _chunks(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
