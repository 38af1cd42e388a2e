"""The packed engine: a Hugging Face causal model that answers all cells of a persona over one shared prefix.

The persona's part of the prompt is computed once; every cell continues from its keys and values. Closed cells are
scored: one forward gives the probability of every option, and the cell's own seed draws one. Open cells, and the rationale
of closed ones, are written token by token. Takes messages' text through `chatml` alone; knows no Ray, no shard and no file
of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from polypersona.engines.sampling import SamplingSettings, choose_option, sample_tokens
from polypersona.models.loading import load_model, load_tokenizer


@dataclass(slots=True)
class _Row:
    """A cell on its way through the engine. Token lists exclude what the persona's cells share."""

    cell: Cell
    suffix: list[int]
    options: list[list[int]] = field(default_factory=list)
    choice: int | None = None
    probs: list[float] | None = None
    written: list[int] = field(default_factory=list)
    is_ended: bool = False


class PackedEngine:
    """Answers with a causal language model in this process, on its GPU where there is one.

    Raises:
        ModelError: the model or adapter cannot be loaded.
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
        self._max_tokens = int(getattr(base.config, "max_position_embeddings", 1 << 20))
        self._ends = end_of_turn_ids(self._tokenizer)
        self._sampling = SamplingSettings(settings.temperature, settings.top_k, settings.top_p, settings.min_p)

    @torch.inference_mode()
    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order; cells that do not fit the model's context end as `error`."""
        return [answer for group in groups for answer in self._answer_group(group)]

    def close(self) -> None:
        """Free the weights."""
        del self._model, self._decoder, self._head

    def _answer_group(self, group: Group) -> list[Answer]:
        show = self._settings.show_options
        prompts = [
            encode_prompt(self._tokenizer, build_messages(group.persona, cell.item, show, cell.order))
            for cell in group.cells
        ]
        options = [self._option_tokens(cell) for cell in group.cells]
        fits = [
            len(prompt) + sum(map(len, branches)) + self._settings.max_new_tokens <= self._max_tokens
            for prompt, branches in zip(prompts, options, strict=True)
        ]
        kept = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        shared = shared_prefix_length(kept) if len(kept) > 1 else max(0, len(kept[0]) - 1) if kept else 0
        rows = [
            _Row(cell, prompt[shared:], branches)
            for cell, prompt, branches, fit in zip(group.cells, prompts, options, fits, strict=True)
            if fit
        ]
        if rows:
            prefix = self._prefix_cache(kept[0][:shared])
            for chunk in _chunks(rows, self._settings.slots):
                self._score(prefix, shared, [row for row in chunk if row.options])
                self._write(prefix, shared, [row for row in chunk if self._is_written(row)])
        done = iter(rows)
        first = rows[0] if rows else None
        answers = []
        for cell, prompt, fit in zip(group.cells, prompts, fits, strict=True):
            if not fit:
                answers.append(self._too_long(cell, len(prompt)))
                continue
            row = next(done)
            answers.append(self._finish(row, len(prompt), 0 if row is first else shared))
        return answers

    def _option_tokens(self, cell: Cell) -> list[list[int]]:
        """Return the token ids of every option's opening sentence, in the item's own order; empty for written cells."""
        if not cell.item.is_closed or self._settings.closed == "text":
            return []
        return [encode(self._tokenizer, render_choice(label)) for label in cell.item.options]

    def _is_written(self, row: _Row) -> bool:
        return not row.options or self._settings.rationale

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
        return self._head(hidden).float()

    def _score(self, prefix: Sequence[tuple[torch.Tensor, torch.Tensor]], shared: int, rows: list[_Row]) -> None:
        """Give every row the probabilities of its options and its choice, from one forward.

        A row's tokens are its suffix and, as branches that see the suffix and themselves only, every option but its last
        token.
        """
        if not rows:
            return
        trees = [_tree(row.suffix, row.options) for row in rows]
        width = max(len(tree.ids) for tree in trees)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        visible = torch.zeros(len(rows), width, shared + width, dtype=torch.bool)
        visible[:, :, :shared] = True
        visible[:, :, shared:] |= torch.eye(width, dtype=torch.bool)
        for index, tree in enumerate(trees):
            size = len(tree.ids)
            ids[index, :size] = torch.tensor(tree.ids)
            positions[index, :size] = torch.tensor(tree.positions) + shared
            visible[index, :size, shared : shared + size] = tree.visible
        hidden = self._forward(self._expanded(prefix, len(rows)), ids, positions, visible)
        where = [(index, parent) for index, tree in enumerate(trees) for option in tree.options for parent, _ in option]
        tokens = [token for tree in trees for option in tree.options for _, token in option]
        picked = hidden[torch.tensor([row for row, _ in where]), torch.tensor([at for _, at in where])]
        log_probs = torch.log_softmax(self._logits(picked), -1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        values = iter(log_probs.double().tolist())
        for row, tree in zip(rows, trees, strict=True):
            totals = [sum(next(values) for _ in option) for option in tree.options]
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
            tokens = sample_tokens(self._logits(last), [row.cell.seed for row in rows], [step] * count, self._sampling)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row.is_ended:
                    row.is_ended = token in self._ends
                    row.written.append(token)
            if step == limit or all(row.is_ended for row in rows):
                return
            seen[:, shared + width + step - 1] = True
            last = self._forward(
                cache,
                tokens[:, None].cpu(),
                (shared + lengths + step - 1)[:, None],
                seen[:, None, : shared + width + step],
            )[:, 0]

    def _finish(self, row: _Row, prompt_tokens: int, reused: int) -> Answer:
        item, cell = row.cell.item, row.cell
        ids = row.written[:-1] if row.is_ended else row.written
        text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        is_truncated = self._is_written(row) and not row.is_ended
        counts = {"prompt_tokens": prompt_tokens, "reused_prompt_tokens": reused, "new_tokens": len(row.written)}
        if row.choice is not None:
            label = item.options[row.choice]
            return Answer(
                cell.assignment_id,
                render_answer(label, text),
                "complete",
                rationale=text,
                code=item.codes[row.choice],
                label=label,
                option_probs=tuple(row.probs or ()),
                **counts,
            )
        disposition = disposition_of(item, text, is_truncated=is_truncated)
        code = code_answer(item, text) if item.is_closed and disposition == "complete" else None
        label, rationale = split_rationale(item, text) if code is not None else ("", "")
        return Answer(cell.assignment_id, text, disposition, rationale, code, label, **counts)

    def _too_long(self, cell: Cell, prompt_tokens: int) -> Answer:
        room = self._max_tokens - self._settings.max_new_tokens
        return Answer(
            cell.assignment_id,
            "",
            "error",
            error=f"the prompt has {prompt_tokens} tokens and its options; the model has room for {room}",
            prompt_tokens=prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Tree:
    """A suffix with its options as branches. `options` hold, per token to score, (index of the token before it, token)."""

    ids: list[int]
    positions: list[int]
    visible: torch.Tensor
    options: list[list[tuple[int, int]]]


def _tree(suffix: list[int], options: Sequence[list[int]]) -> _Tree:
    size = len(suffix) + sum(len(option) - 1 for option in options)
    visible = torch.zeros(size, size, dtype=torch.bool)
    visible[: len(suffix), : len(suffix)] = torch.ones(len(suffix), len(suffix), dtype=torch.bool).tril()
    visible[len(suffix) :, : len(suffix)] = True
    ids, positions, scored = list(suffix), list(range(len(suffix))), []
    for option in options:
        start, branch = len(ids), option[:-1]
        parents = [len(suffix) - 1, *range(start, start + len(branch))]
        scored.append(list(zip(parents, option, strict=True)))
        ids += branch
        positions += range(len(suffix), len(suffix) + len(branch))
        end = start + len(branch)
        visible[start:end, start:end] = torch.ones(len(branch), len(branch), dtype=torch.bool).tril()
    return _Tree(ids, positions, visible, scored)


def _chunks(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
