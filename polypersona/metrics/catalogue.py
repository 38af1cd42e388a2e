"""Metric names → metrics. To add one: satisfy `base.Metric` in a file of its own, and add a line here."""

from __future__ import annotations

from collections.abc import Sequence

from polypersona.errors import RecipeError, nearest
from polypersona.metrics.agreement import ExactAgreement, NearAgreement, QuadraticKappa, StanceAgreement, Validity
from polypersona.metrics.base import Metric
from polypersona.metrics.bertscore import PARTS, build_bertscores
from polypersona.metrics.bleu import CorpusBleu, NltkBleu, SentenceBleu
from polypersona.metrics.card_similarity import NAME as CARD_SIMILARITY
from polypersona.metrics.card_similarity import CosineOfMeans, build_comparison
from polypersona.metrics.consistency import METRICS as CONSISTENCY
from polypersona.metrics.distinct import Distinct
from polypersona.metrics.faithfulness import METRICS as FAITHFULNESS
from polypersona.metrics.quality import CHECKS, QualityCheck, SurveyQuality
from polypersona.metrics.retest import Retest
from polypersona.metrics.rouge import Rouge
from polypersona.metrics.sentiment import SentimentSimilarity
from polypersona.metrics.structure import LengthSimilarity, SentenceSimilarity

# In the order of a report's tables.
METRICS: tuple[Metric, ...] = (
    StanceAgreement(),
    ExactAgreement(),
    NearAgreement(),
    QuadraticKappa(),
    Validity(),
    CorpusBleu(),
    SentenceBleu(),
    NltkBleu(),
    Rouge("1"),
    Rouge("2"),
    Rouge("L"),
    LengthSimilarity(),
    SentenceSimilarity(),
    SentimentSimilarity(),
    SurveyQuality(),
    *(QualityCheck(check) for check in CHECKS),
)
SET_METRICS = (Distinct(1), Distinct(2))
# Of all answers of a persona (`metrics.personas`).
PERSONA_METRICS = (*CONSISTENCY, *Retest((), "draws").metrics, *Retest((), "waves").metrics, *FAITHFULNESS)
PERSONA_NAMES = tuple(metric.name for metric in PERSONA_METRICS)
# Metrics that exist where the recipe names an encoder, and the key of evaluate that names it.
ENCODED = {**{f"bertscore_{part}": "bertscore_model" for part in PARTS}, CARD_SIMILARITY: "embedding_model"}


def choose_metrics(
    names: Sequence[str], bertscore_model: str | None, embedding_model: str | None = None
) -> tuple[tuple[Metric, ...], tuple[Distinct, ...]]:
    """Return the metrics of these names (all where none is named), those that add up and those of sets.

    Names of metrics of whole personas are checked and left out.

    Raises:
        RecipeError: an unknown name, or one that needs an encoder without that.
        ModelError: the encoder cannot be read.
    """
    neural: tuple[Metric, ...] = build_bertscores(bertscore_model) if bertscore_model else ()
    available = (*METRICS, *neural)
    known = [*(metric.name for metric in available), *(metric.name for metric in SET_METRICS), *PERSONA_NAMES]
    known += [CARD_SIMILARITY] if embedding_model else []
    for name in names:
        if name in ENCODED and name not in known:
            raise RecipeError(
                f"evaluate.metrics: {name!r} needs an encoder, and evaluate.{ENCODED[name]} names none.",
                f"Add `{ENCODED[name]}: FOLDER_OR_HUB_ID` to evaluate, or leave the metric out.",
            )
        if name not in known:
            raise RecipeError(
                f"evaluate.metrics: there is no metric {name!r}.{nearest(name, known)}",
                f"Choose from {', '.join(known)}.",
            )
    return (
        tuple(metric for metric in available if not names or metric.name in names),
        tuple(metric for metric in SET_METRICS if not names or metric.name in names),
    )


def choose_comparison(names: Sequence[str], embedding_model: str | None) -> CosineOfMeans | None:
    """Return how answers are compared with cards; None where no sentence encoder is named, or that metric is not.

    Raises:
        ModelError: the encoder cannot be read, or its vectors are no mean of its tokens'.
    """
    if not embedding_model or (names and CARD_SIMILARITY not in names):
        return None
    return build_comparison(embedding_model)
