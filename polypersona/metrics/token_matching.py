"""The greedy matching of BERTScore on the token vectors of an encoder (`bertscore` says what it is).

Pairs that are matched together share their work: every distinct text goes through the encoder once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from polypersona.metrics.base import FloatArray, TextPair
from polypersona.metrics.encoder import Encoder, cannot_load


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text's unit token vectors, shape (num_tokens, width), and the weight of each in a mean; 0 for a border."""

    vectors: torch.Tensor
    weights: torch.Tensor


@dataclass(slots=True)
class TokenMatcher:
    """Matches the tokens of texts by an encoder that is cut off above the layer that is compared."""

    encoder: Encoder

    @classmethod
    def load(cls, model: str, layer: int, key: str, threads: int | None = None) -> TokenMatcher:
        """Load an encoder from a folder or by hub id, as bert-score does.

        Args:
            model: the folder or hub id.
            layer: the hidden layer that is compared.
            key: the recipe's key that names the encoder.
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
            raise cannot_load(key, model, error) from error
        return cls(Encoder.of(loaded, tokenizer))

    @property
    def num_encoded(self) -> int:
        """How many texts were encoded."""
        return self.encoder.num_encoded

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

        tokenizer, device = self.encoder.tokenizer, self.encoder.device
        borders = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        ids = {text: sent_encode(tokenizer, text) for text in texts if text.strip()}
        kept = {text: tokens for text, tokens in ids.items() if not borders.issuperset(tokens)}
        found: dict[str, Embedded] = {}
        with torch.inference_mode():
            for batch, vectors in self.encoder.encode(kept):
                units = torch.nn.functional.normalize(vectors, dim=-1, eps=0.0)
                for text, unit in zip(batch, units, strict=True):
                    own = kept[text]
                    weights = torch.tensor([token not in borders for token in own], dtype=torch.float32)
                    found[text] = Embedded(unit[: len(own)], (weights / weights.sum()).to(device))
        return found


def _greedy(left: Embedded, right: Embedded) -> torch.Tensor:
    """Return precision and recall: each own token's best cosine, borders of the other text included, as a mean."""
    cosines = left.vectors @ right.vectors.T
    precision = cosines.amax(dim=1) @ left.weights
    recall = cosines.amax(dim=0) @ right.weights
    return torch.stack((precision, recall))
