"""Rows of choices → one batch of tensors, and the loss: minus the log-likelihood of the option that was chosen.

The likelihood of an option is that of its tokens after the prompt; it is divided by the sum over the question's
options, which is how generation scores (`closed: score`). Knows torch and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from polypersona.training.choices import ChoiceRow


@dataclass(frozen=True, slots=True)
class ChoiceBatch:
    """Rows padded on the right. R rows of W tokens, Q questions of at most K options, T scored tokens.

    `sees` (R, W, W) says which tokens stand before which, themselves included. `sources` are the places in R × W, flat,
    from which a next token is predicted, once each. For each of T tokens `before` has the place of the token before it
    among those, `targets` the token, `places` its option in Q × K. `weights` (Q, K) are what each choice counts,
    `is_option` (Q, K) where there is an option.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    sources: torch.Tensor
    before: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor
    is_option: torch.Tensor

    def to(self, device: str) -> ChoiceBatch:
        """Return the batch on a device."""
        return ChoiceBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Return what is added to attention scores, (R, 1, W, W)."""
        mask = torch.zeros(self.sees.shape, dtype=dtype, device=self.sees.device)
        return mask.masked_fill_(~self.sees, torch.finfo(dtype).min)[:, None]


def collate_choices(rows: Sequence[ChoiceRow], pad_id: int) -> ChoiceBatch:
    """Return the rows as one batch."""
    width = max(len(row.ids) for row in rows)
    ids, positions = np.full((len(rows), width), pad_id), np.zeros((len(rows), width), np.int64)
    sees = np.zeros((len(rows), width, width), bool)
    sees[:] = np.eye(width, dtype=bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        positions[index, : len(row.ids)] = row.positions
        own = sees[index]
        for node, parent in enumerate(row.parents):
            if parent >= 0:
                own[node] |= own[parent]
    posed = [(index, question) for index, row in enumerate(rows) for question in row.questions]
    most = max(len(question.options) for _, question in posed)
    weights, is_option = np.zeros((len(posed), most), np.float32), np.zeros((len(posed), most), bool)
    nodes, targets, places = [], [], []
    for number, (index, question) in enumerate(posed):
        weights[number, : len(question.weights)] = question.weights
        is_option[number, : len(question.options)] = True
        for place, option in enumerate(question.options):
            for node, token in option:
                nodes.append(index * width + node)
                targets.append(token)
                places.append(number * most + place)
    sources, before = np.unique(nodes, return_inverse=True)
    arrays = (ids, positions, sees, sources, before, targets, places, weights, is_option)
    return ChoiceBatch(*(torch.from_numpy(np.asarray(array)) for array in arrays))


def choice_loss(logits: torch.Tensor, batch: ChoiceBatch) -> torch.Tensor:
    """Return (Q), the loss of each question, summed over its options by their weights.

    `logits` are of the batch's `sources`, in fp32.
    """
    tokens = torch.log_softmax(logits, dim=-1)  # (sources, vocabulary)
    own = tokens[batch.before, batch.targets]
    scores = own.new_zeros(batch.weights.numel()).index_add(0, batch.places, own).view_as(batch.weights)
    options = torch.log_softmax(scores.masked_fill(~batch.is_option, -torch.inf), dim=-1)
    return -(batch.weights * options.masked_fill(~batch.is_option, 0.0)).sum(dim=1)
