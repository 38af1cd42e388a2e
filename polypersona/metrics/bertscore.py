"""BERTScore: greedy matching of contextual token embeddings (Zhang et al. 2020). Precision, recall and F1, in [−1, 1].

    P = mean over response tokens of the best cosine with a reference token; R the other way; F1 = 2PR / (P + R)

Higher is better; the floor is another persona's reference. Numbers of different encoders or layers are not comparable
(on the same pairs two layers of one encoder gave 0.58 and 0.75), so both stand in the signature. No idf, no baseline
rescaling. A pair is undefined where a text is blank or has no token. Values equal those of `bert_score.score` with a
`batch_size` of 1: in larger batches that package takes a pad for a token of cosine 0, which lifts the few tokens whose
best cosine is negative, by an amount that depends on the pair's neighbours.

It is measured only where the recipe names an encoder (`text_pairs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar, Literal

from polypersona.metrics.base import FloatArray, IntArray, Metric, Pair, mean_rows, mean_score
from polypersona.metrics.encoder_files import describe_encoder
from polypersona.metrics.text_pairs import PairValues, values_of
from polypersona.models.location import model_name

if TYPE_CHECKING:
    from polypersona.metrics.token_matching import TokenMatcher

Part = Literal["precision", "recall", "f1"]
PARTS: tuple[Part, ...] = ("precision", "recall", "f1")
KEY = "evaluate.bertscore_model"


@dataclass(frozen=True, slots=True)
class TokenMatching:
    """The comparison of BERTScore: a folder or hub id, the hidden layer compared, and what identifies its weights."""

    model: str
    layer: int
    identity: str
    name: ClassVar[str] = "bertscore"
    key: ClassVar[str] = KEY
    columns: ClassVar[Sequence[str]] = PARTS

    @property
    def signature(self) -> str:
        versions = f"bert-score:{version('bert-score')}|transformers:{version('transformers')}"
        return f"model:{model_name(self.model)}|layer:{self.layer}|idf:no|rescaled:no|range:-1-1|{versions}"

    def load(self, threads: int | None = None) -> TokenMatcher:
        from polypersona.metrics.token_matching import TokenMatcher

        return TokenMatcher.load(self.model, self.layer, self.key, threads)


@dataclass(frozen=True, slots=True)
class BertScore:
    """Mean BERTScore of one part. `known` are values that are there already."""

    encoder: TokenMatching
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
        values = values_of(self.encoder, self.known, [pair.texts for pair in pairs])
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

    facts = describe_encoder(model, KEY)
    encoder = TokenMatching(model, model2layers.get(model) or facts.num_layers, facts.identity)
    return tuple(BertScore(encoder, part) for part in PARTS)


def encoder_of(metrics: Iterable[Metric]) -> TokenMatching | None:
    """Return the encoder that some metrics need, None where none does."""
    return next((metric.encoder for metric in metrics if isinstance(metric, BertScore)), None)


def with_values(metrics: Iterable[Metric], known: PairValues) -> tuple[Metric, ...]:
    """Return the metrics, those of BERTScore with values that are there already."""
    return tuple(replace(metric, known=known) if isinstance(metric, BertScore) else metric for metric in metrics)
