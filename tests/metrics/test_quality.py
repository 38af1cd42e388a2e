"""Run: pytest tests/metrics/test_quality.py. A table of answers and the checks each fails."""

from __future__ import annotations

import pytest

from polypersona.metrics.base import Pair
from polypersona.metrics.quality import CHECKS, QualityCheck, SurveyQuality, run_checks
from polypersona.records import Item

OPEN = Item("lifestyle.open.01", "lifestyle", "How do you usually spend a free evening?", "open")
CLOSED = Item("lifestyle.yesno.01", "lifestyle", "Do you exercise?", "yesno", ("No", "Yes"))
FINE = "I read, or I walk with my dog."


@pytest.mark.parametrize(
    ("pair", "failed"),
    [
        (Pair(OPEN, FINE), set()),
        (Pair(OPEN, "I read and then I"), {"finished"}),
        (Pair(OPEN, FINE, disposition="truncated"), {"finished"}),
        (Pair(OPEN, "“How do you usually spend a free evening?” Well, I read."), {"no_prompt_copy"}),
        (Pair(OPEN, "Question: something else. I read a lot."), {"no_prompt_copy"}),
        (Pair(OPEN, "I like tea and I like tea and I like tea and I like tea and so on."), {"no_loop"}),
        (Pair(OPEN, "I walk very far. I read. I walk very far."), {"no_loop"}),
        (Pair(OPEN, "It is very, very good."), set()),
        (Pair(OPEN, "Fine."), {"length"}),
        (Pair(OPEN, " ".join(f"word{index}" for index in range(151)) + "."), {"length"}),
        (Pair(OPEN, ""), {"non_empty", "finished", "no_prompt_copy", "no_loop", "length"}),
        (Pair(CLOSED, "Yes.", code=2), set()),
        (Pair(CLOSED, "Perhaps.", disposition="invalid"), {"coded"}),
        (Pair(CLOSED, "", disposition="error"), set(CHECKS)),
    ],
)
def test_each_answer_fails_exactly_these_checks(pair, failed):
    checks = run_checks(pair)
    assert {name for name, passed in checks.items() if not passed} == failed
    assert ("coded" in checks) == pair.item.is_closed
    rows = SurveyQuality().measure([pair])
    assert SurveyQuality().score(rows)[0] == pytest.approx(1 - len(failed) / len(checks), abs=1e-8)


def test_cells_that_were_not_asked_are_left_out():
    pair = Pair(OPEN, "", disposition="not_asked")
    assert not SurveyQuality().measure([pair]).any()
    assert not QualityCheck("finished").measure([pair]).any()


def test_components_have_the_names_of_the_checks():
    rows = QualityCheck("finished").measure([Pair(OPEN, FINE), Pair(OPEN, "I read and")])
    assert QualityCheck("finished").score(rows.sum(axis=0, keepdims=True))[0] == 0.5
    assert QualityCheck("finished").name == "quality_finished"
