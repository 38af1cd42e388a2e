"""The end of a prompt with an item's options as branches, so that one forward scores all of them.

Knows token ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class OptionTree:
    """A suffix with its options as branches.

    `options` hold, per token to score, (index of the token before it, token).
    """

    ids: list[int]
    positions: list[int]
    visible: torch.Tensor
    options: list[list[tuple[int, int]]]


def option_tree(suffix: list[int], options: Sequence[Sequence[int]]) -> OptionTree:
    """Return the tree: the suffix, then every option but its last token, which sees the suffix and itself only."""
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
    return OptionTree(ids, positions, visible, scored)


def lay_out(trees: Sequence[OptionTree], shared: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (ids, positions, visible) of trees side by side behind `shared` cached tokens.

    Ids and positions are (rows, width), `visible` is (rows, width, shared + width). Pads see the cache and themselves.
    """
    count, width = len(trees), max(len(tree.ids) for tree in trees)
    ids = torch.zeros(count, width, dtype=torch.long)
    positions = torch.zeros(count, width, dtype=torch.long)
    visible = torch.zeros(count, width, shared + width, dtype=torch.bool)
    visible[:, :, :shared] = True
    visible[:, :, shared:] |= torch.eye(width, dtype=torch.bool)
    for index, tree in enumerate(trees):
        size = len(tree.ids)
        ids[index, :size] = torch.tensor(tree.ids)
        positions[index, :size] = torch.tensor(tree.positions) + shared
        visible[index, :size, shared : shared + size] = tree.visible
    return ids, positions, visible
