"""Run: pytest tests/metrics/test_sentiment.py. Oracle: VADER itself, reading whole texts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from polypersona.metrics.sentiment import sentiment

ANALYZER = SentimentIntensityAnalyzer()
WORDS = """good GOOD love hate bad ass badass the shit bomb but But BUT very VERY so this never without doubt kind of
Kind sort kinda least at Least no No NO or nor not isn't don't hardly terrible, great! great!! ok? :) :( 😁 x😁 é lol
yeah right kiss death to die for cut mustard hand mouth I am a "nice" (awful) well... bus stop beating heart no. uber"""


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=18).map(" ".join))
def test_every_score_equals_vaders(text):
    assert sentiment(text) == ANALYZER.polarity_scores(text)["compound"]
