"""Run: pytest tests/evaluation/test_pairs.py. No Ray and no encoder computes: tables in, parts out."""

from __future__ import annotations

import random

import pytest
from scored_runs import people_and_items, rows_of, scored_recipe, table, taught

from polypersona.chatml import render_card
from polypersona.evaluation import pairs
from polypersona.evaluation.card_pairs import CardPairs
from polypersona.evaluation.pairs import Packer, PairSource, collect, num_buckets, part_digest
from polypersona.evaluation.reference_pairs import ReferencePairs
from polypersona.metrics.card_similarity import CardSimilarity, CosineOfMeans
from polypersona.metrics.catalogue import choose_metrics
from polypersona.references import TeacherReferences, rotation
from polypersona.scoring import Scorer, Settings


@pytest.fixture
def recipe(tmp_path):
    return scored_recipe(tmp_path)


def settings_of(recipe) -> Settings:
    people, items = people_and_items(recipe)
    references = TeacherReferences.build(people, items, recipe.seed, has_rationale=False)
    return Settings(
        choose_metrics(["bleu"], None)[0], (), {item.item_id: item for item in items}, references, recipe.seed, 0
    )


def parts_of(source: PairSource, rows, num_shards: int):
    size = -(-len(rows) // num_shards)
    found = [collect(source, [table(rows[start : start + size])]) for start in range(0, len(rows), size)]
    packer, parts = Packer(), []
    for bucket in range(num_buckets(source)):
        parts += packer.add([tables[bucket] for tables in found])
    return [*parts, packer.close()]


def test_the_parts_hold_every_pair_once_and_do_not_depend_on_shards(recipe, monkeypatch):
    monkeypatch.setattr(pairs, "PART_CHARACTERS", 4000)
    settings, rows = settings_of(recipe), rows_of(recipe, taught(recipe.seed + 1))
    parts = parts_of(ReferencePairs(settings), rows, 1)
    compared = {(one[2], one[3]) for one in Scorer.build(settings).compared_texts(table(rows))}
    assert len(parts) > 5
    assert {pair for part in parts for pair in part} == compared
    random.Random(3).shuffle(rows)
    assert [part_digest(part) for part in parts_of(ReferencePairs(settings), rows, 7)] == [
        part_digest(part) for part in parts
    ]


def test_a_text_is_in_one_part_but_for_those_at_the_cuts(recipe, monkeypatch):
    monkeypatch.setattr(pairs, "PART_CHARACTERS", 4000)
    settings, rows = settings_of(recipe), rows_of(recipe, taught(recipe.seed + 1))
    parts = [{text for pair in part for text in pair} for part in parts_of(ReferencePairs(settings), rows, 3)]
    repeated = sum(len(part) for part in parts) - len(set().union(*parts))
    assert repeated <= 2 * len(parts)
    naive = sum(len({text for pair in part for text in pair}) for part in _by_person(settings, rows, len(parts)))
    assert sum(len(part) for part in parts) < 0.85 * naive


def _by_person(settings: Settings, rows, num_parts: int):
    """The same pairs, cut where shards are: what the order of the rotation is measured against."""
    size = -(-len(rows) // num_parts)
    for start in range(0, len(rows), size):
        found = Scorer.build(settings).compared_texts(table(rows[start : start + size]))
        yield {(text, reference) for _, _, text, reference in found}


def card_pairs_of(recipe) -> CardPairs:
    people, items = people_and_items(recipe)
    personas = {person.persona_id: person for person in people}
    others, comparison = rotation(personas, recipe.seed), CosineOfMeans("encoder", 2, None, "weights")
    return CardPairs(CardSimilarity(items, personas, others, comparison), recipe.seed)


def test_answers_in_words_meet_their_card_and_the_next_ones_whatever_the_shards(recipe, monkeypatch):
    monkeypatch.setattr(pairs, "PART_CHARACTERS", 4000)
    source, rows = card_pairs_of(recipe), rows_of(recipe, taught(recipe.seed))
    cards = {name: render_card(person) for name, person in source.similarity.personas.items()}
    answers = [row for row in rows if row["response_type"] == "open"]
    expected = {
        (row["text"], cards[who])
        for row in answers
        for who in (row["persona_id"], source.similarity.next_persona[row["persona_id"]])
    }
    assert len(answers) < len(rows)
    failed = [row | {"disposition": "refusal", "text": "No, thanks."} for row in answers[:5]]
    changed = [row | {"variant": "reversed", "text": "Another form."} for row in answers[:5]]
    parts = parts_of(source, [*rows, *failed, *changed], 1)
    assert len(parts) > 5
    assert {pair for part in parts for pair in part} == expected
    random.Random(3).shuffle(rows)
    assert [part_digest(part) for part in parts_of(source, rows, 7)] == [part_digest(part) for part in parts]


def test_a_card_is_in_one_part_but_for_those_at_the_cuts_however_many_items_there_are(recipe, monkeypatch):
    monkeypatch.setattr(pairs, "PART_CHARACTERS", 4000)
    source, rows = card_pairs_of(recipe), rows_of(recipe, taught(recipe.seed))
    assert len(source.similarity.open_items) > 1
    parts = [{card for _, card in part} for part in parts_of(source, rows, 3)]
    assert sum(len(part) for part in parts) <= len(source.similarity.personas) + 2 * len(parts)
