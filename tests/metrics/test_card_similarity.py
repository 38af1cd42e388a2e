"""Run: pytest tests/metrics/test_card_similarity.py. Oracle: plain transformers, with a random BERT built here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from toy_encoder import MAX_TOKENS, write_encoder

from polypersona.chatml import render_card
from polypersona.errors import ModelError, RecipeError, StorageError
from polypersona.metrics.base import SCALE
from polypersona.metrics.card_similarity import CardSimilarity, build_comparison
from polypersona.metrics.catalogue import choose_comparison, choose_metrics
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.text_pairs import PairValues, load_encoder, pair_keys
from polypersona.records import Item, Persona
from polypersona.references import rotation

NAME = "card_similarity"
ITEMS = (
    Item("a.open", "a", "Stem?", "open"),
    Item("a.closed", "a", "Stem?", "likert", ("No", "Yes")),
    Item("b.open", "b", "Stem?", "open"),
)
PEOPLE = (
    Persona("nurse", {"age": 45, "occupation": "nurse"}, text="I like my garden."),
    Persona("cook", {"age": 31, "occupation": "cook"}),
    Persona("clerk", {"age": 60, "occupation": "clerk", "area": "rural"}),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def said(persona: str, item_id: str, text: str, disposition: str = "complete", draw: int = 1) -> dict:
    return {
        "persona_id": persona, "item_id": item_id, "wave": 1, "draw": draw, "code": None, "text": text,
        "disposition": disposition,
    }  # fmt: skip


ROWS = [
    said("nurse", "a.open", "As a nurse, I walk in the garden."), said("nurse", "b.open", "Not at 45."),
    said("cook", "a.open", "I cook, and that is it."), said("cook", "a.open", "The kitchen is my life.", draw=2),
    said("clerk", "b.open", "Rural roads are long", "truncated"),
]  # fmt: skip


def metrics_of(encoder: str, people=PEOPLE, replicates: int = 0) -> PersonaMetrics:
    others = rotation((one.persona_id for one in people), 7)
    return PersonaMetrics.of(ITEMS, people, others, [NAME], 7, replicates, build_comparison(encoder))


def scored(metrics: PersonaMetrics, rows, kind="overall", shards: int = 1) -> dict:
    sums, names = metrics.empty(), sorted({row["persona_id"] for row in rows})
    for start in range(shards):
        own, part = set(names[start::shards]), metrics.empty()
        found = Interviews.of([row for row in rows if row["persona_id"] in own], ITEMS)
        metrics.add(part, [(found.persona_ids, metrics.measure(found))])
        sums.merge(part)
    return {row["group"]: row for row in metrics.build_rows(sums, kind, ITEMS)}


def plain_cosine(encoder: str, left: str, right: str) -> float:
    """By transformers alone, one text at a time, with the mean that the attention mask gives."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    vectors = []
    for text in (left, right):
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        vectors.append((states * mask).sum(dim=1) / mask.sum(dim=1))
    return float(torch.nn.functional.cosine_similarity(*vectors))


def by_hand(encoder: str, rows, people=PEOPLE) -> tuple[list[float], list[float]]:
    """Each answer beside its own card, and beside the next persona's."""
    card = {one.persona_id: render_card(one) for one in people}
    others = rotation(card, 7)
    return (
        [plain_cosine(encoder, row["text"], card[row["persona_id"]]) for row in rows],
        [plain_cosine(encoder, row["text"], card[others[row["persona_id"]]]) for row in rows],
    )


def test_the_score_is_the_cosine_with_the_own_card_and_the_floor_that_with_the_next_personas(encoder):
    own, other = by_hand(encoder, ROWS)
    found = scored(metrics_of(encoder, replicates=100), ROWS)["all"]
    assert found["score"] == pytest.approx(np.mean(own), abs=1e-5)
    assert found["floor"] == pytest.approx(np.mean(other), abs=1e-5)
    assert found["gain"] == pytest.approx(np.mean(own) - np.mean(other), abs=1e-5)
    assert (found["n"], found["floor_name"], found["higher_is_better"]) == (5, "shuffled", True)
    assert found["low"] <= found["score"] <= found["high"]
    assert found["gain_low"] <= found["gain"] <= found["gain_high"]
    assert abs(found["gain"]) > 1e-3
    assert "pooling:mean|layer:2" in found["signature"]


