"""Run: pytest tests/metrics/test_bleu.py. Oracles: sacrebleu, NLTK (which rouge-score brings), published scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from polypersona.metrics.base import Metric, Pair
from polypersona.metrics.bleu import CorpusBleu, NltkBleu, SentenceBleu, nltk_sentence_bleu
from polypersona.records import Item
from polypersona.references import rotation

ITEM = Item("lifestyle.open.01", "lifestyle", "How do you spend your evenings?", "open")
TEXTS = st.lists(st.sampled_from(["I", "walk", "my", "dog", "every", "day", ".", "DAY", ","]), min_size=1, max_size=14)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


def score(metric: Metric, pairs: list[tuple[str, str]]) -> float:
    rows = metric.measure([Pair(ITEM, text, reference=reference) for text, reference in pairs])
    return float(metric.score(rows.sum(axis=0, keepdims=True))[0])


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_summed_statistics_give_sacrebleus_scores_exactly(words):
    pairs = [(" ".join(left), " ".join(right)) for left, right in words]
    texts, references = zip(*pairs, strict=True)
    assert score(CorpusBleu(), pairs) == sacrebleu.corpus_bleu(list(texts), [list(references)]).score / 100
    sentences = [sacrebleu.sentence_bleu(text, [reference]).score / 100 for text, reference in pairs]
    assert score(SentenceBleu(), pairs) == pytest.approx(math.fsum(sentences) / len(sentences), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_the_nltk_variant_equals_nltk(left, right):
    expected = sentence_bleu([" ".join(right).lower().split()], " ".join(left).lower().split(),
                             smoothing_function=SmoothingFunction().method1)  # fmt: skip
    assert nltk_sentence_bleu(" ".join(left), " ".join(right)) == pytest.approx(expected, abs=1e-12)


def test_the_nltk_variant_reproduces_a_published_mean_and_its_shuffled_floor(test_data):
    folder = test_data / "polypersona_replication"
    rows = [json.loads(line) for line in (folder / "evaluation_results/test_predictions.jsonl").open()]
    asked = [json.loads(line) for line in (folder / "data/test.json").open()]
    assert score(NltkBleu(), [(row["prediction"], row["reference"]) for row in rows]) == pytest.approx(
        0.09451616, abs=5e-9
    )
    by_question: dict[str, dict[str, str]] = {}
    for row, example in zip(rows, asked, strict=True):
        by_question.setdefault(example["question"], {})[example["meta"]["persona_id"]] = row["prediction"]
    others = {question: rotation(answers, 0) for question, answers in by_question.items()}
    shuffled = [
        (by_question[example["question"]][others[example["question"]][example["meta"]["persona_id"]]], row["reference"])
        for row, example in zip(rows, asked, strict=True)
        if others[example["question"]]
    ]
    # 0.0707 is published for one permutation; permutations differ by a few thousandths.
    assert score(NltkBleu(), shuffled) == pytest.approx(0.0707, abs=0.006)


def test_a_pair_without_reference_or_text_is_left_out_and_nothing_scores_nan():
    pairs = [Pair(ITEM, "I walk."), Pair(ITEM, "", reference="I walk."), Pair(ITEM, "x", reference=" ")]
    refused = Pair(ITEM, "I walk.", disposition="refusal", reference="I walk.")
    for metric in (CorpusBleu(), SentenceBleu(), NltkBleu()):
        rows = metric.measure([*pairs, refused])
        assert not rows.any()
        assert rows.shape == (4, metric.width)
        assert np.isnan(metric.score(rows)).all()


def test_signatures_name_the_variant_and_the_version():
    assert sacrebleu.__version__ in CorpusBleu().signature
    assert len({metric.signature for metric in (CorpusBleu(), SentenceBleu(), NltkBleu())}) == 3
