"""Texts → token embeddings, and the greedy matching of BERTScore on them. Knows no persona, no shard and no Ray.

Pairs that are matched together share their work: every distinct text goes through the encoder once. Texts are sorted
by length. On a CPU a batch holds texts of equal length and so no pad; on a GPU it may hold pads, which the encoder
masks. What is computed together follows from the set of pairs alone, so the same pairs give the same values on the same
kind of hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polypersona.errors import ModelError
from polypersona.metrics.base import FloatArray, TextPair

# Tokens of a batch: few enough for a layer's activations to stay in a core's cache, or enough to fill a GPU.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 1 << 15


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text's unit token vectors, shape (num_tokens, width), and the weight of each in a mean; 0 for a border."""

    vectors: torch.Tensor
    weights: torch.Tensor


@dataclass(slots=True)
class Encoder:
    """An encoder cut off above the layer that is compared. `num_encoded` counts the texts it has encoded."""

    model: Any
    tokenizer: Any
    device: torch.device
    num_encoded: int = 0

    @classmethod
    def load(cls, model: str, layer: int, threads: int | None = None) -> Encoder:
        """Load an encoder from a folder or by hub id, onto the GPU where there is one.

        Args:
            model: the folder or hub id.
            layer: the hidden layer that is compared.
            threads: how many this process shall compute with from now on; as it is unless given.

        Raises:
            ModelError: it cannot be loaded.
        """
        from bert_score.utils import get_model, get_tokenizer

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            tokenizer, loaded = get_tokenizer(model), get_model(model, layer)
        except (OSError, ValueError, AssertionError) as error:
            raise ModelError(
                f"evaluate.bertscore_model: {model!r} cannot be loaded ({error}).",
                "Name a folder or hub id of an encoder, or leave the key out to go without BERTScore.",
            ) from error
        # Without a limit a tokenizer reports 10**30, which is handed to code that takes a C integer.
        limit = getattr(loaded.config, "max_position_embeddings", 512)
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(loaded.to(device), tokenizer, device)

    def match(self, pairs: Sequence[TextPair]) -> FloatArray:
        """Return precision, recall and F1 of (response, reference) pairs, shape (num_pairs, 3).

        NaN where a text has no token; every distinct text is encoded once.
        """
        known = self.embed(sorted({text for pair in pairs for text in pair}))
        values = np.full((len(pairs), 3), np.nan)
        with torch.inference_mode():
            found = [_greedy(known[left], known[right]) if left in known and right in known else None
                     for left, right in pairs]  # fmt: skip
            defined = [place for place, one in enumerate(found) if one is not None]
            if defined:
                parts = torch.stack([one for one in found if one is not None]).cpu().numpy().astype(np.float64)
                values[defined, :2] = parts
                total = parts.sum(axis=1)
                product = 2 * parts.prod(axis=1)
                values[defined, 2] = np.divide(product, total, out=np.zeros_like(total), where=total != 0)
        return values

    def embed(self, texts: Sequence[str]) -> dict[str, Embedded]:
        """Return the embeddings of distinct texts; one without a token of its own is left out."""
        from bert_score.utils import sent_encode

        borders = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        ids = {text: sent_encode(self.tokenizer, text) for text in texts if text.strip()}
        kept = {text: tokens for text, tokens in ids.items() if not borders.issuperset(tokens)}
        order = sorted(kept, key=lambda text: (len(kept[text]), text))
        found: dict[str, Embedded] = {}
        with torch.inference_mode():
            for batch in self._batches(order, [len(kept[text]) for text in order]):
                tokens = [kept[text] for text in batch]
                for text, own, vectors in zip(batch, tokens, self._forward(tokens), strict=True):
                    weights = torch.tensor([token not in borders for token in own], dtype=torch.float32)
                    found[text] = Embedded(vectors[: len(own)], (weights / weights.sum()).to(self.device))
        self.num_encoded += len(found)
        return found

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
        """Return unit vectors, shape (num_texts, longest, width)."""
        longest = len(tokens[-1])
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*own, *[pad] * (longest - len(own))] for own in tokens], device=self.device)
        mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in tokens], device=self.device)
        vectors: torch.Tensor = self.model(ids, attention_mask=mask)[0].float()
        return torch.nn.functional.normalize(vectors, dim=-1, eps=0.0)


def _greedy(left: Embedded, right: Embedded) -> torch.Tensor:
    """Return precision and recall: each own token's best cosine, borders of the other text included, as a mean."""
    cosines = left.vectors @ right.vectors.T
    precision = cosines.amax(dim=1) @ left.weights
    recall = cosines.amax(dim=0) @ right.weights
    return torch.stack((precision, recall))