def test_items_and_domains_have_their_own_answers_and_closed_ones_have_none(encoder):
    rows = [
        *ROWS,
        said("cook", "a.closed", "Yes."),
        said("clerk", "a.open", " "),
        said("clerk", "a.open", "x", "refusal"),
    ]
    metrics = metrics_of(encoder)
    own, other = by_hand(encoder, ROWS)
    by_item, by_domain = scored(metrics, rows, "item"), scored(metrics, rows, "domain")
    assert {name: row["n"] for name, row in by_item.items()} == {"a.open": 3, "b.open": 2}
    assert by_item["b.open"]["score"] == pytest.approx((own[1] + own[4]) / 2, abs=1e-5)
    assert by_item["b.open"]["floor"] == pytest.approx((other[1] + other[4]) / 2, abs=1e-5)
    assert {name: row["score"] for name, row in by_domain.items()} == {
        "a": by_item["a.open"]["score"], "b": by_item["b.open"]["score"],
    }  # fmt: skip
    assert scored(metrics, rows, "response_type") == {}


def test_a_card_that_says_nothing_is_compared_with_nothing_and_the_gain_is_of_answers_with_a_floor(encoder):
    people = (*PEOPLE[:2], Persona("clerk"))
    before = next(name for name, other in rotation(("nurse", "cook", "clerk"), 7).items() if other == "clerk")
    own, other = by_hand(encoder, ROWS, PEOPLE)
    counted = [place for place, row in enumerate(ROWS) if row["persona_id"] != "clerk"]
    with_floor = [place for place in counted if ROWS[place]["persona_id"] != before]
    found = scored(metrics_of(encoder, people), ROWS)["all"]
    assert (found["n"], len(with_floor)) == (4, 2)
    assert found["score"] == pytest.approx(np.mean([own[place] for place in counted]), abs=1e-5)
    assert found["floor"] == pytest.approx(np.mean([other[place] for place in with_floor]), abs=1e-5)
    assert found["gain"] == pytest.approx(np.mean([own[place] - other[place] for place in with_floor]), abs=1e-5)


def test_a_respondent_alone_has_a_score_and_no_floor(encoder):
    found = scored(metrics_of(encoder, PEOPLE[:1]), ROWS[:2])["all"]
    assert found["score"] is not None
    assert (found["floor"], found["gain"]) == (None, None)


def test_any_sharding_of_personas_gives_the_same_rows(encoder):
    rng = random.Random(3)
    people = tuple(Persona(f"p{who}", {"age": 20 + who, "area": rng.choice(("city", "rural"))}) for who in range(12))
    texts = ["I like it", "not at all, no", "my garden is big and I walk", "the city"]
    rows = [said(one.persona_id, name, rng.choice(texts)) for one in people for name in ("a.open", "b.open")]
    metrics = metrics_of(encoder, people, replicates=50)
    interviews = Interviews.of(rows, ITEMS)
    pairs = sorted({pair for one in metrics.similarity.compare(interviews) for pair in one[2:]})
    values = load_encoder(metrics.similarity.comparison).match(pairs).astype(np.float32)
    looked_up = metrics.with_values(PairValues.of(pair_keys(pairs), values))
    for kind in ("overall", "domain", "item"):
        assert scored(looked_up, rows, kind) == scored(looked_up, rows, kind, shards=5)
    sums = looked_up.measure(interviews).reshape(12, 2, 5)
    assert (sums[:, :, 0] == 1).all()
    assert np.abs(sums[:, :, 1]).max() <= SCALE
    with pytest.raises(StorageError, match="was not encoded"):
        scored(looked_up, [said("p1", "a.open", "something else")])


