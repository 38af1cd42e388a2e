"""Run: pytest tests/metrics/test_bertscore.py. Oracle: bert_score.score, with a random BERT built here."""

from __future__ import annotations

import shutil
import string
from pathlib import Path

import pytest

from polypersona.errors import ModelError, RecipeError
from polypersona.metrics.base import Pair
from polypersona.metrics.bertscore import PARTS, build_bertscores
from polypersona.metrics.catalogue import choose_metrics
from polypersona.records import Item

ITEM = Item("lifestyle.open.01", "lifestyle", "Stem?", "open")
TEXTS = [("i like tea", "i like my tea"), ("we walk", "a dog and a cat walk in the park"), ("tea", "tea")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=57, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    # No model_max_length: the trap that a tokenizer without a limit is.
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_scores_equal_the_package_and_leave_blank_texts_out(encoder):
    import bert_score
    from transformers import AutoTokenizer

    pairs = [Pair(ITEM, text, reference=reference) for text, reference in TEXTS]
    pairs += [Pair(ITEM, " ", reference="tea"), Pair(ITEM, "tea", reference="")]
    limited = AutoTokenizer.from_pretrained(encoder)
    limited.model_max_length = 32
    limited.save_pretrained(encoder + "-limited")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(encoder) / name, Path(encoder + "-limited") / name)
    expected = bert_score.score(
        [text for text, _ in TEXTS],
        [reference for _, reference in TEXTS],
        model_type=encoder + "-limited",
        num_layers=2,
    )
    for metric, wanted in zip(build_bertscores(encoder), expected, strict=True):
        rows = metric.measure(pairs)
        assert rows[:, 0].tolist() == [1, 1, 1, 0, 0]
        assert metric.score(rows[:3]) == pytest.approx(wanted.numpy(), abs=1e-5)
        assert "layer:2" in metric.signature


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
