"""Texts' tokens → vectors of an encoder's last layer. Knows no comparison, no persona, no shard and no Ray.

Texts are sorted by length. On a CPU a batch holds texts of equal length and so no pad; on a GPU it may hold pads, which
the encoder masks. What is computed together follows from the set of texts alone, so the same texts give the same
vectors on the same kind of hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polypersona.errors import ModelError

# Tokens of a batch: few enough for a layer's activations to stay in a core's cache, or enough to fill a GPU.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 1 << 15


@dataclass(slots=True)
class Encoder:
    """An encoder with its tokenizer, on a device. `num_encoded` counts the texts it has encoded."""

    model: Any
    tokenizer: Any
    device: torch.device
    num_encoded: int = 0

    @classmethod
    def of(cls, model: Any, tokenizer: Any, max_tokens: int | None = None) -> Encoder:
        """Return the encoder on the GPU where there is one; its tokenizer cuts what is longer than the encoder takes.

        Args:
            model: its last layer is the one that is compared.
            tokenizer: the encoder's own.
            max_tokens: a further limit of a text's tokens.
        """
        # Without a limit a tokenizer reports 10**30, which is handed to code that takes a C integer.
        limit = getattr(model.config, "max_position_embeddings", 512)
        limits = [tokenizer.model_max_length, limit, *([] if max_tokens is None else [max_tokens])]
        tokenizer.model_max_length = min(limits)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), tokenizer, device)

    def encode(self, tokens: Mapping[str, Sequence[int]]) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield all texts, some at once, with their tokens' vectors, shape (num_texts, longest, width).

        What stands behind a text's own tokens means nothing.

        Args:
            tokens: of each text.
        """
        order = sorted(tokens, key=lambda text: (len(tokens[text]), text))
        for batch in self._batches(order, [len(tokens[text]) for text in order]):
            self.num_encoded += len(batch)
            yield batch, self._forward([tokens[text] for text in batch])

    def _batches(self, texts: Sequence[str], lengths: Sequence[int]) -> Iterator[list[str]]:
        """Yield texts that go through the encoder together; they come in order of length."""
        may_pad = self.device.type != "cpu"
        budget = GPU_BATCH_TOKENS if may_pad else CPU_BATCH_TOKENS
        batch: list[str] = []
        begin = 0
        for place, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            is_full = (len(batch) + 1) * length > budget
            if batch and (is_full or (not may_pad and length != lengths[begin])):
                yield batch
                batch, begin = [], place
            batch.append(text)
        if batch:
            yield batch

    def _forward(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        longest = len(tokens[-1])
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*own, *[pad] * (longest - len(own))] for own in tokens], device=self.device)
        mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in tokens], device=self.device)
        vectors: torch.Tensor = self.model(ids, attention_mask=mask)[0].float()
        return vectors


def cannot_load(key: str, model: str, error: Exception) -> ModelError:
    """Return the named form of a failure to load an encoder's weights or tokenizer."""
    return ModelError(
        f"{key}: {model!r} cannot be loaded ({error}).", "Name a folder or hub id of an encoder, or leave the key out."
    )
