"""The corpus the tiny model is pretrained on: interviews of random respondents, in wordings of its own.

It asks the questionbank's constructs in other words (`wordings.json`; none of the bank's stems), and answers by the
simulator's rules in a wider register than the teacher's. Cards begin with few attributes and grow with the progress of the
training: persona conditioning did not appear without such a curriculum. Knows no model and no tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polypersona.chatml import render_answer
from polypersona.records import AttributeValue, Item, Persona, ResponseType
from polypersona.simulator import grammar
from polypersona.simulator.constructs import CONSTRUCTS
from polypersona.simulator.traits import (
    TRAITS,
    card_traits,
    latent_traits,
    option_index,
    stance_level,
    stance_on,
    telling_trait,
)

# (attribute, its values): drawn independently and evenly, so that the model learns effects and not a population.
ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "gender": ("female", "male", "nonbinary"),
    "education": ("less than high school", "high school", "some college", "bachelor's degree", "graduate degree"),
    "work": ("full time", "part time", "self-employed", "student", "retired", "unemployed", "keeping house"),
    "income": ("very low", "low", "middle", "high", "very high"),
    "area": ("rural", "small town", "suburb", "city"),
    "marital": ("never married", "living with partner", "married", "divorced", "widowed", "separated"),
    "politics": (
        "very liberal", "liberal", "slightly liberal", "moderate", "slightly conservative", "conservative", "very conservative",
    ),
    "religion": ("none", "none", "Protestant", "Catholic", "Jewish", "Muslim", "Hindu", "Buddhist", "other"),
    "temperament": ("cautious", "curious", "outgoing", "reserved", "optimistic", "anxious"),
}  # fmt: skip
VALUES = ("sustainability", "tradition", "innovation", "security", "community", "independence", "achievement", "family")
INTERESTS = (
    "gardening", "chess", "hiking", "painting", "cycling", "cooking", "football", "reading", "fishing", "photography", "running",
    "knitting", "music", "birdwatching", "swimming", "board games", "yoga", "baking", "woodwork", "video games", "dancing", "camping",
)  # fmt: skip
OCCUPATIONS = (
    "nurse", "software engineer", "teacher", "bus driver", "electrician", "accountant", "chef", "farmer", "paramedic", "designer",
    "shop assistant", "journalist", "civil servant", "pharmacist", "social worker", "librarian", "police officer", "physiotherapist",
    "data analyst", "carpenter", "lecturer", "receptionist", "security guard", "lawyer", "dentist", "musician", "factory worker",
    "architect", "lab technician", "manager", "plumber", "project manager", "cleaner", "mechanic", "doctor", "engineer", "consultant",
)  # fmt: skip
# Attributes without meaning for the simulator, so that unknown lines in a card do no harm.
DISTRACTORS: Mapping[str, Sequence[str]] = {
    "race": ("White", "Black", "Asian", "Hispanic", "Other"),
    "region": ("Northeast", "Midwest", "South", "West", "abroad"),
    "citizen": ("yes", "no"),
    "children": ("0", "1", "2", "3"),
    "language": ("English", "Spanish", "other"),
}
LIKERT_SETS: Mapping[str, Sequence[Sequence[str]]] = {
    "statements": (
        ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree"),
        ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree"),
        ("Completely disagree", "Mostly disagree", "Undecided", "Mostly agree", "Completely agree"),
        ("Strongly disagree", "Disagree", "Agree", "Strongly agree"),
    ),
    "satisfaction": (
        ("Very dissatisfied", "Dissatisfied", "Neither satisfied nor dissatisfied", "Satisfied", "Very satisfied"),
        ("Very dissatisfied", "Somewhat dissatisfied", "Neutral", "Somewhat satisfied", "Very satisfied"),
    ),
    "importance": (
        ("Not at all important", "Slightly important", "Moderately important", "Very important", "Extremely important"),
        ("Not important", "Slightly important", "Moderately important", "Important", "Very important"),
    ),
    "frequency": (
        ("Never", "Rarely", "Sometimes", "Often", "Always"),
        ("Almost never", "Rarely", "Sometimes", "Often", "Very often"),
    ),
}
LEVELS = {2: "very positive", 1: "positive", 0: "neutral", -1: "negative", -2: "very negative"}
VIEWS = 12
_KINDS: Mapping[str, tuple[ResponseType, bool]] = {
    "statements": ("likert", False),
    "reversed": ("likert", True),
    "yesno": ("yesno", False),
    "yesno_reversed": ("yesno", True),
    "satisfaction": ("likert", False),
    "importance": ("likert", False),
    "frequency": ("likert", False),
    "open": ("open", False),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of the corpus and its answer."""

    item: Item
    answer: str


