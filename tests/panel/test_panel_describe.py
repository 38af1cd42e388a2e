"""Composition, near-duplicates and contradictions, against brute force and small tables."""

from __future__ import annotations

import itertools
import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.panel.contradictions import find_contradictions
from polypersona.panel.describe import describe
from polypersona.panel.duplicates import MIN_SIMILARITY, find_duplicates
from polypersona.panel.sampler import sample_personas
from polypersona.records import Persona

BASE = {"age": 40, "gender": "female", "area": "city", "work": "retired", "religion": "none", "politics": "moderate"}


def test_composition_counts_values_numbers_and_parts_of_lists() -> None:
    description = describe(
        [
            Persona("a", {"interests": ("chess", "yoga"), "age": 20, "zip": "1"}),
            Persona("b", {"interests": ("chess",), "age": 40}),
            Persona("c", {"age": 30, "zip": 2}),
        ]
    )
    assert [row.attribute for row in description.composition] == ["age", "interests", "zip"]
    age, interests, code = description.composition
    assert age.numbers is not None
    assert (age.numbers.minimum, age.numbers.quartiles, age.numbers.maximum) == (20, (25, 30, 35), 40)
    assert (age.numbers.mean, age.numbers.sd) == (30, pytest.approx(10))
    assert interests.counts == (("chess", 2), ("yoga", 1))
    assert interests.num_personas == 2
    assert (code.numbers, code.counts) == (None, (("1", 1), ("2", 1)))


def test_one_persona_has_no_spread_and_no_text_has_no_length() -> None:
    description = describe([Persona("a", {"age": 20})])
    assert description.composition[0].numbers is not None
    assert description.composition[0].numbers.sd is None
    assert description.mean_words is None
    json.dumps(description.as_json(), allow_nan=False)


def test_effective_size_is_kishs() -> None:
    weights = (1.0, 1.0, 2.0)
    description = describe([Persona(str(w), {"age": i}, weight=w) for i, w in enumerate(weights)])
    assert description.weight_sum == 4
    assert description.effective_size == pytest.approx(16 / 6)


def test_cards_that_differ_in_one_attribute_are_near_duplicates() -> None:
    panel = [
        Persona("a", BASE),
        Persona("b", {**BASE, "age": 41}),
        Persona("c", {name: value for name, value in BASE.items() if name != "area"}),
        Persona("d", {**BASE, "age": 41, "area": "rural"}),
        Persona("e", {**BASE, "age": 70, "area": "x", "work": "y"}),
        Persona("f", BASE, "with a text"),
    ]
    found = find_duplicates(panel)
    assert set(found.card) == {("a", "b"), ("a", "c"), ("b", "d")}
    assert found.equal == ()
    assert found.num_personas == 4


def test_equal_personas_are_one_group_and_not_compared_again() -> None:
    found = find_duplicates([Persona(name, BASE) for name in "abc"] + [Persona("d", {**BASE, "age": 41})])
    assert found.equal == (("a", "b", "c"),)
    assert found.card == (("a", "d"),)


def test_small_cards_are_not_near_duplicates_of_each_other() -> None:
    assert find_duplicates([Persona("a", {"age": 1, "area": "x"}), Persona("b", {"age": 2, "area": "x"})]).card == ()


words = st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1)


@given(st.lists(words, max_size=25, unique=True))
@settings(max_examples=200, deadline=None)
def test_near_texts_are_those_of_comparing_all_pairs(sets: list[frozenset[str]]) -> None:
    panel = [Persona(str(place), {}, " ".join(sorted(found))) for place, found in enumerate(sets)]
    expected = {
        (str(one), str(other))
        for one, other in itertools.combinations(range(len(sets)), 2)
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= MIN_SIMILARITY
    }
    assert set(find_duplicates(panel).text) == expected


def test_texts_with_the_same_words_are_one_group() -> None:
    panel = [Persona("a", {}, "I run. I ski."), Persona("b", {}, "i ski, I run"), Persona("c", {}, "I knit.")]
    assert find_duplicates(panel).text == (("a", "b"),)


def test_ten_thousand_personas_are_described_in_seconds() -> None:
    panel = [
        replace(persona, text=" ".join(map(str, persona.attributes.values()))) for persona in sample_personas(10_000, 3)
    ]
    start = time.perf_counter()
    describe(panel)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"age": 9, "work": "retired"}, "retired under 40"),
        ({"age": 39.5, "work_status": "Retired"}, "retired under 40"),
        ({"age": 13, "work": "full time"}, "employed under 14"),
        ({"age": 12, "work_status": "Working part time"}, "employed under 14"),
        ({"age": 80, "work": "student"}, "student over 75"),
        ({"age": 12, "marital": "married"}, "married, divorced or separated under 16"),
        ({"age": 19, "marital_status": "Widowed"}, "widowed under 20"),
        ({"age": 15, "education": "bachelor's degree"}, "bachelor's degree under 18"),
        ({"age": 20, "highest_degree_received": "Graduate"}, "graduate degree under 21"),
        ({"age": 20, "education": "PhD"}, "graduate degree under 21"),
        ({"age": 121}, "age outside 0 to 120"),
        ({"age": -1}, "age outside 0 to 120"),
        ({"age": "forty"}, "age is no number"),
        ({"age": True}, "age is no number"),
    ],
)
def test_contradictions_are_found(attributes: dict[str, Any], rule: str) -> None:
    (found,) = find_contradictions([Persona("p", attributes)])
    assert (found.persona_id, found.rule) == ("p", rule)
    assert re.search(r"age", found.detail)


@pytest.mark.parametrize(
    "attributes",
    [
        {}, {"work": "retired"}, {"age": 40, "work": "retired"}, {"age": 14, "work": "part time"},
        {"age": 16, "marital": "married"}, {"age": 10, "marital": "never married"}, {"age": 20, "marital": "widowed"},
        {"age": 21, "education": "graduate degree"}, {"age": 0}, {"age": 120}, {"age": 17, "work": "unemployed"},
        {"age": 19, "education": "undergraduate"}, {"age": 12, "work": "semiretired or not"},
        {"age": 9, "work": ("retired",)},
    ],
)  # fmt: skip
def test_what_can_be_is_no_contradiction(attributes: dict[str, Any]) -> None:
    assert find_contradictions([Persona("p", attributes)]) == []


def test_a_persona_can_break_several_rules() -> None:
    found = find_contradictions([Persona("p", {"age": 9, "work": "retired", "marital": "widowed"})])
    assert [one.rule for one in found] == ["retired under 40", "widowed under 20"]
