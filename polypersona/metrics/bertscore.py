"""BERTScore: greedy matching of contextual token embeddings (Zhang et al. 2020). Precision, recall and F1, in [−1, 1].

    P = mean over response tokens of the best cosine with a reference token; R the other way; F1 = 2PR / (P + R)

Higher is better; the floor is another persona's reference. Numbers of different encoders or layers are not comparable
(on the same pairs two layers of one encoder gave 0.58 and 0.75), so both stand in the signature. No idf, no baseline
rescaling. A pair is undefined where a text is blank or has no token. Values equal those of `bert_score.score` with a
`batch_size` of 1: in larger batches that package takes a pad for a token of cosine 0, which lifts the few tokens whose
best cosine is negative, by an amount that depends on the pair's neighbours.

It is measured only where the recipe names an encoder. A run's pairs are encoded by a pool of their own, which hands the
values over as `PairValues`; without them a metric encodes what it is given in its own process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from polypersona.errors import ModelError, StorageError
from polypersona.metrics.base import FloatArray, IntArray, Metric, Pair, TextPair, mean_rows, mean_score
from polypersona.models.location import check_hub_weights, locate_model, model_hash
from polypersona.records import encode_parts

if TYPE_CHECKING:
    from polypersona.metrics.encoder import Encoder

Part = Literal["precision", "recall", "f1"]
PARTS: tuple[Part, ...] = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """Which encoder: a folder or a hub id, the hidden layer compared, and what identifies its weights."""

    model: str
    layer: int
    identity: str

    @property
    def signature(self) -> str:
        """The settings and versions that change a value."""
        name = self.model.rstrip("/").rpartition("/")[2] if self.model.startswith(("/", ".")) else self.model
        versions = f"bert-score:{version('bert-score')}|transformers:{version('transformers')}"
        return f"model:{name}|layer:{self.layer}|idf:no|rescaled:no|range:-1-1|{versions}"


@dataclass(frozen=True, slots=True, eq=False)
class PairValues:
    """Precision, recall and F1 of many pairs, by the pair's key: `keys` ascending, `values` (num_pairs, 3)."""

    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, keys: npt.NDArray[np.uint64], values: npt.NDArray[np.float32]) -> PairValues:
        """Return the values in order of their keys; of equal keys the first counts."""
        unique, first = np.unique(keys, return_index=True)
        return cls(unique, values[first])

    def look_up(self, texts: Sequence[TextPair | None]) -> FloatArray:
        """Return the values of some pairs, shape (num_texts, 3); NaN for None and where undefined.

        Raises:
            StorageError: a pair is not among them.
        """
        found = np.full((len(texts), 3), np.nan)
        asked = [place for place, pair in enumerate(texts) if pair is not None]
        if not asked:
            return found
        keys = pair_keys(pair for pair in texts if pair is not None)
        places = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        if not len(self.keys) or not np.array_equal(self.keys[places], keys):
            raise StorageError(
                "A pair of texts has no BERTScore: the responses changed while they were scored.",
                "Run evaluate again once generate has ended.",
            )
        found[asked] = self.values[places]
        return found


@dataclass(frozen=True, slots=True)
class BertScore:
    """Mean BERTScore of one part. `known` are values that are there already."""

    encoder: EncoderChoice
    part: Part
    known: PairValues | None = field(default=None, repr=False, compare=False)
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
        return f"bertscore:{self.part}|{self.encoder.signature}"

    def measure(self, pairs: Sequence[Pair]) -> IntArray:
        texts = [pair.texts for pair in pairs]
        if self.known is not None:
            values = self.known.look_up(texts)
        else:
            values = np.full((len(texts), 3), np.nan)
            asked = [place for place, pair in enumerate(texts) if pair is not None]
            values[asked] = _match_here(self.encoder, tuple(pair for pair in texts if pair is not None))
        column = values[:, PARTS.index(self.part)].tolist()
        return mean_rows([None if value != value else value for value in column])

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
        identity = model_hash(model)
    else:
        check_hub_weights(model, None)
        identity = f"{model}@{getattr(config, '_commit_hash', None)}"
    return tuple(BertScore(EncoderChoice(model, layer, identity), part) for part in PARTS)


def encoder_of(metrics: Iterable[Metric]) -> EncoderChoice | None:
    """Return the encoder that some metrics need, None where none does."""
    return next((metric.encoder for metric in metrics if isinstance(metric, BertScore)), None)


def with_values(metrics: Iterable[Metric], known: PairValues) -> tuple[Metric, ...]:
    """Return the metrics, those of BERTScore with values that are there already."""
    return tuple(replace(metric, known=known) if isinstance(metric, BertScore) else metric for metric in metrics)


def pair_keys(pairs: Iterable[TextPair]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each pair's hash; among ten million pairs two agree with a probability of 3 in a million."""
    data = b"".join(hashlib.blake2b(encode_parts(*pair), digest_size=8).digest() for pair in pairs)
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


@lru_cache(maxsize=1)
def load_encoder(choice: EncoderChoice, threads: int | None = None) -> Encoder:
    """Return the encoder, which computes with so many threads; a process keeps the last one.

    Raises:
        ModelError: it cannot be loaded.
    """
    from polypersona.metrics.encoder import Encoder

    return Encoder.load(choice.model, choice.layer, threads)


# Precision, recall and F1 are measured one after another on the same pairs.
@lru_cache(maxsize=4)
def _match_here(choice: EncoderChoice, pairs: tuple[TextPair, ...]) -> FloatArray:
    return load_encoder(choice).match(pairs) if pairs else np.empty((0, 3))