@dataclass(frozen=True, slots=True)
class Interview:
    """A respondent and independent turns: each is asked with the card alone before it."""

    persona: Persona
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """How hard the corpus is from `start`, a share of the training, on.

    `card` is the least and the most attributes of a card, None for all of them in most cards; effects on traits are
    multiplied by `gain` and the persona's noise by `noise`; a question is about a construct on which the card takes a stance of at least
    `least_stance`, where eight tries find one; `weights` are those of the kinds of question. An interview has a list of
    views with probability `views`, and `meanings` questions about what a wording says.
    """

    start: float
    card: tuple[int, int] | None
    gain: float
    noise: float
    least_stance: float
    weights: Mapping[str, float]
    views: float = 1.0
    meanings: int = 2


_FORWARD = {"statements": 3.0, "open": 4.0, "yesno": 2.0}
# As many reversed questions as others, so that nothing is gained by an answer that ignores the wording's direction.
_BALANCED = {"statements": 3.0, "reversed": 3.0, "yesno": 1.5, "yesno_reversed": 1.5, "open": 1.5}
_ALL = {**_BALANCED, "open": 3.5, "satisfaction": 0.7, "importance": 0.7, "frequency": 0.7}
# One attribute that matters much, then the direction of the wording, then more attributes that matter as they do: without
# these steps a model of this size does not begin to read the card.
PHASES = (
    Phase(0.0, (1, 1), 3.0, 0.0, 0.6, _FORWARD),
    Phase(0.08, (1, 2), 3.0, 0.0, 0.6, _BALANCED, views=0.3, meanings=1),
    Phase(0.26, (1, 4), 2.0, 0.2, 0.3, _ALL, views=0.5, meanings=1),
    Phase(0.38, (2, 9), 1.4, 0.6, 0.0, _ALL, views=0.5, meanings=1),
    Phase(0.50, None, 1.0, 1.0, 0.0, _ALL, views=0.4, meanings=0),
)


def phase_at(progress: float) -> Phase:
    """Return the phase at a share of the training in [0, 1]."""
    return next(phase for phase in reversed(PHASES) if phase.start <= progress)


def interviews(seed: int, start: int, count: int, progress: float, num_turns: int) -> Iterator[Interview]:
    """Yield `count` interviews, each a function of (seed, its number, the phase at `progress`).

    Args:
        seed: of the corpus.
        start: number of the first interview.
        count: how many.
        progress: share of the training done, in [0, 1].
        num_turns: questions per respondent.
    """
    phase = phase_at(progress)
    for number in range(start, start + count):
        rng = random.Random(f"{seed}/{number}")
        persona = _respondent(rng, phase, f"corpus-{seed}-{number}")
        card, latent = card_traits(persona), latent_traits(persona, seed)
        traits = {trait: phase.gain * (card[trait] + phase.noise * (latent[trait] - card[trait])) for trait in TRAITS}
        turns = [_views_turn(traits, rng)] if rng.random() < phase.views else []
        turns += [_meaning_turn(rng) for _ in range(phase.meanings)]
        turns += [_turn(persona, traits, rng, phase) for _ in range(num_turns)]
        yield Interview(persona, tuple(turns))


def corpus_questions() -> Iterator[str]:
    """Yield every wording the corpus can ask with its alternatives unexpanded; none is a stem of the questionbank."""
    for kinds in load_wordings().values():
        for templates in kinds.values():
            yield from templates


@cache
def load_wordings() -> dict[str, dict[str, list[str]]]:
    """Return construct → kind → templates."""
    content: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("wordings.json").read_text("utf-8"))
    return content


