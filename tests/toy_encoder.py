"""A random BERT in a folder: small, quick, and real for every library that loads encoders."""

from __future__ import annotations

import string
from pathlib import Path

MAX_TOKENS = 64


def write_encoder(folder: Path, max_tokens: int = MAX_TOKENS, *, has_limit: bool = False) -> str:
    """Write an encoder of two layers and return its folder; its tokenizer states no limit unless asked to."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *string.digits]
    words = ["i", "the", "and", "my", "not", "yes", "no", "agree", "disagree", "it", "is", ",", "."]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces])
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=max_tokens,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    if has_limit:
        tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(folder)
    return str(folder)
