"""Facts about themselves that answers state, and whether the respondent's card says the same.

A fact is read where a first-person frame holds a value. Frames, case ignored:

| attributes | frames |
|---|---|
| age | `I am 45`, `at 45`, `at the age of 45`, `aged 45`, `a 45-year-old`; not before %, minutes and the like |
| gender, sex | `as a woman`, `I am a father`, `being a single mother`: such nouns after up to two adjectives |
| occupation | `as a nurse`, `being a …`, `working as a …`, `I work as a …`, `I am a …` |
| work | `I am retired`, `as a student`, `my days are full of work` |
| marital | `I am married`, `as someone who is widowed`, `as a divorced …` |
| education | `my schooling, …,`, `I have a …`, `with a …` |
| religion, politics | `as a Catholic`, `I am a …`, `I am conservative` |
| race | `as a …`, `I am …` |
| area, region, state, city, country | `I live in …`, `living in …`, `I am from …`, `that is how it is in …` |

The values that can stand in a frame are those that somebody in the panel has, and the simulator's own phrases for them,
the longest first; so a fact is always one that the panel's cards could state. A fact is judged where the respondent's
own card has the attribute: true where the values are equal, for an age band where the number lies in it. Everything
else that an answer says of its speaker is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from polypersona.records import AttributeValue, Persona
from polypersona.simulator.grammar import value_phrases

# Values of an attribute that are looked for: the commonest of the panel.
MAX_VALUES = 2000
_A = r"(?:an? )?"
_BEING = r"(?:as|being|i am|i'm)"
_PLACE = r"(?:live|living|lived|am from|i'm from|that is how it is|things are like that) (?:in )?(?:an? |the )?"
_FRAMES: Mapping[str, str] = {
    "occupation": r"(?:as|being|working as|work as|worked as|i am|i'm) an? ",
    "work": rf"(?:{_BEING} {_A}|(?:my|these) days are )",
    "marital": rf"(?:{_BEING}|who is|who's) {_A}",
    "education": rf"(?:i have|i hold|with|my schooling,|my education,) {_A}",
    "religion": rf"{_BEING} {_A}",
    "politics": rf"{_BEING} {_A}",
    "race": rf"{_BEING} {_A}",
    **dict.fromkeys(("area", "region", "state", "city", "country"), _PLACE),
}
_GENDERS = {
    "female": "woman|women|female|girl|lady|mother|mom|mum|wife|daughter|grandmother|grandma|widow|housewife",
    "male": "man|men|male|boy|guy|father|dad|husband|son|grandfather|grandpa|widower",
}
_GENDER = re.compile(
    rf"\b{_BEING} an? (?:[\w-]+ ){{0,2}}?(?:(?P<female>{_GENDERS['female']})|(?P<male>{_GENDERS['male']}))\b",
    re.IGNORECASE,
)
_UNITS = (
    r"%|percent|per cent|minutes?|hours?|days?|weeks?|months?|miles?|km|kilomet\w+|pounds?|dollars?|times|degrees?"
    r"|[ap]\.?m\b|o'clock|:"
)
_AGE = re.compile(
    rf"\b(?:i am|i'm|at|at the age of|at age|aged) (?P<plain>\d{{2,3}})\b(?! ?(?:{_UNITS}))"
    r"|\ban? (?P<noun>\d{2,3})[- ]years?[- ]old\b",
    re.IGNORECASE,
)
_BAND = re.compile(r"(\d{1,3})\s*(?:-|–|to)\s*(\d{1,3})")
_OPEN_BAND = re.compile(r"(\d{1,3})\s*(?:\+|or (?:more|older|over)|and (?:over|older|above))")
_MIN_AGE, _MAX_AGE = 10, 110
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_SAME = {"sex": "gender"}
_SYNONYMS = {"f": "female", "woman": "female", "women": "female", "m": "male", "man": "male", "men": "male"}


class Fact(NamedTuple):
    """What an answer says of its speaker: an attribute, and the values that would make it true (lower case)."""

    attribute: str
    values: frozenset[str]


@dataclass(frozen=True)
class FactReader:
    """Reads facts by the vocabulary of a panel. `phrases` are, by attribute, phrase → the values it states."""

    phrases: Mapping[str, Mapping[str, frozenset[str]]]

    @classmethod
    def of(cls, personas: Iterable[Persona]) -> FactReader:
        """Return a reader of the values that a panel's cards have."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in _FRAMES}
        for persona in personas:
            for name, value in persona.attributes.items():
                if name in counts and isinstance(value, str) and value.strip():
                    counts[name][value.strip()] += 1
        phrases: dict[str, dict[str, frozenset[str]]] = {}
        for name, found in counts.items():
            table: dict[str, frozenset[str]] = {}
            for value, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_VALUES]:
                for phrase in {value, *value_phrases(name, value)}:
                    folded = _fold(phrase)
                    table[folded] = table.get(folded, frozenset()) | {_fold(value)}
            if table:
                phrases[name] = table
        return cls(phrases)

    def read(self, text: str) -> list[Fact]:
        """Return the facts that a text states, each attribute and phrase once."""
        text = " ".join(text.translate(_APOSTROPHES).split())
        found: dict[Fact, None] = {}
        for match in _AGE.finditer(text):
            number = int(match["plain"] or match["noun"])
            if _MIN_AGE <= number <= _MAX_AGE:
                found[Fact("age", frozenset([str(number)]))] = None
        for match in _GENDER.finditer(text):
            found[Fact("gender", frozenset(["female" if match["female"] else "male"]))] = None
        for name, pattern in self._patterns:
            for match in pattern.finditer(text):
                found[Fact(name, self.phrases[name][match[1].lower()])] = None
        return list(found)

    @cached_property
    def _patterns(self) -> Sequence[tuple[str, re.Pattern[str]]]:
        found = []
        for name, table in self.phrases.items():
            values = "|".join(re.escape(phrase) for phrase in sorted(table, key=lambda phrase: (-len(phrase), phrase)))
            found.append((name, re.compile(rf"(?<![\w']){_FRAMES[name]}({values})(?![\w'-])", re.IGNORECASE)))
        return found


def is_true(fact: Fact, persona: Persona) -> bool | None:
    """Return whether the card says the same; None where it does not have the attribute."""
    card = {_SAME.get(name, name): value for name, value in persona.attributes.items()}
    value = card.get(fact.attribute)
    if value is None or value == "":
        return None
    if fact.attribute == "age":
        return _has_age(value, int(next(iter(fact.values))))
    folded = _fold(str(value))
    return _SYNONYMS.get(folded, folded) in fact.values if fact.attribute == "gender" else folded in fact.values


def _has_age(value: AttributeValue, age: int) -> bool | None:
    if isinstance(value, int | float):
        return int(value) == age
    text = str(value)
    if band := _BAND.search(text):
        return int(band[1]) <= age <= int(band[2])
    if band := _OPEN_BAND.search(text):
        return age >= int(band[1])
    return int(text) == age if text.strip().isdigit() else None


def _fold(text: str) -> str:
    return " ".join(text.translate(_APOSTROPHES).lower().split())
