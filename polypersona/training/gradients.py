"""The gradient of one step: a worker's share of the rows, micro-batch by micro-batch, whatever memory allows.

A step's loss is the mean over all answer tokens of its global batch. Each worker adds up its own rows' part, so the
sum over workers is the same gradient for any number of workers and any micro-batch. Memory that runs out halves the
micro-batch and begins the share again: no other worker need know. Knows torch, no optimiser and no group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from polypersona.errors import InfeasiblePlanError
from polypersona.training.encoding import AnyRow, collate
from polypersona.training.trainable import Trainable

_SHORTAGE = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


@dataclass(slots=True)
class ShareOfStep:
    """Adds up the gradient of a worker's rows.

    Args:
        trainable: the model.
        rows: all rows of the training.
        pad_id: of the tokenizer.
        micro_batch: rows of one forward, to begin with.
        num_shared: tokens that all rows begin with, computed once a forward.
        before_forward: called with the number of rows of each forward; what it raises is the forward's own failure.
    """

    trainable: Trainable
    rows: Sequence[AnyRow]
    pad_id: int
    micro_batch: int
    num_shared: int = 0
    before_forward: Callable[[int], None] = lambda rows: None
    gradient: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        parameters = self.trainable.parameters
        total = sum(parameter.numel() for parameter in parameters)
        # One more place than parameters: the summed loss, so that workers add up both at once.
        self.gradient = torch.zeros(total + 1, dtype=torch.float32, device=self.trainable.device)
        place = 0
        for parameter in parameters:
            parameter.grad = self.gradient[place : place + parameter.numel()].view_as(parameter)
            place += parameter.numel()

    def compute(self, indices: Sequence[int], num_answer: int, seed: int, scale: float = 1.0) -> list[dict[str, Any]]:
        """Fill `gradient` with this share's part of the step's gradient, its loss in the last place.

        Args:
            indices: the share's rows.
            num_answer: answer tokens of the whole step, which the loss is the mean over.
            seed: of dropout.
            scale: what fp16 multiplies losses by.

        Returns:
            One entry for each time memory ran out: `micro_batch`, `next` and the `reason`.

        Raises:
            InfeasiblePlanError: memory does not hold a single row.
        """
        shortages = []
        while (reason := self._try(indices, num_answer, seed, scale)) is not None:
            # Not in the handler: there the error still holds the forward's tensors.
            if self.trainable.device != "cpu":
                torch.cuda.empty_cache()
            if self.micro_batch == 1:
                raise InfeasiblePlanError(
                    f"Training ran out of memory with one row of {self._longest(indices)} tokens: {reason}.",
                    "Use a larger device, model.quantization: nf4, or a smaller finetune.max_length.",
                )
            smaller = min(self.micro_batch, len(indices)) // 2 or 1
            shortages.append({"micro_batch": self.micro_batch, "next": smaller, "reason": reason})
            self.micro_batch = smaller
        return shortages

    def _try(self, indices: Sequence[int], num_answer: int, seed: int, scale: float) -> str | None:
        """Compute the share from its beginning; return why memory did not do, None where it did."""
        torch.manual_seed(seed)
        self.gradient.zero_()
        total = self.gradient[-1]
        try:
            for begin in range(0, len(indices), self.micro_batch):
                micro = indices[begin : begin + self.micro_batch]
                self.before_forward(len(micro))
                batch = collate([self.rows[index] for index in micro], self.pad_id, self.num_shared).to(
                    self.trainable.device
                )
                loss = self.trainable.summed_loss(batch) / num_answer
                (loss * scale).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        return None

    def _longest(self, indices: Sequence[int]) -> int:
        return max(len(self.rows[index].ids) for index in indices)


def is_shortage(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or in the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SHORTAGE)
