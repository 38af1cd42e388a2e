"""Cramér's V of pairs of items on both sides, and pairs that are too small."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey.human_runs import write_csv, write_json, write_run

from polypersona.compare import run as compare
from polypersona.records import Persona
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.patterns import MAX_PAIRS, spread_places

YESNO = {"1": "Yes", "2": "No"}


def compared(folder, names, human, synthetic):
    """Compare made-up answers: `human` and `synthetic` give the code of a place's answer to an item, or nothing."""
    book = {
        "title": "Toy", "source": "made up, CC0", "respondent_id": "id", "not_asked": "empty cell", "demographics": {},
        "items": {name: {"stem": f"Is it {name}?", "response_type": "yesno", "options": YESNO} for name in names},
    }  # fmt: skip
    codebook = write_json(folder / "codebook.json", book)
    rows = [[f"h{place}", *(human(place, name) or "" for name in names)] for place in range(60)]
    data = write_csv(folder / "human.csv", ["id", *names], rows)
    personas = [Persona(f"s{place}", {"note": str(place)}) for place in range(60)]
    items = codebook_items(parse_codebook(book)[0])
    answers = {
        (persona.persona_id, item.item_id, 1, 1): code
        for place, persona in enumerate(personas)
        for item in items
        if (code := synthetic(place, item.item_id))
    }
    return compare(write_run(folder, codebook, personas, items, answers), str(data), str(codebook))


def drawn(seed):
    rng = random.Random(seed)
    return lambda place, name: rng.randint(1, 2)


def test_a_pair_that_fewer_than_five_people_or_personas_answered_is_nowhere(tmp_path):
    people, personas = drawn(1), drawn(2)

    def asked(place, name):
        # b follows c in four people's questionnaires, and in all of the others' only one of the two.
        return None if name == ("b" if place % 2 else "c") and place > 3 else people(place, name)

    def answered(place, name):
        return None if name == ("d" if place % 2 else "e") and place > 3 else personas(place, name)

    result = compared(tmp_path, "abcde", asked, answered)
    pairs = {(row["item"], row["other"]): (row["human_n"], row["n"]) for row in result["tables"]["pairs"]}
    assert set(pairs) == {(a, b) for a in "abcde" for b in "abcde" if a < b} - {("b", "c"), ("d", "e")}
    assert pairs["a", "b"] == (32, 60)
    assert min(min(counts) for counts in pairs.values()) >= 5
    assert result["pattern"]["n"] + result["pattern"]["one_sided"] == len(pairs)


def test_the_rows_are_what_the_pattern_compares_and_the_most_different_come_first(tmp_path):
    people = drawn(3)

    def alike(place, name):
        return 1 if name == "a" else 1 + place % 2

    result = compared(tmp_path, "abcd", people, alike)
    rows = result["tables"]["pairs"]
    both = [row for row in rows if not math.isnan(row["human"]) and not math.isnan(row["synthetic"])]
    assert (result["pattern"]["n"], result["pattern"]["one_sided"]) == (len(both), 3) == (3, 3)
    gaps = [abs(row["synthetic"] - row["human"]) for row in both]
    assert gaps == sorted(gaps, reverse=True)
    assert rows[:3] == both
    assert result["pattern"]["mean_absolute_difference"] == pytest.approx(sum(gaps) / 3)
    assert [row["synthetic"] for row in both] == pytest.approx([1.0] * 3)


def test_of_many_pairs_the_table_holds_the_most_different_and_others_evenly(tmp_path):
    names = [f"q{place:03d}" for place in range(150)]
    result = compared(tmp_path, names, drawn(4), drawn(5))
    rows, total = result["tables"]["pairs"], 150 * 149 // 2
    assert len(rows) == MAX_PAIRS
    assert result["pattern"]["n"] + result["pattern"]["one_sided"] == total > MAX_PAIRS
    assert any(f"of {total:,} pairs of items the table holds {MAX_PAIRS:,}" in note for note in result["notes"])
    mean = sum(abs(row["synthetic"] - row["human"]) for row in rows) / len(rows)
    assert mean == pytest.approx(result["pattern"]["mean_absolute_difference"], rel=0.01)


@given(st.integers(1, 500), st.integers(20, 60), st.integers(0, 18))
def test_places_are_in_order_the_first_ones_are_there_and_so_is_the_last(count, limit, first):
    places = spread_places(count, limit, first).tolist()
    assert len(places) == min(count, limit)
    assert places == sorted(set(places))
    assert places[: min(first, count)] == list(range(min(first, count)))
    assert places[-1] == count - 1
