"""The sampler: a function of (seed, index), true to its margins, without contradictions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.chatml import CARD_ORDER
from polypersona.panel import margins
from polypersona.panel.contradictions import find_contradictions
from polypersona.panel.duplicates import find_duplicates
from polypersona.panel.identity import content_digest
from polypersona.panel.occupations import KIND_BY_EDUCATION, OCCUPATIONS, PAPER_SHARES
from polypersona.panel.sampler import NUM_COMBINATIONS, permute, sample_attributes, sample_personas
from polypersona.records import Persona

KINDS = {job.name: job.kind for job in OCCUPATIONS}
JOBS = {job.name: job for job in OCCUPATIONS}


@pytest.fixture(scope="module")
def large() -> tuple[Persona, ...]:
    return sample_personas(12_000, seed=11)


def shares(personas: tuple[Persona, ...], name: str) -> dict[object, float]:
    counts = Counter(persona.attributes.get(name) for persona in personas)
    return {value: 100 * count / len(personas) for value, count in counts.items()}


def test_a_panel_of_500_starts_with_the_panel_of_433() -> None:
    assert sample_personas(500, seed=7)[:433] == sample_personas(433, seed=7)


@given(seed=st.integers(0, 2**40), sizes=st.tuples(st.integers(0, 30), st.integers(0, 30)))
@settings(max_examples=25, deadline=None)
def test_every_panel_starts_with_every_smaller_one_of_its_seed(seed: int, sizes: tuple[int, int]) -> None:
    small, big = sorted(sizes)
    assert sample_personas(big, seed)[:small] == sample_personas(small, seed)


def test_another_seed_gives_other_personas() -> None:
    one, other = sample_personas(100, seed=1), sample_personas(100, seed=2)
    assert not {content_digest(persona) for persona in one} & {content_digest(persona) for persona in other}


def test_a_sampled_persona_is_the_same_on_every_machine() -> None:
    """Golden values: a change here makes other panels, and needs a new SAMPLER_VERSION or MARGINS_VERSION."""
    assert sample_personas(1, seed=7)[0] == Persona(
        "dcdcbbf351cc26ce",
        {
            "age": 56,
            "gender": "male",
            "education": "some college",
            "work": "retired",
            "income": "low",
            "area": "city",
            "marital": "married",
            "politics": "conservative",
            "religion": "Catholic",
            "values": ("independence", "innovation"),
            "temperament": "anxious",
            "interests": ("fishing", "hiking"),
        },
    )


def test_ids_and_contents_of_a_large_panel_are_distinct(large: tuple[Persona, ...]) -> None:
    assert len({persona.persona_id for persona in large}) == len(large)
    assert find_duplicates(large).equal == ()


@pytest.mark.parametrize("start", [0, NUM_COMBINATIONS - 500, 3 * NUM_COMBINATIONS])
def test_combinations_do_not_repeat_within_a_block(start: int) -> None:
    stop = min(start + 2000, (start // NUM_COMBINATIONS + 1) * NUM_COMBINATIONS)
    found = {permute(5, index) for index in range(start, stop)}
    assert len(found) == stop - start
    assert found <= set(range(NUM_COMBINATIONS))


def test_nobody_contradicts_themselves(large: tuple[Persona, ...]) -> None:
    assert find_contradictions(large) == []
    for persona in large:
        a = persona.attributes
        assert 18 <= a["age"] <= 90
        assert a["work"] != "retired" or a["age"] >= 50
        assert a["education"] != "graduate degree" or a["age"] >= 23
        assert a["education"] != "bachelor's degree" or a["age"] >= 21
        assert a["marital"] != "widowed" or a["age"] >= 25
        assert ("occupation" in a) == (a["work"] in ("full time", "part time", "self-employed"))
        assert len(set(a["values"])) == len(set(a["interests"])) == 2
        if "occupation" in a:
            job = JOBS[a["occupation"]]
            assert a["age"] >= job.age
            assert margins.EDUCATION.index(a["education"]) >= job.education
            assert a["work"] != "self-employed" or job.self_employed


def test_students_are_mostly_under_35(large: tuple[Persona, ...]) -> None:
    ages = [persona.attributes["age"] for persona in large if persona.attributes["work"] == "student"]
    assert sum(age < 35 for age in ages) / len(ages) > 0.8
    assert max(ages) < 60


def test_all_attributes_of_the_card_are_there_in_its_order(large: tuple[Persona, ...]) -> None:
    expected = [name for name in CARD_ORDER if name != "wealth"]
    for persona in large[:500]:
        assert list(persona.attributes) == [name for name in expected if name in persona.attributes]
        assert set(expected) - set(persona.attributes) <= {"occupation"}


def test_age_by_sex_is_the_census(large: tuple[Persona, ...]) -> None:
    for low, high, male, female in margins.AGE_BY_SEX:
        in_band = [p for p in large if low <= p.attributes["age"] <= high]
        assert 100 * len(in_band) / len(large) == pytest.approx(male + female, abs=1.2)
    assert shares(large, "gender")["female"] == pytest.approx(50.1, abs=1.5)


def test_kinds_of_occupation_stand_to_each_other_as_in_the_paper(large: tuple[Persona, ...]) -> None:
    kinds = Counter(KINDS.get(str(p.attributes.get("occupation")), p.attributes["work"]) for p in large)
    named = [kind for kind in PAPER_SHARES if kind != "student"]
    ours, papers = sum(kinds[kind] for kind in named), sum(PAPER_SHARES[kind] for kind in named)
    for kind in named:
        assert kinds[kind] / ours == pytest.approx(PAPER_SHARES[kind] / papers, abs=0.015), kind
    assert 100 * ours / len(large) == pytest.approx(0.75 * papers, abs=1.5)
    assert 100 * kinds["student"] / len(large) == pytest.approx(PAPER_SHARES["student"], abs=1.2)


def test_incomes_are_quintiles(large: tuple[Persona, ...]) -> None:
    found = shares(large, "income")
    assert all(found[level] == pytest.approx(20, abs=1.5) for level in margins.INCOMES)


def test_politics_are_those_the_margin_documents(large: tuple[Persona, ...]) -> None:
    found = shares(large, "politics")
    for name, share in zip(margins.POLITICS, (6, 14, 12, 36, 13, 15, 4), strict=True):
        assert found[name] == pytest.approx(share, abs=1.5), name


def test_conditional_structure_is_there(large: tuple[Persona, ...]) -> None:
    none = [p for p in large if p.attributes["religion"] == "none"]
    rest = [p for p in large if p.attributes["religion"] == "Protestant"]
    left = {"very liberal", "liberal", "slightly liberal"}
    assert sum(p.attributes["politics"] in left for p in none) / len(none) > 0.1 + sum(
        p.attributes["politics"] in left for p in rest
    ) / len(rest)


def test_every_education_and_age_has_an_occupation_open_to_it() -> None:
    for level, education in enumerate(margins.EDUCATION):
        for work in ("full time", "self-employed"):
            lowest = {3: 22, 4: 26}.get(level, 18)
            open_kinds = {
                job.kind
                for job in OCCUPATIONS
                if level >= job.education and lowest >= job.age and (job.self_employed or work != "self-employed")
            }
            assert open_kinds & set(KIND_BY_EDUCATION[education])


@given(st.integers(0, 2**50), st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_any_seed_and_index_give_a_persona(seed: int, index: int) -> None:
    assert sample_attributes(seed, index) == sample_attributes(seed, index)
