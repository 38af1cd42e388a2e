"""pytest tests/simulator/test_stance.py"""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypersona.records import Item
from polypersona.simulator.stance import stance_sign

FIVE = Item("x.likert.01", "x", "It is.", "likert", ("a", "b", "c", "d", "e"), construct="saving_habit")
YESNO = replace(FIVE, options=("No", "Yes"), codes=(1, 2))
FOUR = replace(FIVE, options=("a", "b", "c", "d"), codes=(10, 20, 30, 40))
OPEN = replace(FIVE, options=(), codes=(), response_type="open")


@pytest.mark.parametrize(
    ("item", "codes", "signs"),
    [
        (FIVE, (1, 2, 3, 4, 5), (-1, -1, 0, 1, 1)),
        (YESNO, (1, 2), (-1, 1)),
        (FOUR, (10, 20, 30, 40), (-1, -1, 1, 1)),
        (replace(FIVE, codes=(5, 4, 3, 2, 1)), (5, 3, 1), (-1, 0, 1)),
    ],
)
def test_codes_are_read_by_their_place_and_the_items_key(
    item: Item, codes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    assert tuple(stance_sign(item, code, "") for code in codes) == signs
    turned = replace(item, reverse=True)
    assert tuple(stance_sign(turned, code, "") for code in codes) == tuple(-sign for sign in signs)


def test_open_answers_are_read_by_their_opening() -> None:
    assert stance_sign(OPEN, None, "I am not very keen on saving money. At 44, I know my own mind.") == -1
    assert stance_sign(OPEN, None, "I am in two minds about saving money.") == 0
    assert stance_sign(OPEN, None, "I care a great deal about saving money.") == 1
    assert stance_sign(OPEN, None, "It is what it is.") is None
    assert stance_sign(OPEN, None, "") is None


def test_what_takes_no_stance_has_none() -> None:
    assert stance_sign(FIVE, None, "Agree.") is None
    assert stance_sign(FIVE, 6, "") is None
    assert stance_sign(replace(FIVE, scale="nominal"), 5, "") is None
    assert stance_sign(replace(FIVE, construct=""), 5, "") is None
    assert stance_sign(replace(OPEN, construct=""), None, "I care a great deal about saving money.") is None
