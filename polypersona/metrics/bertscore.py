"""BERTScore: greedy matching of contextual token embeddings (Zhang et al. 2020). Precision, recall and F1, in [−1, 1].

    P = mean over response tokens of the best cosine with a reference token; R the other way; F1 = 2PR / (P + R)

Numbers of different encoders or layers are not comparable (on the same pairs two layers of one encoder gave 0.58 and
0.75), so both stand in the signature. No idf, no baseline rescaling. Every pair goes through the encoder on its own:
padding would let a pair's neighbours, and so the sharding, change its last digits.

It is measured only where the recipe names an encoder, which is loaded at the first pair, once a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from polypersona.errors import ModelError
from polypersona.metrics.base import FloatArray, IntArray, Pair, mean_rows, mean_score
from polypersona.models.location import check_hub_weights, locate_model

Part = Literal["precision", "recall", "f1"]
PARTS: tuple[Part, ...] = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class BertScore:
    """Mean BERTScore of one part. `model` is a folder or a hub id, `layer` the hidden layer compared."""

    model: str
    layer: int
    part: Part
    higher_is_better: bool = True
    needs_reference: bool = True
    width: int = 2

    @property
    def name(self) -> str:
        return f"bertscore_{self.part}"

    @property
    def label(self) -> str:
        return f"BERTScore {'F1' if self.part == 'f1' else self.part}"

    @property
    def signature(self) -> str:
        name = self.model.rstrip("/").rpartition("/")[2] if self.model.startswith(("/", ".")) else self.model
        versions = f"bert-score:{version('bert-score')}|transformers:{version('transformers')}"
        return f"bertscore:{self.part}|model:{name}|layer:{self.layer}|idf:no|rescaled:no|range:-1-1|{versions}"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        index = PARTS.index(self.part)
        return mean_rows([_score(self.model, self.layer, *pair.texts)[index] if pair.texts else None for pair in pairs])

    def score(self, totals: IntArray) -> FloatArray:
        return mean_score(totals)


def build_bertscores(model: str) -> tuple[BertScore, ...]:
    """Return precision, recall and F1 with an encoder, at the layer bert-score recommends or else its last.

    Raises:
        ModelError: the encoder's configuration cannot be read, it runs code of its own, or its weights are pickled.
    """
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    try:
        # False, not the default: that asks on a terminal whether to run the code that the encoder brings along.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        layer = model2layers.get(model) or int(config.num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"evaluate.bertscore_model: {model!r} is no encoder that can be loaded.",
            "Name a folder or hub id of an encoder, or leave the key out to go without BERTScore.",
        ) from error
    if Path(model).is_dir():
        locate_model(model)
    else:
        check_hub_weights(model, None)
    return tuple(BertScore(model, layer, part) for part in PARTS)


@lru_cache(maxsize=1)
def _scorer(model: str, layer: int) -> Any:
    from bert_score import BERTScorer

    try:
        scorer = BERTScorer(model_type=model, num_layers=layer, nthreads=1)
    except (OSError, ValueError, AssertionError) as error:
        raise ModelError(
            f"evaluate.bertscore_model: {model!r} cannot be loaded ({error}).",
            "Name a folder or hub id of an encoder, or leave the key out to go without BERTScore.",
        ) from error
    # Without a limit a tokenizer reports 10**30, which bert-score hands to code that takes a C integer.
    tokenizer = scorer._tokenizer
    limit = getattr(scorer._model.config, "max_position_embeddings", 512)
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return scorer


@lru_cache(maxsize=4096)
def _score(model: str, layer: int, text: str, reference: str) -> tuple[float, float, float]:
    """Return precision, recall, F1 of one pair; neither text is blank."""
    parts = _scorer(model, layer).score([text], [reference], batch_size=1)
    return float(parts[0][0]), float(parts[1][0]), float(parts[2][0])
