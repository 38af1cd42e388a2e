"""pytest tests/simulator/test_grammar.py"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.records import Persona
from polypersona.simulator.constructs import CONSTRUCTS
from polypersona.simulator.corpus import ATTRIBUTES, INTERESTS, OCCUPATIONS, VALUES
from polypersona.simulator.grammar import (
    FACTS,
    MIDDLE,
    OPENINGS,
    REASONS,
    VARIETY_OPENINGS,
    expand,
    fact_sentences,
    is_well_formed,
    open_sentence,
    read_level,
    reason_sentences,
    stated_facts,
)
from polypersona.simulator.traits import TRAITS

LEVELS = (-2, -1, 0, 1, 2)
TOPICS = [construct.topic for construct in CONSTRUCTS.values()]
LABELS = ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree")
OPENING = "I have mixed feelings about saving money."
PERSONA = Persona(
    "a",
    {
        "age": 44, "occupation": "office manager", "interests": ("board games", "chess"), "area": "small town",
        "work": "part time", "marital": "living with partner", "education": "graduate degree",
        "values": ("family", "security"),
    },
)  # fmt: skip

personas = st.builds(
    lambda attributes: Persona("h", {name: value for name, value in attributes.items() if value is not None}),
    st.fixed_dictionaries(
        {
            "age": st.none() | st.integers(18, 99),
            "occupation": st.none()
            | st.sampled_from([*OCCUPATIONS, "R&D lead", "cook/server (nights)", "shop-keeper"]),
            "interests": st.none() | st.tuples(st.sampled_from(INTERESTS), st.sampled_from(INTERESTS)),
            "values": st.none() | st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES)),
            **{
                name: st.none() | st.sampled_from(ATTRIBUTES[name]) for name in ("area", "marital", "education", "work")
            },
        }
    ),
)


def expansions(template: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", template)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    yield from map("".join, itertools.product(*choices))


def reasons() -> Iterator[tuple[str, int, str]]:
    for trait, sides in REASONS.items():
        for sign, templates in sides.items():
            for template in templates:
                for sentence in expansions(template):
                    yield trait, sign, sentence


@pytest.mark.parametrize("openings", [OPENINGS, VARIETY_OPENINGS])
@pytest.mark.parametrize("level", LEVELS)
def test_the_reader_inverts_every_opening_for_every_topic(openings: dict[int, tuple[str, ...]], level: int) -> None:
    assert set(openings) == set(LEVELS)
    for template in openings[level]:
        for sentence in expansions(template):
            for topic in TOPICS:
                text = sentence.replace("<topic>", topic).replace("<Topic>", topic[0].upper() + topic[1:])
                assert read_level(text) == level, text
                assert read_level(f"{text} It comes down to the day.") == level


@settings(deadline=None)
@given(st.sampled_from(LEVELS), st.sampled_from(TOPICS), st.integers())
def test_an_opening_is_about_its_topic_and_takes_its_level(level: int, topic: str, seed: int) -> None:
    for openings in (OPENINGS, VARIETY_OPENINGS):
        sentence = open_sentence(level, topic, random.Random(seed), openings)
        assert topic in sentence[:1].lower() + sentence[1:]
        assert sentence[0].isupper()
        assert read_level(sentence) == level


def test_other_texts_take_no_level() -> None:
    for text in (
        "",
        "Agree.",
        "Good question.",
        "Saving money is I feel very strongly against.",
        "As a nurse, I care.",
    ):
        assert read_level(text) is None
    # The stance is in the first sentence, and nowhere else.
    assert read_level(f"It depends on the day. {OPENING}") is None


def test_reasons_are_said_by_one_side_of_one_trait() -> None:
    assert set(REASONS) == set(TRAITS)
    sides: dict[str, set[tuple[str, int]]] = {}
    for trait, sign, sentence in reasons():
        sides.setdefault(sentence, set()).add((trait, sign))
    assert {len(owners) for owners in sides.values()} == {1}
    assert not set(sides) & {sentence for template in MIDDLE for sentence in expansions(template)}
    assert all(set(templates) == {-1, 1} for templates in REASONS.values())


@settings(deadline=None)
@given(st.sampled_from(TRAITS), st.sampled_from([-1, 0, 1]), st.integers(0, 6), st.integers())
def test_reasons_come_distinct_and_no_more_than_there_are(trait: str, sign: int, count: int, seed: int) -> None:
    sentences = reason_sentences(trait, sign, count, random.Random(seed))
    templates = REASONS[trait][sign] if sign else MIDDLE
    assert len(set(sentences)) == len(sentences) == min(count, len(templates))
    allowed = {sentence for template in templates for sentence in expansions(template)}
    assert set(sentences) <= allowed


@settings(deadline=None)
@given(personas, st.integers(0, 5), st.integers())
def test_stated_facts_are_those_of_the_card(persona: Persona, count: int, seed: int) -> None:
    sentences = fact_sentences(persona, count, random.Random(seed))
    known = [name for name in FACTS if name in persona.attributes]
    assert len(sentences) == min(count, len(known))
    text = " ".join([OPENING, *sentences])
    assert stated_facts(text, persona) == (len(sentences), len(sentences))
    assert stated_facts(text, Persona("nobody")) == (0, len(sentences))


def test_a_fact_of_somebody_else_is_stated_and_not_true() -> None:
    assert stated_facts("Agree. As an office manager, I see this every day. At 44, I know my own mind.", PERSONA) == (
        2,
        2,
    )
    assert stated_facts("Agree. As a nurse, I see this every day. At 44, I know my own mind.", PERSONA) == (1, 2)
    assert stated_facts("Living in a city taught me that. Family matters most to me.", PERSONA) == (1, 2)
    assert stated_facts("I say this as someone who is living with a partner.", PERSONA) == (1, 1)
    assert stated_facts("I would gladly spend my evenings on board games.", PERSONA) == (1, 1)
    assert stated_facts("My education, a bachelor's degree, plays a part in that.", PERSONA) == (0, 1)
    assert stated_facts("It depends on the day.", PERSONA) == (0, 0)


def test_every_kind_of_fact_has_a_value_to_state() -> None:
    for name in FACTS:
        only = Persona("a", {name: PERSONA.attributes[name]})
        assert len(fact_sentences(only, 1, random.Random(1))) == 1, name
    assert fact_sentences(Persona("a", {"area": "moon", "occupation": ""}), 3, random.Random(1)) == []
    assert fact_sentences(Persona("a", text="I am 44."), 3, random.Random(1)) == []


answers = st.tuples(
    personas, st.sampled_from(LEVELS), st.sampled_from(TOPICS), st.sampled_from(TRAITS), st.integers()
)  # fmt: skip


def write(persona: Persona, level: int, topic: str, trait: str, seed: int) -> tuple[str, list[str]]:
    rng = random.Random(seed)
    body = reason_sentences(trait, (level > 0) - (level < 0), rng.choice((0, 1, 2)), rng) + fact_sentences(
        persona, rng.choice((0, 1, 2)), rng
    )
    rng.shuffle(body)
    return open_sentence(level, topic, rng, rng.choice((OPENINGS, VARIETY_OPENINGS))), body


@settings(deadline=None)
@given(answers)
def test_whatever_the_grammar_writes_is_well_formed(made: tuple[Persona, int, str, str, int]) -> None:
    opening, body = write(*made)
    assert is_well_formed(" ".join([opening, *body]))
    assert is_well_formed(" ".join(["Agree.", *body]), LABELS)
    assert not is_well_formed(" ".join([opening, *body]), LABELS)
    assert not is_well_formed(" ".join(["Agree.", *body]))
    assert not is_well_formed(" ".join([opening, *body])[:-1])


@settings(deadline=None)
@given(answers, st.integers(min_value=1))
def test_a_cut_answer_is_not_well_formed(made: tuple[Persona, int, str, str, int], where: int) -> None:
    opening, body = write(*made)
    text = " ".join([opening, *body])
    cut = text[: where % len(text)].strip()
    ends = {" ".join([opening, *body[:count]]) for count in range(len(body) + 1)}
    assert is_well_formed(cut) == (cut in ends)


def damaged(sentence: str, kept: str) -> Iterator[str]:
    """The sentence with a word left out, said twice or swapped with the next, outside of the part `kept`."""
    begin = sentence.lower().find(kept.lower()) if kept else -1
    own = range(len(sentence[:begin].split()), len(sentence[: begin + len(kept)].split())) if begin >= 0 else range(0)
    words = sentence.split()
    for place in range(len(words)):
        if place in own:
            continue
        yield " ".join(words[:place] + words[place + 1 :])
        yield " ".join([*words[: place + 1], *words[place:]])
        if place + 1 < len(words) and place + 1 not in own and words[place] != words[place + 1]:
            yield " ".join([*words[:place], words[place + 1], words[place], *words[place + 2 :]])


def test_no_damaged_reason_is_well_formed() -> None:
    sentences = [sentence for _, _, sentence in reasons()]
    sentences += [sentence for template in MIDDLE for sentence in expansions(template)]
    assert len(sentences) > 200
    for sentence in sentences:
        assert is_well_formed(f"{OPENING} {sentence}")
        for broken in damaged(sentence, ""):
            assert not is_well_formed(f"{OPENING} {broken}"), broken


@pytest.mark.parametrize("openings", [OPENINGS, VARIETY_OPENINGS])
def test_no_damaged_opening_is_well_formed(openings: dict[int, tuple[str, ...]]) -> None:
    for templates in openings.values():
        for template in templates:
            for sentence in expansions(template):
                text = sentence.replace("<topic>", "saving money").replace("<Topic>", "Saving money")
                assert is_well_formed(text)
                for broken in damaged(text, "saving money"):
                    assert not is_well_formed(broken), broken


def test_no_damaged_fact_is_well_formed() -> None:
    for name, value in (("area", "in a small town"), ("age", "44"), ("occupation", "an office manager")):
        for seed in range(40):
            sentence = fact_sentences(Persona("a", {name: PERSONA.attributes[name]}), 1, random.Random(seed))[0]
            assert is_well_formed(f"{OPENING} {sentence}")
            for broken in damaged(sentence, value):
                assert not is_well_formed(f"{OPENING} {broken}"), broken


def test_an_answer_said_twice_or_joined_wrongly_is_not_well_formed() -> None:
    reason = "There are good points on both sides."
    for text in (
        "", "Good.", f"{reason}", f"{OPENING} {OPENING}", f"{OPENING}{reason}", f"{OPENING} {reason}{reason}",
        f"{OPENING} {reason[:-1]} {reason}", f"{OPENING} {reason.lower()}",
        f"{OPENING} {reason} I think so.", f"Agree. {OPENING}", "I have mixed feelings about saving trees.",
    ):  # fmt: skip
        assert not is_well_formed(text), text
    assert not is_well_formed(f"Somewhat agree. {reason}", LABELS)
    assert is_well_formed(f"  {OPENING}\n{reason} ")


@settings(deadline=None)
@given(st.integers())
def test_a_template_expands_to_one_alternative_of_each_brace(seed: int) -> None:
    assert expand("{a|b} c {d|e|f}", random.Random(seed)) in set(expansions("{a|b} c {d|e|f}"))
    assert expand("no brace", random.Random(seed)) == "no brace"


def test_tables_leave_no_brace_or_slot_in_a_sentence() -> None:
    rng = random.Random(3)
    for level in LEVELS:
        for _ in range(60):
            opening = open_sentence(level, "my work", rng, rng.choice((OPENINGS, VARIETY_OPENINGS)))
            why = reason_sentences(rng.choice(TRAITS), (level > 0) - (level < 0), 2, rng)
            text = " ".join([opening, *why, *fact_sentences(PERSONA, 8, rng)])
            assert not re.search(r"[{}<>|]|  ", text)
            assert text.isascii()
