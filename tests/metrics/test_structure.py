"""Run: pytest tests/metrics/test_structure.py. Expected values follow from the formulas in the docstrings."""

from __future__ import annotations

import pysbd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_runs import people_and_items, taught

from polypersona.metrics.base import Metric, Pair
from polypersona.metrics.sentiment import SentimentSimilarity, sentiment
from polypersona.metrics.structure import LengthSimilarity, SentenceSimilarity, _count_plain, count_sentences
from polypersona.recipe import build_recipe
from polypersona.records import Item

SEGMENTER = pysbd.Segmenter(language="en", clean=False)
ITEM = Item("lifestyle.open.01", "lifestyle", "Stem?", "open")


def score(metric: Metric, text: str, reference: str) -> float:
    return float(metric.score(metric.measure([Pair(ITEM, text, reference=reference)]))[0])


def test_length_similarity_is_the_ratio_of_words():
    assert score(LengthSimilarity(), "one two three", "one two three four") == pytest.approx(0.75)
    assert score(LengthSimilarity(), "one two three four", "a b c") == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", 1), ("I saw Dr. Smith at 3 p.m. on Monday. It was fine.", 2), ("no punctuation", 1), (" ", 0)],
)
def test_abbreviations_do_not_end_a_sentence(text, expected):
    assert count_sentences(text) == expected


VOCABULARY = """I the dog Mass dept sept wash viii mild Yahoo Dr it's 30 well-known a Inc walked Saturday because No p.m
U.S (maybe) 'quoted e.g fine etc me mi it am PM AM Yum Co vs so us US IT in st B Ph mm ft ok xi I'm Maybe art mr"""
WORDS = st.sampled_from(VOCABULARY.split())
MARKS = st.sampled_from(["", "", "", "", ",", ".", ".", "!", "?", "..."])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(WORDS, MARKS, st.booleans()), min_size=1, max_size=14))
def test_plain_texts_are_counted_as_pysbd_counts_them(parts):
    words = [(word.capitalize() if big else word) + mark for word, mark, big in parts]
    text = " ".join(words) + "."
    assert count_sentences(text) == len([sent for sent in SEGMENTER.segment(text) if sent.strip()])


def test_the_shortcut_is_taken_for_plain_texts_and_agrees_on_the_simulators():
    recipe = build_recipe({"name": "x", "panel": {"size": 12}})
    people, items = people_and_items(recipe)
    texts = [
        answer["text"]
        for person in people
        for answer in taught(7)(person, [item for item in items if not item.is_closed])
    ]
    assert sum(_count_plain(text) is not None for text in texts) > 0.6 * len(texts)
    for text in texts[::4]:
        assert count_sentences(text) == len([sent for sent in SEGMENTER.segment(text) if sent.strip()])


def test_sentence_similarity_is_the_ratio_of_sentences():
    assert score(SentenceSimilarity(), "One. Two.", "One.") == pytest.approx(0.5)


def test_sentiment_similarity_is_one_for_equal_and_low_for_opposite_feelings():
    good, bad = "I love this wonderful town.", "I hate this terrible town."
    assert sentiment(good) > 0.5 > -0.5 > sentiment(bad)
    assert score(SentimentSimilarity(), good, good) == 1
    assert score(SentimentSimilarity(), good, bad) == pytest.approx(
        1 - (sentiment(good) - sentiment(bad)) / 2, abs=1e-8
    )
