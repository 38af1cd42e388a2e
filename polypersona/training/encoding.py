"""Examples → token ids and batches. The loss is on the assistant's tokens only.

A row that is too long loses tokens from the head of its prompt and is counted; the answer is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from polypersona.chatml import ChatTokenizer, encode_example, shared_prefix_length
from polypersona.errors import DatasetError
from polypersona.records import Example
from polypersona.training.choice_loss import ChoiceBatch, collate_choices
from polypersona.training.choices import ChoiceRow, sampling_weight

# What a prompt keeps at least when it is shortened: the end of the question and the assistant's header.
MIN_PROMPT_TOKENS = 16
LEAST_SHARED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One example: `ids` are prompt and answer, the last `num_answer` of them the answer with its end of turn.

    `weight` is how often it is drawn, one on average.
    """

    ids: tuple[int, ...]
    num_answer: int
    weight: float = 1.0

    @property
    def answer_weight(self) -> float:
        """What each token of the answer counts in a mean over rows."""
        return self.weight


AnyRow: TypeAlias = EncodedRow | ChoiceRow


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows in the examples' order, and how many prompts were shortened."""

    rows: tuple[AnyRow, ...]
    num_shortened: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self.rows]

    @property
    def weights(self) -> list[float] | None:
        """How often each row is drawn, in proportion; None where all count alike."""
        found = [row.weight for row in self.rows]
        return found if any(weight != found[0] for weight in found) else None


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
        rows.append(EncodedRow((*prompt, *answer), len(answer), sampling_weight(example)))
    return EncodedRows(tuple(rows), num_shortened)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right, so that causal attention needs no mask: nothing real ever sees what follows it.

    `ids` are (rows, tokens). `sources` are the places in rows × tokens, flat, whose next token belongs to an answer;
    `targets` are those next tokens. With `num_shared` tokens that all `num_rows` rows begin with, `ids` are one row:
    those tokens once, then the rest of each row, padded to one width.
    """

    ids: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    num_rows: int
    num_shared: int = 0

    @property
    def positions(self) -> torch.Tensor:
        """Return (1, tokens): where each token stands in its row, for a batch with shared tokens."""
        width = (self.ids.shape[1] - self.num_shared) // self.num_rows
        steps = torch.arange(self.num_shared + width, device=self.ids.device)
        return torch.cat([steps[: self.num_shared], steps[self.num_shared :].repeat(self.num_rows)])[None]

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        ids, sources, targets = (one.to(device, non_blocking=True) for one in (self.ids, self.sources, self.targets))
        return Batch(ids, sources, targets, self.num_rows, self.num_shared)


def num_shared_tokens(rows: Sequence[AnyRow]) -> int:
    """Return with how many tokens of their prompts all rows begin; 0 for rows of choices, or too few to gain by."""
    prompts = [row.ids[: len(row.ids) - row.num_answer] for row in rows if isinstance(row, EncodedRow)]
    found = shared_prefix_length(prompts) if len(prompts) == len(rows) else 0
    return found if found >= LEAST_SHARED_TOKENS else 0


def collate(rows: Sequence[AnyRow], pad_id: int, num_shared: int = 0) -> Batch | ChoiceBatch:
    """Return the rows, all of one kind, as one batch; the loss is taken at `sources` and nowhere else.

    The first `num_shared` tokens are those of all rows, and stand in the batch once.
    """
    choices = [row for row in rows if isinstance(row, ChoiceRow)]
    if choices:
        return collate_choices(choices, pad_id)
    return _collate([row for row in rows if isinstance(row, EncodedRow)], pad_id, num_shared)


def _collate(rows: Sequence[EncodedRow], pad_id: int, num_shared: int) -> Batch:
    longest = max(len(row.ids) for row in rows)
    width = longest - num_shared
    ids = torch.tensor([[*row.ids[num_shared:], *[pad_id] * (longest - len(row.ids))] for row in rows])
    if num_shared:
        ids = torch.cat([torch.tensor(rows[0].ids[:num_shared]), ids.flatten()])[None]
    sources: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        end = index * width + len(row.ids) - 1
        sources += range(end - row.num_answer, end)
        targets += row.ids[len(row.ids) - row.num_answer :]
    return Batch(ids, torch.tensor(sources), torch.tensor(targets), len(rows), num_shared)
