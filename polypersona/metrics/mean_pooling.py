"""Sentence vectors by mean pooling, and the cosine of two of them (`card_similarity` says what it is for).

    v(text) = mean of the last layer's vectors over all tokens the encoder sees, its border tokens included

Reimers & Gurevych 2019, Sentence-BERT; the mean that sentence-transformers takes by its attention mask. Pairs that are
compared together share their work: every distinct text goes through the encoder once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from polypersona.metrics.base import FloatArray, TextPair
from polypersona.metrics.encoder import Encoder, cannot_load


@dataclass(slots=True)
class MeanPooler:
    """Compares texts by the means of their token vectors."""

    encoder: Encoder

    @classmethod
    def load(cls, model: str, max_tokens: int | None, key: str, threads: int | None = None) -> MeanPooler:
        """Load a sentence encoder from a folder or by hub id.

        Args:
            model: the folder or hub id.
            max_tokens: at how many tokens a text is cut, where that is fewer than tokenizer and positions allow.
            key: the recipe's key that names the encoder.
            threads: how many this process shall compute with from now on; as it is unless given.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import AutoModel, AutoTokenizer

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            loaded = AutoModel.from_pretrained(
                model, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise cannot_load(key, model, error) from error
        if loaded.config.is_encoder_decoder:
            loaded = loaded.get_encoder()
        return cls(Encoder.of(loaded.eval(), tokenizer, max_tokens))

    @property
    def num_encoded(self) -> int:
        """How many texts were encoded."""
        return self.encoder.num_encoded

    def match(self, pairs: Sequence[TextPair]) -> FloatArray:
        """Return the cosine of each pair of texts, shape (num_pairs, 1).

        NaN where a text has no token; every distinct text is encoded once.
        """
        known = self.embed(sorted({text for pair in pairs for text in pair}))
        values = np.full((len(pairs), 1), np.nan)
        defined = [place for place, (left, right) in enumerate(pairs) if left in known and right in known]
        if defined:
            with torch.inference_mode():
                left, right = (torch.stack([known[pairs[place][side]] for place in defined]) for side in (0, 1))
                values[defined, 0] = (left * right).sum(dim=1).clamp(-1, 1).cpu().numpy()
        return values

    def embed(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the unit vectors of distinct texts, shape (width,); one without a token of its own is left out."""
        tokenizer = self.encoder.tokenizer
        borders = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        ids = {
            text: tokenizer(text.strip(), truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
            for text in texts
        }
        kept = {text: tokens for text, tokens in ids.items() if not borders.issuperset(tokens)}
        found: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for batch, vectors in self.encoder.encode(kept):
                for text, own in zip(batch, vectors, strict=True):
                    mean = own[: len(kept[text])].double().mean(dim=0)
                    found[text] = mean / mean.norm()
        return found
