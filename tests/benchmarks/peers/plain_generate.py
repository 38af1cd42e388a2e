"""What anyone would write first: `generate` on left-padded batches of 32, in the rows' random order or by length.

Each row stops after its own number of tokens, a batch when all its rows have stopped. Modes: `static32` (rows as they
come) and `bucketed32` (closed and open apart, each sorted by prompt length).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.workload import SAMPLING, Row

BATCH = 32


class StopAtLengths(StoppingCriteria):  # type: ignore[misc]
    """Stops every row after its own number of new tokens."""

    def __init__(self, lengths: Sequence[int], width: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.width >= self.lengths


def left_padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give (B, T) ids and attention mask; token 0 pads."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    return ids, mask


class PlainGenerate:
    def __init__(self, folder: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.model.generation_config.eos_token_id = None  # lengths are given, as in every engine here
        self.model.generation_config.pad_token_id = 0

    def prepare(self, rows: Sequence[Row]) -> None:
        self._generate([Row(0, 0, [5, 6, 7 + index], 0, 0, 3, []) for index in range(4)])

    def run(self, rows: Sequence[Row], mode: str) -> list[int]:
        order = list(range(len(rows)))
        if mode == "bucketed32":
            order.sort(key=lambda index: (rows[index].kind, len(rows[index].ids)))
        else:
            random.Random(3).shuffle(order)
        lengths = [0] * len(rows)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            for index, length in zip(batch, self._generate([rows[index] for index in batch]), strict=True):
                lengths[index] = length
        return lengths

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row]) -> list[int]:
        ids, mask = left_padded(rows)
        wanted = [row.length for row in rows]
        out = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(wanted),
            do_sample=True,
            stopping_criteria=StoppingCriteriaList([StopAtLengths(wanted, ids.shape[1])]),
            **SAMPLING,
        )
        written = out[:, ids.shape[1] :].tolist()
        return [len(tokens[:length]) for tokens, length in zip(written, wanted, strict=True)]


def build(folder: str, dtype: str) -> PlainGenerate:
    return PlainGenerate(folder, dtype)
