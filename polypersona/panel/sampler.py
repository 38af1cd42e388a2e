"""Sampled personas: the panel that needs no file.

Persona number i is a function of (seed, i) alone, so a panel of 500 begins with the panel of 433. Attributes are drawn
one after the other, each given those before it (`margins`, `occupations`), so that nobody is a widow of 19 or a
retired 30-year-old. Values, temperament and interests are a permutation of all their combinations, which makes the
first `NUM_COMBINATIONS` personas of a seed distinct in content. Knows no file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from functools import cache

from polypersona.panel import margins
from polypersona.panel.identity import identify
from polypersona.panel.margins import EDUCATION, INTERESTS, TEMPERAMENTS, VALUES, ByAge, Row
from polypersona.panel.occupations import KIND_BY_EDUCATION, OCCUPATIONS, Occupation
from polypersona.records import AttributeValue, Persona, digest, seed_from

SAMPLER_VERSION = 1
# Ordered pairs of values × temperaments × ordered pairs of interests.
NUM_COMBINATIONS = len(VALUES) * (len(VALUES) - 1) * len(TEMPERAMENTS) * len(INTERESTS) * (len(INTERESTS) - 1)
_HALF_BITS = 9  # 2 ** 18 is the smallest even power of two that is at least NUM_COMBINATIONS
_ROUNDS = 4


def sample_personas(size: int, seed: int) -> tuple[Persona, ...]:
    """Return the first `size` personas of a seed, every one with its content's id."""
    return tuple(identify(Persona("", sample_attributes(seed, index)) for index in range(size)))


def sampler_hash() -> str:
    """Return what stands for the source's content: the versions of the sampler and of its margins."""
    return digest("sampled", SAMPLER_VERSION, margins.MARGINS_VERSION, size=16)


def sample_attributes(seed: int, index: int) -> dict[str, AttributeValue]:
    """Return the attributes of persona number `index` (from 0), in the card's order."""
    rng = random.Random(seed_from("persona", SAMPLER_VERSION, seed, index))
    age, gender = _age_and_gender(rng)
    work = _work(rng, age, gender)
    education = _pick(
        rng, row_at(margins.EDUCATION_OF_STUDENTS if work == "student" else margins.EDUCATION_BY_AGE, age)
    )
    marital = _marital(rng, age, gender)
    religion = _pick(rng, row_at(margins.RELIGION_BY_AGE, age))
    attributes: dict[str, AttributeValue] = {"age": age, "gender": gender, "education": education, "work": work}
    if work not in margins.WORK_WITHOUT_OCCUPATION:
        attributes["occupation"] = _occupation(rng, age, education, work).name
    attributes["income"] = _income(income_score(rng, education, work, marital))
    attributes["area"] = _pick(rng, row_at(margins.AREA_BY_AGE, age))
    attributes["marital"] = marital
    attributes["politics"] = _politics(rng, age, religion)
    attributes["religion"] = religion
    attributes.update(_combination(permute(seed, index)))
    return attributes


def row_at(table: ByAge, age: int) -> Row:
    """Return the row of a table by age that holds at this age."""
    return next(row for lowest, row in reversed(table) if age >= lowest)


def income_score(rng: random.Random, education: str, work: str, marital: str) -> float:
    """Return the sum that `margins.INCOME_CUTS` cuts into five levels."""
    partnered = margins.INCOME_PARTNERED if marital in margins.PARTNERED else -margins.INCOME_PARTNERED
    known = margins.INCOME_EDUCATION[education] + margins.INCOME_WORK[work] + partnered
    return known + rng.gauss(0.0, margins.INCOME_NOISE_SD)


def permute(seed: int, index: int) -> int:
    """Return the combination of persona number `index`, in [0, NUM_COMBINATIONS).

    Within each block of NUM_COMBINATIONS numbers this is a permutation: a Feistel network on 18 bits, walked until
    it is in range.
    """
    block, number = divmod(index, NUM_COMBINATIONS)
    while True:
        left, right = divmod(number, 1 << _HALF_BITS)
        for step in range(_ROUNDS):
            left, right = right, left ^ (seed_from("combination", seed, block, step, right) % (1 << _HALF_BITS))
        number = (left << _HALF_BITS) + right
        if number < NUM_COMBINATIONS:
            return number


def _pick(rng: random.Random, row: Row) -> str:
    return rng.choices(tuple(row), tuple(row.values()))[0]


def _age_and_gender(rng: random.Random) -> tuple[int, str]:
    cells = [
        (low, high, sex, share)
        for low, high, male, female in margins.AGE_BY_SEX
        for sex, share in (("male", male), ("female", female))
    ]
    low, high, gender, _ = rng.choices(cells, [cell[3] for cell in cells])[0]
    ages = range(low, high + 1)
    falls = high == margins.MAX_AGE
    age = rng.choices(ages, [high + 1 - age for age in ages])[0] if falls else rng.choice(ages)
    nonbinary = next(share for lowest, share in reversed(margins.NONBINARY_BY_AGE) if age >= lowest)
    return age, "nonbinary" if rng.random() < nonbinary / 100 else gender


def _work(rng: random.Random, age: int, gender: str) -> str:
    row = dict(row_at(margins.WORK_BY_AGE, age))
    row["keeping house"] *= margins.KEEPING_HOUSE_BY_GENDER[gender]
    return _pick(rng, row)


def _marital(rng: random.Random, age: int, gender: str) -> str:
    row = dict(row_at(margins.MARITAL_BY_AGE, age))
    if "widowed" in row:
        row["widowed"] *= margins.WIDOWED_BY_GENDER[gender]
    return _pick(rng, row)


def _politics(rng: random.Random, age: int, religion: str) -> str:
    tilt = margins.POLITICS_TILT_PER_YEAR * (age - 47) + margins.POLITICS_TILT[religion]
    return _pick(
        rng, {name: w * math.exp(tilt * (place - 3)) for place, (name, w) in enumerate(margins.POLITICS.items())}
    )


def _occupation(rng: random.Random, age: int, education: str, work: str) -> Occupation:
    """Draw the kind by education, then one of its occupations that education, age and work allow."""
    open_to = _open_occupations(EDUCATION.index(education), min(age, 30), work == "self-employed")
    kinds = {kind: weight for kind, weight in KIND_BY_EDUCATION[education].items() if kind in open_to}
    return rng.choice(open_to[_pick(rng, kinds)])


@cache
def _open_occupations(education: int, age: int, self_employed: bool) -> Mapping[str, tuple[Occupation, ...]]:
    found: dict[str, tuple[Occupation, ...]] = {}
    for job in OCCUPATIONS:
        if education >= job.education and age >= job.age and (job.self_employed or not self_employed):
            found[job.kind] = (*found.get(job.kind, ()), job)
    return found


def _income(score: float) -> str:
    return margins.INCOMES[sum(score >= cut for cut in margins.INCOME_CUTS)]


def _combination(number: int) -> Iterator[tuple[str, AttributeValue]]:
    number, values = divmod(number, len(VALUES) * (len(VALUES) - 1))
    interests, temperament = divmod(number, len(TEMPERAMENTS))
    yield "values", _ordered_pair(VALUES, values)
    yield "temperament", TEMPERAMENTS[temperament]
    yield "interests", _ordered_pair(INTERESTS, interests)


def _ordered_pair(words: tuple[str, ...], number: int) -> tuple[str, str]:
    first, second = divmod(number, len(words) - 1)
    return words[first], words[second + (second >= first)]