def _respondent(rng: random.Random, phase: Phase, persona_id: str) -> Persona:
    attributes: dict[str, AttributeValue] = {"age": rng.randint(18, 89)}
    attributes.update({name: rng.choice(values) for name, values in ATTRIBUTES.items()})
    attributes["values"] = tuple(rng.sample(VALUES, 2))
    attributes["interests"] = tuple(rng.sample(INTERESTS, 2))
    if attributes["work"] not in ("student", "unemployed", "keeping house"):
        attributes["occupation"] = rng.choice(OCCUPATIONS)
    if rng.random() < 0.3:
        attributes["wealth"] = attributes.pop("income")
    names = list(attributes)
    rng.shuffle(names)
    attributes = {name: attributes[name] for name in names[: _card_size(rng, phase, len(names))]}
    if phase.card is None and rng.random() < 0.2:
        name = rng.choice(list(DISTRACTORS))
        attributes[name] = rng.choice(DISTRACTORS[name])
    return Persona(persona_id, attributes)


def _card_size(rng: random.Random, phase: Phase, full: int) -> int:
    if phase.card is not None:
        return rng.randint(*phase.card)
    return full if rng.random() < 0.6 else rng.randint(6, full)


def _turn(persona: Persona, traits: Mapping[str, float], rng: random.Random, phase: Phase) -> Turn:
    construct = rng.choice(list(CONSTRUCTS.values()))
    for _ in range(8):
        if abs(stance_on(traits, construct.name)) >= phase.least_stance:
            break
        construct = rng.choice(list(CONSTRUCTS.values()))
    wordings = load_wordings()[construct.name]
    kinds = [kind for kind in phase.weights if wordings.get(kind)]
    kind = rng.choices(kinds, [phase.weights[kind] for kind in kinds])[0]
    response_type, is_reversed = _KINDS[kind]
    item = Item(
        item_id="",
        domain=construct.domain,
        stem=grammar.expand(rng.choice(wordings[kind]), rng),
        response_type=response_type,
        options=_options(kind, rng),
        reverse=is_reversed,
        construct=construct.name,
    )
    return Turn(item, _answer(persona, traits, item, rng, phase))


def _views_turn(traits: Mapping[str, float], rng: random.Random) -> Turn:
    """Return a list of views on many topics: the densest lesson in what a card means, twelve stances in a hundred tokens.

    The topics follow each other in a fixed order, so that little is spent on predicting them; seven steps apart in the table they
    seldom share a trait.
    """
    constructs = list(CONSTRUCTS.values())
    start = rng.randrange(len(constructs))
    listed = [constructs[(start + 7 * step) % len(constructs)] for step in range(VIEWS)]
    item = Item("", "general", "Please list your views.", "open")
    views = [f"{part.topic}: {LEVELS[stance_level(stance_on(traits, part.name))]}" for part in listed]
    return Turn(item, "; ".join(views) + ".")


def _meaning_turn(rng: random.Random) -> Turn:
    """Return a question about a wording itself: whether agreeing with it is for its topic or against it."""
    construct = rng.choice(list(CONSTRUCTS.values()))
    kind = rng.choice(("statements", "reversed", "reversed", "yesno", "yesno_reversed"))
    wording = grammar.expand(rng.choice(load_wordings()[construct.name][kind]), rng)
    item = Item("", construct.domain, f"What does agreeing say here: {wording}", "open")
    return Turn(item, f"{'Against' if _KINDS[kind][1] else 'In favour of'} {construct.topic}.")


def _options(kind: str, rng: random.Random) -> tuple[str, ...]:
    if kind == "open":
        return ()
    if kind.startswith("yesno"):
        return ("No", "Yes")
    return tuple(rng.choice(LIKERT_SETS["statements" if kind == "reversed" else kind]))


def _answer(persona: Persona, traits: Mapping[str, float], item: Item, rng: random.Random, phase: Phase) -> str:
    stance = stance_on(traits, item.construct)
    trait, sign = telling_trait(traits, item.construct, stance, rng)
    is_wordy = rng.random() < (0.4 if phase.card is None else 0.15)
    body: list[str] = []
    if is_wordy:
        body += grammar.reason_sentences(trait, sign, rng.choice((1, 1, 2)), rng)
        body += grammar.fact_sentences(persona, rng.choice((0, 1, 1, 2)), rng)
        rng.shuffle(body)
    if item.is_closed:
        return render_answer(item.options[option_index(item, stance)], " ".join(body))
    openings: Any = grammar.VARIETY_OPENINGS if rng.random() < 0.7 else grammar.OPENINGS
    return " ".join(
        [grammar.open_sentence(stance_level(stance), CONSTRUCTS[item.construct].topic, rng, openings), *body]
    )