def test_every_text_is_encoded_once_and_its_neighbours_do_not_change_its_cosine(encoder):
    rng = random.Random(1)
    texts = [" ".join(rng.choice(("tea", "walk", "i", "not")) for _ in range(rng.randint(1, 30))) for _ in range(40)]
    pairs = [(text, texts[(place + step) % 40]) for place, text in enumerate(texts) for step in (0, 1)]
    loaded = build_comparison(encoder).load()
    values = loaded.match(pairs)
    assert loaded.num_encoded == len(set(texts))
    assert values[::2, 0] == pytest.approx(1)
    chosen = range(1, 80, 16)
    assert values[chosen, 0] == pytest.approx([plain_cosine(encoder, *pairs[place]) for place in chosen], abs=1e-5)
    assert np.isnan(loaded.match([("tea", "\u200b"), (" ", "tea")])).all()


def with_sentence_files(folder: Path, pooling: dict, *kinds: str, limit: int | None = None) -> str:
    folder = Path(write_encoder(folder))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": f"1_{kind}", "type": f"sentence_transformers.models.{kind}"} for kind in ("Pooling", *kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if limit is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    return str(folder)


MEAN = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def test_a_text_longer_than_the_encoder_takes_is_cut(encoder, tmp_path):
    shorter = with_sentence_files(tmp_path / "shorter", MEAN, "Normalize", limit=10)
    # Two tokens of the limit are the borders.
    for folder, words in ((encoder, MAX_TOKENS - 2), (shorter, 8)):
        at_most, fewer = " ".join("a" * words), " ".join("a" * (words - 1))
        same, other = build_comparison(folder).load().match([("a " * 200, at_most), ("a " * 200, fewer)])[:, 0]
        assert same == pytest.approx(1, abs=1e-9)
        assert other < 1 - 1e-6
    assert "max_tokens:10|" in build_comparison(shorter).signature


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, (), "pools by cls_token"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, (), "pools by cls_token, mean"),
        ({"pooling_mode": "lasttoken"}, (), "pools by lasttoken"),
        ({}, (), "pools by nothing known"),
        (MEAN, ("Dense",), "has a module Dense"),
        ([], (), "none of sentence-transformers"),
    ],
)
def test_an_encoder_whose_vectors_are_no_mean_is_refused(pooling, kinds, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        build_comparison(with_sentence_files(tmp_path / "other", pooling, *kinds))


@pytest.mark.parametrize("pooling", [MEAN, {"pooling_mode": "mean"}])
def test_an_encoder_that_says_it_takes_the_mean_is_taken(pooling, tmp_path):
    assert build_comparison(with_sentence_files(tmp_path / "mean", pooling, "Normalize")).layer == 2


def test_it_exists_only_where_the_recipe_names_a_sentence_encoder(encoder):
    with pytest.raises(RecipeError, match=r"'card_similarity' needs an encoder, and evaluate\.embedding_model"):
        choose_metrics([NAME], encoder)
    with pytest.raises(RecipeError, match=r"'card_similarly'.*'card_similarity'"):
        choose_metrics(["card_similarly"], None, encoder)
    assert choose_metrics([NAME], None, encoder) == ((), ())
    assert choose_comparison([], None) is None
    assert choose_comparison(["bleu"], encoder) is None
    assert choose_comparison([NAME, "bleu"], encoder) == choose_comparison([], encoder) == build_comparison(encoder)
    with pytest.raises(ModelError, match=r"evaluate\.embedding_model: '/no/such/folder' is no encoder"):
        choose_comparison([], "/no/such/folder")


def test_an_answer_of_a_persona_that_the_panel_lacks_is_named(encoder):
    statistic = CardSimilarity(ITEMS, {}, {}, build_comparison(encoder))
    with pytest.raises(StorageError, match="'nurse', which the recipe's panel lacks"):
        statistic.measure(Interviews.of(ROWS[:1], ITEMS))
