"""The benchmark's models: their shapes, random weights and tokenizers, made once into a cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import phrases, workload

SPECIAL = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
SEED = 11
TRAINING_TEXTS = 5000


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's size, and how many personas are asked."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    personas: int

    @property
    def layer_weights(self) -> int:
        """Weights of the layers' matrix products."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


SHAPES = {
    "small": Shape(hidden=256, layers=6, heads=8, intermediate=704, vocabulary=4096, personas=16),
    "110m": Shape(hidden=768, layers=12, heads=12, intermediate=2048, vocabulary=32000, personas=4),
}


def prepare(name: str, cache: Path, tell: Callable[[str], None]) -> Path:
    """Make the model's folder with weights, tokenizer and `workload.json` unless it is there; give it."""
    folder = cache / f"models-{_digest()}" / name
    rows = folder / "workload.json"
    if not rows.exists():
        tell(f"Making the model {name} in {folder}, once.")
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = _tokenizer(SHAPES[name].vocabulary)
        tokenizer.save_pretrained(folder)
        _save_weights(SHAPES[name], folder)
        workload.save(
            workload.build(SHAPES[name].personas, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]),
            rows,
        )
    return folder


def _digest() -> str:
    """Give a name for what the models and their rows are made by: a change of it makes them anew."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (phrases, workload)]
    return hashlib.sha256(b"".join([*sources, Path(__file__).read_bytes()])).hexdigest()[:8]


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(phrases.tokenizer_text(SEED, TRAINING_TEXTS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", padding_side="left"
    )


def _save_weights(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder)
