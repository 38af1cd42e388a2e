"""Keys and values of the packed engine: shared beginnings, and what every slot adds to its own.

Everything is allocated before the first token, so a run's memory is known when it begins. Knows shapes, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The part of a model's configuration that decides the cache's size."""

    num_layers: int
    num_key_heads: int
    head_size: int
    dtype: torch.dtype
    device: str

    def bytes_per_token(self) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_key_heads * self.head_size * self.dtype.itemsize


class KeyValueCache:
    """Keys and values by layer.

    `shared_keys` is (layer, group, head, size, token) and `shared_values` (layer, group, head, token, size); `keys` and
    `values` are the same by slot. Keys stand transposed, as the product with a single query reads them fastest;
    compiled kernels lay them out in blocks of tokens within the same room.

    Args:
        shape: of the model.
        num_groups: shared beginnings at once.
        num_shared: tokens of the longest one.
        num_slots: conversations at once.
        num_own: tokens of the longest conversation beyond its shared beginning.
    """

    def __init__(self, shape: CacheShape, num_groups: int, num_shared: int, num_slots: int, num_own: int) -> None:
        self.shape = shape
        self.num_groups, self.num_shared = num_groups, num_shared
        self.num_slots, self.num_own = num_slots, num_own

        def room(*size: int) -> torch.Tensor:
            return torch.zeros(*size, dtype=shape.dtype, device=shape.device)

        layers, heads, size = shape.num_layers, shape.num_key_heads, shape.head_size
        self.shared_keys = room(layers, num_groups, heads, size, num_shared)
        self.shared_values = room(layers, num_groups, heads, num_shared, size)
        self.keys = room(layers, num_slots, heads, size, num_own)
        self.values = room(layers, num_slots, heads, num_own, size)
        self.shared_lengths = [0] * num_groups

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all keys and values."""
        return sum(part.nbytes for part in (self.shared_keys, self.shared_values, self.keys, self.values))

    def holds(self, num_groups: int, num_shared: int, num_slots: int, num_own: int) -> bool:
        """Return whether a run of this size fits."""
        asked = (num_groups, num_shared, num_slots, num_own)
        have = (self.num_groups, self.num_shared, self.num_slots, self.num_own)
        return all(need <= room for need, room in zip(asked, have, strict=True))

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of slots over other slots."""
        have, want = torch.tensor(sources), torch.tensor(targets)
        self.keys[:, want, :, :, :length] = self.keys[:, have, :, :, :length]
        self.values[:, want, :, :length] = self.values[:, have, :, :length]

    def clear(self, slot: int) -> None:
        """Forget what a slot holds, so that numbers that are not finite reach nobody else."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0

    def clear_shared(self, place: int) -> None:
        """Forget a shared beginning."""
        self.shared_keys[:, place] = 0
        self.shared_values[:, place] = 0

    def copy_shared(self, source: int, targets: Sequence[int]) -> None:
        """Copy one shared beginning over others."""
        for target in targets:
            self.shared_keys[:, target] = self.shared_keys[:, source]
            self.shared_values[:, target] = self.shared_values[:, source]
