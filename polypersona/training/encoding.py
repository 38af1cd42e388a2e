"""Examples → token ids and batches. The loss is on the assistant's tokens only.

A row that is too long loses tokens from the head of its prompt and is counted; the answer is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polypersona.chatml import ChatTokenizer, encode_example
from polypersona.errors import DatasetError
from polypersona.records import Example

IGNORED = -100
# What a prompt keeps at least when it is shortened: the end of the question and the assistant's header.
MIN_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One example: `ids` are prompt and answer, the last `num_answer` of them the answer with its end of turn."""

    ids: tuple[int, ...]
    num_answer: int


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows in the examples' order, and how many prompts were shortened."""

    rows: tuple[EncodedRow, ...]
    num_shortened: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self.rows]


def encode_examples(tokenizer: ChatTokenizer, examples: Sequence[Example], max_length: int) -> EncodedRows:
    """Tokenise the examples by the renderer that generation uses.

    Raises:
        DatasetError: an answer is empty or leaves no room for a prompt.
    """
    rows, num_shortened = [], 0
    for example in examples:
        if not example.messages[-1]["content"].strip():
            raise DatasetError(
                f"The example {example.id!r} has an empty answer, so there is nothing to learn from.", "Remove the row."
            )
        prompt, answer = encode_example(tokenizer, example.messages)
        room = max_length - len(answer)
        if room < min(MIN_PROMPT_TOKENS, len(prompt)):
            raise DatasetError(
                f"The answer of example {example.id!r} has {len(answer)} of the {max_length} tokens a row may have.",
                "Raise finetune.max_length, or remove the row.",
            )
        if len(prompt) > room:
            prompt, num_shortened = prompt[-room:], num_shortened + 1
        rows.append(EncodedRow((*prompt, *answer), len(answer)))
    return EncodedRows(tuple(rows), num_shortened)


def collate(rows: Sequence[EncodedRow], pad_id: int, *, is_head_limited: bool = True) -> dict[str, Any]:
    """Return a batch padded on the left, so that all answers end together.

    With `is_head_limited` the model's head computes logits for the last K positions only, K being the longest answer
    plus the token before it, and labels are (rows, K); otherwise labels are (rows, tokens). Prompts and padding are
    ignored by the loss either way.
    """
    width = max(len(row.ids) for row in rows)
    kept = max(row.num_answer for row in rows) + 1 if is_head_limited else width
    kept = min(kept, width)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (rows, tokens)
    mask = torch.zeros((len(rows), width), dtype=torch.long)  # (rows, tokens)
    labels = torch.full((len(rows), kept), IGNORED, dtype=torch.long)  # (rows, K)
    for index, row in enumerate(rows):
        ids[index, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[index, width - len(row.ids) :] = 1
        labels[index, kept - row.num_answer :] = torch.tensor(row.ids[len(row.ids) - row.num_answer :])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    return {**batch, "logits_to_keep": kept} if is_head_limited else batch
