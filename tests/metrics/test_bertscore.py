"""Run: pytest tests/metrics/test_bertscore.py. Oracle: bert_score.score, with a random BERT built here."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_encoder import MAX_TOKENS, write_encoder

from polypersona.errors import ModelError, RecipeError, StorageError
from polypersona.metrics.base import Pair
from polypersona.metrics.bertscore import PARTS, build_bertscores, with_values
from polypersona.metrics.catalogue import choose_metrics
from polypersona.metrics.text_pairs import PairValues, load_encoder, pair_keys
from polypersona.records import Item

ITEM = Item("lifestyle.open.01", "lifestyle", "Stem?", "open")
TEXTS = [("i like tea", "i like my tea"), ("we walk", "a dog and a cat walk in the park"), ("tea", "tea")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def by_the_package(encoder: str, pairs) -> np.ndarray:
    import bert_score
    from transformers import AutoTokenizer

    limited = f"{encoder}-limited"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = MAX_TOKENS
    tokenizer.save_pretrained(limited)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(encoder) / name, Path(limited) / name)
    found = bert_score.score(*map(list, zip(*pairs, strict=True)), model_type=limited, num_layers=2, batch_size=1)
    return np.stack([part.numpy() for part in found], axis=1)


def test_scores_equal_the_package_and_leave_blank_texts_out(encoder):
    pairs = [Pair(ITEM, text, reference=reference) for text, reference in TEXTS]
    # The last is not blank, but the tokenizer makes no token of it.
    pairs += [Pair(ITEM, " ", reference="tea"), Pair(ITEM, "tea", reference=""), Pair(ITEM, "\u200b", reference="tea")]
    expected = by_the_package(encoder, TEXTS)
    for place, metric in enumerate(build_bertscores(encoder)):
        rows = metric.measure(pairs)
        assert rows[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
        assert metric.score(rows[:3]) == pytest.approx(expected[:, place], abs=1e-5)
        assert "layer:2" in metric.signature


def test_every_text_is_encoded_once_and_the_neighbours_of_a_pair_do_not_change_its_score(encoder):
    rng = random.Random(1)
    texts = [" ".join(rng.choice(("tea", "walk", "i", "not")) for _ in range(rng.randint(1, 30))) for _ in range(40)]
    pairs = [(text, texts[(place + step) % 40]) for place, text in enumerate(texts) for step in (0, 1)]
    loaded = load_encoder(build_bertscores(encoder)[0].encoder)
    before = loaded.num_encoded
    values = loaded.match(pairs)
    assert loaded.num_encoded - before == len(set(texts))
    assert values == pytest.approx(by_the_package(encoder, pairs), abs=1e-5)
    assert np.array_equal(loaded.match(pairs), values)


def test_values_that_are_there_are_looked_up_and_a_pair_without_one_is_an_error(encoder):
    metrics = build_bertscores(encoder)
    pairs = [Pair(ITEM, text, reference=reference) for text, reference in TEXTS]
    values = load_encoder(metrics[0].encoder).match(TEXTS).astype(np.float32)
    known = with_values(metrics, PairValues.of(pair_keys(TEXTS), values))
    for plain, looked_up in zip(metrics, known, strict=True):
        assert looked_up.score(looked_up.measure(pairs)) == pytest.approx(plain.score(plain.measure(pairs)), abs=1e-7)
        assert looked_up.measure([Pair(ITEM, "", reference="tea")])[0, 0] == 0
    with pytest.raises(StorageError, match="was not encoded"):
        known[0].measure([Pair(ITEM, "something else", reference="tea")])


def test_a_text_longer_than_the_encoder_takes_is_cut(encoder):
    (metric, *_) = build_bertscores(encoder)
    assert metric.measure([Pair(ITEM, "tea " * 200, reference="tea")])[0, 0] == 1


def test_it_is_in_the_table_only_where_the_recipe_names_an_encoder(encoder):
    names = {metric.name for metric in choose_metrics([], encoder)[0]}
    assert {f"bertscore_{part}" for part in PARTS} <= names
    assert not any(metric.name.startswith("bertscore") for metric in choose_metrics([], None)[0])
    with pytest.raises(RecipeError, match="needs an encoder"):
        choose_metrics(["bertscore_f1"], None)
    with pytest.raises(ModelError, match="no encoder"):
        build_bertscores("/no/such/folder")


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"'rouge3'.*'rouge"):
        choose_metrics(["rouge3"], None)
    sums, sets = choose_metrics(["distinct2", "bleu"], None)
    assert [metric.name for metric in (*sums, *sets)] == ["bleu", "distinct2"]
