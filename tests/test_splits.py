"""Rows are divided so that the splits share no persona, no item, or neither."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.composition import compose
from polypersona.errors import DatasetError
from polypersona.questionbank import load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.splits import Row, divide

SHARES = (0.8, 0.1, 0.1)


@pytest.fixture(scope="module")
def rows():
    items = {item.item_id: item for item in load_instrument(InstrumentRecipe()).items}
    composition = compose([f"p{number:03d}" for number in range(433)], list(items.values()), 3568, seed=7)
    return [
        Row(persona, item_id, items[item_id].domain, items[item_id].response_type)
        for persona, own in composition.items()
        for item_id in own
    ]


def parts(division):
    return division.train, division.validation, division.test


def values(rows, numbers, field):
    return {getattr(rows[number], field) for number in numbers}


def shared(rows, division, field):
    train, validation, test = (values(rows, numbers, field) for numbers in parts(division))
    return (train & validation) | (train & test) | (validation & test)


@pytest.mark.parametrize("seed", range(5))
def test_a_division_by_persona_keeps_sizes_domains_and_response_types(rows, seed):
    division = divide(rows, SHARES, "persona", seed)
    assert not shared(rows, division, "persona_id")
    assert sorted(number for numbers in parts(division) for number in numbers) == list(range(len(rows)))
    assert [len(numbers) for numbers in parts(division)] == pytest.approx([2854.4, 356.8, 356.8], abs=2)
    for field in ("domain", "response_type"):
        whole = Counter(getattr(row, field) for row in rows)
        for numbers in parts(division):
            own = Counter(getattr(rows[number], field) for number in numbers)
            for name, count in whole.items():
                assert own[name] / len(numbers) == pytest.approx(count / len(rows), abs=0.02)


def test_a_division_by_item_shares_no_item(rows):
    division = divide(rows, SHARES, "item", 7)
    assert not shared(rows, division, "item_id")
    assert shared(rows, division, "persona_id")
    assert not division.dropped
    assert len(division.test) / len(rows) == pytest.approx(0.1, abs=0.01)


def test_a_division_by_both_shares_neither_and_drops_what_crosses(rows):
    division = divide(rows, SHARES, "both", 7)
    assert not shared(rows, division, "persona_id")
    assert not shared(rows, division, "item_id")
    everything = [*division.train, *division.validation, *division.test, *division.dropped]
    assert sorted(everything) == list(range(len(rows)))
    kept = len(rows) - len(division.dropped)
    assert [len(numbers) / kept for numbers in parts(division)] == pytest.approx(SHARES, abs=0.02)


def test_a_division_by_neither_is_random_rows(rows):
    division = divide(rows, SHARES, "neither", 7)
    assert [len(numbers) for numbers in parts(division)] == [2854, 357, 357]
    assert shared(rows, division, "persona_id")
    assert shared(rows, division, "item_id")


@pytest.mark.parametrize("by", ["persona", "item", "both", "neither"])
def test_a_division_depends_on_the_seed_and_the_rows_not_on_their_order(rows, by):
    order = list(range(len(rows)))
    random.Random(3).shuffle(order)
    straight = divide(rows, SHARES, by, 7)
    shuffled = divide([rows[number] for number in order], SHARES, by, 7)
    assert {order[number] for number in shuffled.test} == set(straight.test)
    assert divide(rows, SHARES, by, 8) != straight


def test_a_share_of_zero_leaves_its_split_empty(rows):
    division = divide(rows, (0.9, 0.0, 0.1), "persona", 7)
    assert division.validation == ()
    assert len(division.test) == pytest.approx(357, abs=2)


@pytest.mark.parametrize("by", ["persona", "item", "both"])
def test_too_few_units_are_refused_by_name(by):
    rows = [Row(f"p{number % 2}", f"i{number % 2}", "finance", "open") for number in range(40)]
    with pytest.raises(DatasetError, match=f"2 personas and 2 items cannot be divided by {by} into 80%, 10%, 10%"):
        divide(rows, SHARES, by, 7)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), min_size=3, max_size=60), st.integers(0, 3))
def test_every_row_is_in_one_split_and_every_persona_too(pairs, seed):
    rows = [Row(f"p{persona}", f"i{item}", f"d{item % 2}", "open") for persona, item in pairs]
    if len({row.persona_id for row in rows}) < 3:
        return
    division = divide(rows, SHARES, "persona", seed)
    assert not shared(rows, division, "persona_id")
    assert sorted(number for numbers in parts(division) for number in numbers) == list(range(len(rows)))
    assert all(parts(division))
