"""pytest tests/simulator/test_traits.py"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.panel.sources import load_panel
from polypersona.recipe_sections import PanelRecipe
from polypersona.records import Item, Persona
from polypersona.simulator.constructs import CONSTRUCTS
from polypersona.simulator.corpus import ATTRIBUTES, VALUES
from polypersona.simulator.traits import (
    EFFECTS,
    NEUTRAL,
    NOISE_SD,
    PUSHES,
    STRONG,
    TRAITS,
    card_traits,
    latent_traits,
    option_index,
    predictors,
    stance_level,
    stance_on,
    telling_trait,
)

FULL = Persona(
    "full",
    {
        "age": 40, "gender": "female", "education": "some college", "work": "part time", "income": "middle",
        "area": "suburb", "marital": "married", "politics": "moderate", "religion": "none",
        "values": ("security", "community"), "temperament": "curious", "interests": ("chess", "hiking"),
    },
)  # fmt: skip
CHANGES = {**ATTRIBUTES, "age": (20, 80), "values": tuple((value, value) for value in VALUES)}


def scale(length: int, *, reverse: bool = False) -> Item:
    labels = tuple(f"Option {number}" for number in range(length))
    return Item("x.likert.01", "x", "It is.", "likert", labels, reverse=reverse)


def changed(name: str, value: object) -> Persona:
    return Persona("full", {**FULL.attributes, name: value})


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_stance_follows_from_at_least_three_attributes(construct: str) -> None:
    before = stance_on(latent_traits(FULL, 7), construct)
    moving = {
        name
        for name, values in CHANGES.items()
        if any(abs(stance_on(latent_traits(changed(name, value), 7), construct) - before) > 0.1 for value in values)
    }
    assert len(moving) >= 3
    assert "interests" not in moving


def test_tables_name_known_traits_and_predictors_alone() -> None:
    assert set(EFFECTS) == set(TRAITS)
    assert {trait for trait, _ in PUSHES.values()} <= set(TRAITS)
    assert {name for effects in EFFECTS.values() for name in effects} == set(predictors(FULL))
    assert set(PUSHES) == {*VALUES, *ATTRIBUTES["temperament"]}
    for construct in CONSTRUCTS.values():
        assert set(construct.loadings) <= set(TRAITS)


@pytest.mark.parametrize(
    ("construct", "name", "low", "high"),
    [
        ("saving_habit", "age", 22, 75),
        ("climate_policy_support", "politics", "very conservative", "very liberal"),
        ("perceived_usefulness", "age", 75, 22),
        ("traditional_values", "religion", "none", "Protestant"),
        ("life_satisfaction", "income", "very low", "very high"),
        ("life_satisfaction", "work", "unemployed", "full time"),
        ("ecological_concern", "values", ("security", "family"), ("sustainability", "family")),
        ("privacy_comfort", "education", "less than high school", "graduate degree"),
    ],
)
def test_well_known_signs_hold(construct: str, name: str, low: object, high: object) -> None:
    below, above = (stance_on(card_traits(changed(name, value)), construct) for value in (low, high))
    assert below < above


def test_most_of_a_traits_variance_comes_from_the_card() -> None:
    people = load_panel(PanelRecipe(source="sampled", size=433), 7).personas
    cards = [card_traits(person) for person in people]
    for trait in TRAITS:
        values = [card[trait] for card in cards]
        assert abs(statistics.mean(values)) < 0.5, trait
        assert 0.5 < statistics.pvariance(values) < 2.0, trait
        assert statistics.pvariance(values) > 6 * NOISE_SD**2


def test_noise_belongs_to_seed_persona_and_trait() -> None:
    people = [Persona(f"p{number}", FULL.attributes) for number in range(2000)]
    card = card_traits(FULL)
    noise = [[latent_traits(person, 7)[trait] - card[trait] for trait in TRAITS] for person in people]
    flat = [value for row in noise for value in row]
    assert len(set(flat)) == len(flat)
    assert statistics.mean(flat) == pytest.approx(0, abs=0.01)
    assert statistics.pstdev(flat) == pytest.approx(NOISE_SD, rel=0.03)
    for one in range(len(TRAITS)):
        for other in range(one):
            assert abs(statistics.correlation([r[one] for r in noise], [r[other] for r in noise])) < 0.09
    again = [latent_traits(person, 8)["tech"] - card["tech"] for person in people]
    assert abs(statistics.correlation([row[0] for row in noise], again)) < 0.09
    assert latent_traits(FULL, 7) == latent_traits(Persona("full", dict(reversed(FULL.attributes.items()))), 7)


def test_unknown_attributes_and_values_contribute_nothing() -> None:
    odd = {"age": "old", "education": "PhD", "politics": 4, "work": True, "values": "thrift", "temperament": None}
    assert predictors(Persona("x", odd)) == {}
    assert card_traits(Persona("x", {**odd, "shoe size": 44})) == dict.fromkeys(TRAITS, 0)
    assert predictors(Persona("x", {"age": True})) == {}
    assert predictors(Persona("x", {"income": "high"})) == predictors(Persona("x", {"wealth": "high"}))
    assert predictors(Persona("x", {"age": 200}))["age"] == predictors(Persona("x", {"age": 90}))["age"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (2, [0, 0, 0, 1, 1, 1]),
        (3, [0, 0, 1, 1, 2, 2]),
        (4, [0, 1, 1, 2, 2, 3]),
        (5, [0, 1, 2, 2, 3, 4]),
        (7, [0, 1, 3, 3, 5, 6]),
    ],
)
def test_the_option_of_a_stance(length: int, expected: list[int]) -> None:
    # −1.2 and −0.5 and −0.1 on the standard normal: shares 0.115, 0.309, 0.460; seven points cut it at 1/7, 2/7, 3/7.
    stances = [-1.2, -0.6, -0.1, 0.1, 0.6, 1.2]
    assert [option_index(scale(length), stance) for stance in stances] == expected


@settings(deadline=None)
@given(st.sampled_from([2, 3, 4, 5, 7, 11]), st.floats(-9, 9, allow_nan=False), st.floats(0, 9))
def test_options_rise_with_the_stance_and_reverse_keys_mirror_them(length: int, stance: float, step: float) -> None:
    index = option_index(scale(length), stance)
    assert 0 <= index < length
    assert option_index(scale(length), stance + step) >= index
    assert option_index(scale(length, reverse=True), -stance) == index


def test_every_option_of_a_scale_is_somebodys() -> None:
    stances = [number / 50 for number in range(-150, 151)]
    for length in (2, 3, 4, 5, 7, 10):
        assert {option_index(scale(length), stance) for stance in stances} == set(range(length))


@settings(deadline=None)
@given(st.floats(-9, 9, allow_nan=False))
def test_levels_are_symmetric_and_cut_where_they_say(stance: float) -> None:
    level = stance_level(stance)
    assert level == -stance_level(-stance)
    assert (level == 0) == (abs(stance) < NEUTRAL)
    assert (abs(level) == 2) == (abs(stance) >= STRONG)
    assert level * stance >= 0
    assert option_index(scale(5), stance) == level + 2


@settings(deadline=None)
@given(
    st.fixed_dictionaries({trait: st.floats(-3, 3) for trait in TRAITS}),
    st.sampled_from(sorted(CONSTRUCTS)),
    st.integers(),
)
def test_the_telling_trait_pulls_the_way_the_stance_goes(traits: dict[str, float], construct: str, seed: int) -> None:
    stance = stance_on(traits, construct)
    trait, sign = telling_trait(traits, construct, stance, random.Random(seed))
    weight = CONSTRUCTS[construct].loadings[trait]
    if stance_level(stance) == 0:
        assert sign == 0
    else:
        assert sign * weight * stance > 0 or traits[trait] == 0


def test_a_stance_has_the_scale_of_one_trait() -> None:
    for construct in CONSTRUCTS.values():
        alike = {trait: math.copysign(1.0, construct.loadings.get(trait, 1)) for trait in TRAITS}
        assert 1 - 1e-12 <= stance_on(alike, construct.name) <= math.sqrt(len(construct.loadings)) + 1e-12


def test_the_noise_is_that_of_other_processes_and_days() -> None:
    """Golden: a change of the noise is a change of the simulator's meaning, and needs a new SEMANTICS_VERSION."""
    assert latent_traits(Persona("golden"), 7)["tech"] == pytest.approx(0.08780985719218092, abs=1e-12)
    assert latent_traits(replace(FULL, text="I am she."), 7) == latent_traits(FULL, 7)
