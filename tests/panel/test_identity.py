"""Ids from content: what they depend on, and what they do not."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from polypersona.panel.identity import content_digest, identify
from polypersona.records import Persona

attributes = st.dictionaries(
    st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.booleans()), max_size=4
)
personas = st.builds(Persona, persona_id=st.just(""), attributes=attributes, text=st.text(max_size=20))


@given(st.lists(personas, max_size=8))
def test_ids_are_unique_whatever_the_content(panel: list[Persona]) -> None:
    found = [persona.persona_id for persona in identify(panel + panel)]
    assert len(set(found)) == len(found)


@given(st.lists(personas, max_size=8), st.lists(personas, max_size=8))
def test_ids_depend_on_earlier_personas_only(panel: list[Persona], more: list[Persona]) -> None:
    assert list(identify(panel + more))[: len(panel)] == list(identify(panel))


@given(personas)
def test_ids_do_not_depend_on_weight_or_attribute_order(persona: Persona) -> None:
    turned = replace(persona, weight=3.0, attributes=dict(reversed(persona.attributes.items())))
    assert content_digest(turned) == content_digest(persona)


def test_a_repeat_has_an_occurrence_number() -> None:
    one = Persona("", {"age": 40})
    first, second, other, third = identify([one, one, Persona("", {"age": 41}), one])
    assert (second.persona_id, third.persona_id) == (f"{first.persona_id}-2", f"{first.persona_id}-3")
    assert other.persona_id not in {first.persona_id, second.persona_id, third.persona_id}


def test_a_whole_float_is_the_integer_it_shows() -> None:
    assert content_digest(Persona("", {"age": 40.0})) == content_digest(Persona("a", {"age": 40}))


def test_name_and_value_cannot_be_confused() -> None:
    assert content_digest(Persona("", {"a": "b: c"})) != content_digest(Persona("", {"a: b": "c"}))
    assert content_digest(Persona("", {"a": "b"})) != content_digest(Persona("", {}, "a: b"))
