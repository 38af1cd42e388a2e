"""Personas that cannot be: a retired 9-year-old, a widow of 12, a graduate at 15.

The rules look at attributes, under this project's names or those of common surveys (`ALIASES`), whatever the case of
their values. They are few and meant to be certain or nearly so; free text is not examined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from polypersona.records import AttributeValue, Persona

ALIASES: Mapping[str, tuple[str, ...]] = {
    "work": ("work", "work_status", "employment", "employment_status"),
    "education": ("education", "highest_degree_received", "degree"),
    "marital": ("marital", "marital_status"),
}
MIN_AGE = 0
MAX_AGE = 120

_EMPLOYED = re.compile(r"full.?time|part.?time|self.?employed|^employed|^working", re.IGNORECASE)
_GRADUATE = re.compile(r"^graduate( degree)?$|master|doctor|ph\.?d", re.IGNORECASE)
_BACHELOR = re.compile(r"bachelor", re.IGNORECASE)
_EVER_MARRIED = re.compile(r"^(married|divorced|separated)", re.IGNORECASE)
_WIDOWED = re.compile(r"widow", re.IGNORECASE)
_RETIRED = re.compile(r"\bretired\b", re.IGNORECASE)
_STUDENT = re.compile(r"student|in school", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A persona that breaks a rule, and the values that do."""

    persona_id: str
    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What cannot be: the attribute matches the pattern and the age is out of bounds."""

    name: str
    attribute: str
    pattern: re.Pattern[str]
    is_out: Callable[[float], bool]


RULES: tuple[Rule, ...] = (
    Rule("retired under 40", "work", _RETIRED, lambda age: age < 40),
    Rule("employed under 14", "work", _EMPLOYED, lambda age: age < 14),
    Rule("student over 75", "work", _STUDENT, lambda age: age > 75),
    Rule("married, divorced or separated under 16", "marital", _EVER_MARRIED, lambda age: age < 16),
    Rule("widowed under 20", "marital", _WIDOWED, lambda age: age < 20),
    Rule("bachelor's degree under 18", "education", _BACHELOR, lambda age: age < 18),
    Rule("graduate degree under 21", "education", _GRADUATE, lambda age: age < 21),
)


def find_contradictions(personas: Iterable[Persona]) -> list[Contradiction]:
    """Return every rule that every persona breaks, in the order of the personas and rules."""
    return [found for persona in personas for found in _check(persona)]


def _check(persona: Persona) -> Iterable[Contradiction]:
    age = persona.attributes.get("age")
    if age is None:
        return
    if isinstance(age, bool) or not isinstance(age, int | float):
        yield Contradiction(persona.persona_id, "age is no number", f"age {age!r}")
        return
    if not MIN_AGE <= age <= MAX_AGE:
        yield Contradiction(persona.persona_id, f"age outside {MIN_AGE} to {MAX_AGE}", f"age {age:g}")
    for rule in RULES:
        value = _value(persona.attributes, rule.attribute)
        if rule.pattern.search(value) and rule.is_out(age):
            yield Contradiction(persona.persona_id, rule.name, f"age {age:g}, {rule.attribute} {value!r}")


def _value(attributes: Mapping[str, AttributeValue], name: str) -> str:
    for alias in ALIASES[name]:
        if isinstance(value := attributes.get(alias), str):
            return value
    return ""
