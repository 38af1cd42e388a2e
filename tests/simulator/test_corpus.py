"""pytest tests/simulator/test_corpus.py"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from polypersona.chatml import render_card
from polypersona.coding import code_answer
from polypersona.questionbank import load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.simulator.constructs import CONSTRUCTS
from polypersona.simulator.corpus import (
    LEVELS,
    LIKERT_SETS,
    PHASES,
    VIEWS,
    Interview,
    Turn,
    corpus_questions,
    interviews,
    load_wordings,
    phase_at,
)
from polypersona.simulator.grammar import is_well_formed, stated_facts
from polypersona.simulator.stance import stance_sign

KINDS = {"statements", "reversed", "open", "yesno", "yesno_reversed", "satisfaction", "importance", "frequency"}


def expansions(template: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", template)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    yield from map("".join, itertools.product(*choices))


def plain(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower()))


@cache
def people(progress: float) -> tuple[Interview, ...]:
    return tuple(interviews(11, 0, 150, progress, 6))


def survey_turns(person: Interview) -> list[Turn]:
    """The turns that ask what a survey asks, without the lessons about views and wordings."""
    return [turn for turn in person.turns if turn.item.construct]


@pytest.fixture(scope="module")
def stems() -> dict[tuple[str, ...], str]:
    items = load_instrument(InstrumentRecipe(bank="questionbank")).items
    assert len(items) == 82
    return {plain(item.stem): item.item_id for item in items}


def test_the_corpus_asks_none_of_the_banks_questions(stems: dict[tuple[str, ...], str]) -> None:
    asked = [wording for template in corpus_questions() for wording in expansions(template)]
    assert len(asked) > 4000
    assert {wording: stems[plain(wording)] for wording in asked if plain(wording) in stems} == {}


def test_every_construct_is_asked_in_every_direction() -> None:
    wordings = load_wordings()
    assert set(wordings) == set(CONSTRUCTS)
    for construct, kinds in wordings.items():
        assert set(kinds) <= KINDS, construct
        assert {"statements", "reversed", "open", "yesno", "yesno_reversed"} <= set(kinds), construct
        for kind, templates in kinds.items():
            written = [wording for template in templates for wording in expansions(template)]
            assert len(set(map(plain, written))) == len(written) >= 2, (construct, kind)
            ends = "." if kind in ("statements", "reversed") else "?"
            assert all(wording.endswith((ends, ".") if kind == "open" else ends) for wording in written)
            assert not any(re.search(r"[{}|<>]|  ", wording) for wording in written)


def test_a_question_measures_one_construct_in_one_direction() -> None:
    """The same words under two keys would teach the model that they mean nothing."""
    keys: dict[tuple[str, ...], set[tuple[str, bool]]] = {}
    for construct, kinds in load_wordings().items():
        for kind, templates in kinds.items():
            for wording in itertools.chain.from_iterable(map(expansions, templates)):
                keys.setdefault(plain(wording), set()).add((construct, kind.endswith("reversed")))
    assert {words: owners for words, owners in keys.items() if len(owners) > 1} == {}


@pytest.mark.parametrize("progress", [phase.start for phase in PHASES])
def test_interviews_are_functions_of_seed_number_and_progress(progress: float) -> None:
    whole = list(interviews(3, 0, 12, progress, 4))
    assert list(interviews(3, 5, 3, progress, 4)) == whole[5:8]
    assert list(interviews(4, 0, 12, progress, 4)) != whole
    assert list(interviews(3, 0, 12, 0.99 if progress == 0 else 0.0, 4)) != whole
    assert [len(survey_turns(person)) for person in whole] == [4] * 12


def test_interviews_are_the_same_in_another_process() -> None:
    code = (
        "from polypersona.simulator.corpus import interviews; from polypersona.records import digest;"
        "print(digest(list(interviews(3, 0, 20, 0.7, 4))))"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    assert run[0].stdout == run[1].stdout != ""


@pytest.mark.parametrize("progress", [phase.start for phase in PHASES])
def test_every_answer_is_well_formed_and_true(progress: float) -> None:
    stated = 0
    for person in people(progress):
        for turn in survey_turns(person):
            assert is_well_formed(turn.answer, turn.item.options), turn.answer
            true, facts = stated_facts(turn.answer, person.persona)
            assert true == facts, turn.answer
            stated += facts
            if turn.item.is_closed:
                assert code_answer(turn.item, turn.answer) is not None
    assert stated > 0


@pytest.mark.parametrize("progress", [phase.start for phase in PHASES])
def test_a_respondent_never_contradicts_itself(progress: float) -> None:
    signs: dict[tuple[str, str], set[int]] = {}
    for person in people(progress):
        for turn in survey_turns(person):
            code = code_answer(turn.item, turn.answer)
            sign = stance_sign(turn.item, code, turn.answer)
            assert sign is not None
            signs.setdefault((person.persona.persona_id, turn.item.construct), set()).add(sign)
    assert not [key for key, found in signs.items() if found >= {-1, 1}]
    assert {sign for found in signs.values() for sign in found} == {-1, 0, 1} or progress < 0.3


@pytest.mark.parametrize("progress", [phase.start for phase in PHASES])
def test_lists_of_views_say_what_the_answers_say(progress: float) -> None:
    topics = {construct.topic: construct.name for construct in CONSTRUCTS.values()}
    num_lists = 0
    for person in people(progress):
        lists = [turn for turn in person.turns if turn.item.stem == "Please list your views."]
        num_lists += len(lists)
        for turn in lists:
            views = dict(view.split(": ") for view in turn.answer.removesuffix(".").split("; "))
            assert len(views) == VIEWS
            levels = {
                topics[topic]: next(k for k, word in LEVELS.items() if word == said) for topic, said in views.items()
            }
            for other in survey_turns(person):
                if other.item.construct in levels and len(other.item.options) != 2:
                    level = levels[other.item.construct]
                    sign = stance_sign(other.item, code_answer(other.item, other.answer), other.answer)
                    assert sign == (level > 0) - (level < 0) or (level == 0 and len(other.item.options) == 4)
    share = phase_at(progress).views
    assert abs(num_lists / len(people(progress)) - share) < 0.15


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_meanings_of_wordings_follow_their_keys(progress: float) -> None:
    keys = {
        wording: f"{'Against' if kind.endswith('reversed') else 'In favour of'} {CONSTRUCTS[construct].topic}."
        for construct, kinds in load_wordings().items()
        for kind, templates in kinds.items()
        for wording in itertools.chain.from_iterable(map(expansions, templates))
    }
    lessons = [
        (stem.removeprefix("What does agreeing say here: "), turn.answer)
        for person in people(progress)
        for turn in person.turns
        if (stem := turn.item.stem).startswith("What does agreeing say here: ")
    ]
    assert len(lessons) == phase_at(progress).meanings * len(people(progress))
    assert [answer for _, answer in lessons] == [keys[wording] for wording, _ in lessons]


def test_phases_grow_from_one_attribute_to_whole_cards() -> None:
    starts = [phase.start for phase in PHASES]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert [phase_at(start) for start in starts] == list(PHASES)
    assert phase_at(1.0) is PHASES[-1]
    assert (PHASES[-1].gain, PHASES[-1].noise, PHASES[-1].least_stance) == (1.0, 1.0, 0.0)
    sizes = [[len(person.persona.attributes) for person in people(start)] for start in starts]
    means = [sum(row) / len(row) for row in sizes]
    assert set(sizes[0]) == {1}
    assert means == sorted(means)
    assert means[-1] > 9


def test_the_last_phase_covers_every_construct_kind_and_answer() -> None:
    turns = [turn for person in interviews(5, 0, 1200, 1.0, 6) for turn in survey_turns(person)]
    assert {turn.item.construct for turn in turns} == set(CONSTRUCTS)
    assert {turn.item.options for turn in turns if len(turn.item.options) > 2} == {
        labels for sets in LIKERT_SETS.values() for labels in sets
    }
    assert {turn.item.reverse for turn in turns} == {True, False}
    shares = Counter(code_answer(turn.item, turn.answer) for turn in turns if len(turn.item.options) == 5)
    assert min(shares[code] for code in range(1, 6)) > 0.05 * shares.total()
    yes = Counter(code_answer(turn.item, turn.answer) for turn in turns if len(turn.item.options) == 2)
    assert 0.35 < yes[2] / yes.total() < 0.65


def test_cards_fit_a_prompt_and_hide_no_line() -> None:
    for person in people(1.0):
        lines = render_card(person.persona).splitlines()
        assert len(lines) == len(person.persona.attributes)
        assert all(": " in line for line in lines)
