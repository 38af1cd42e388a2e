"""pytest tests/engines/test_rules.py"""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypersona.chatml import render_answer
from polypersona.coding import code_answer, disposition_of
from polypersona.engines.base import Answer, Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.engines.rules import RulesEngine
from polypersona.errors import EngineError
from polypersona.panel.sources import load_panel
from polypersona.questionbank import load_instrument
from polypersona.recipe_sections import InstrumentRecipe, PanelRecipe
from polypersona.records import Assignment, Item, Persona
from polypersona.simulator.grammar import is_well_formed, read_level, stated_facts
from polypersona.simulator.stance import stance_sign

SETTINGS = EngineSettings(engine="rules", seed=7, rationale=True)
ITEMS = load_instrument(InstrumentRecipe(bank="questionbank")).items
PANEL = load_panel(PanelRecipe(source="sampled", size=433), 7).personas
FIVE = ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree")
TWO = ("No", "Yes")
LIKERT = Item("t.likert.01", "technology", "New technology helps me.", "likert", FIVE, construct="perceived_usefulness")
TURNED = replace(LIKERT, item_id="t.likert.02", stem="New technology is of no use to me.", reverse=True)
YESNO = replace(LIKERT, item_id="t.yesno.01", options=TWO, codes=(0, 1), response_type="yesno")
OPEN = replace(LIKERT, item_id="t.open.01", options=(), codes=(), response_type="open")
NURSE = Persona("n", {"age": 31, "education": "graduate degree", "occupation": "nurse", "values": ("innovation",)})


def group(persona: Persona, items: tuple[Item, ...], waves: int = 1, draws: int = 1, seed: int = 7) -> Group:
    cells = []
    for item in items:
        for wave in range(1, waves + 1):
            for draw in range(1, draws + 1):
                assignment = Assignment(persona.persona_id, item.item_id, wave=wave, draw=draw)
                cells.append(Cell(assignment.assignment_id, item, assignment.seed(seed)))
    return Group(persona, tuple(cells))


@pytest.fixture(scope="module")
def answered() -> list[tuple[Persona, Item, Answer]]:
    """The default panel's answers to the whole questionbank."""
    groups = [group(persona, ITEMS) for persona in PANEL]
    pairs = [(asked.persona, cell.item) for asked in groups for cell in asked.cells]
    answers = RulesEngine(SETTINGS).answer(groups)
    return [(*pair, answer) for pair, answer in zip(pairs, answers, strict=True)]


def test_every_item_of_the_bank_is_answered(answered: list[tuple[Persona, Item, Answer]]) -> None:
    for _, item, answer in answered:
        assert answer.disposition == disposition_of(item, answer.text) == "complete"
        assert answer.option_probs is None
        if item.is_closed:
            assert answer.code == code_answer(item, answer.text)
            assert answer.label == item.options[item.codes.index(answer.code)]
            assert answer.text == render_answer(answer.label, answer.rationale)
        else:
            assert (answer.code, answer.label) == (None, "")


def test_the_teachers_answers_are_well_formed_and_state_true_facts(
    answered: list[tuple[Persona, Item, Answer]],
) -> None:
    stated = 0
    for persona, item, answer in answered:
        assert is_well_formed(answer.text, item.options), answer.text
        true, facts = stated_facts(answer.text, persona)
        assert true == facts, answer.text
        stated += facts
    assert stated > len(answered) / 2


def test_open_answers_are_nearly_all_different(answered: list[tuple[Persona, Item, Answer]]) -> None:
    texts = [answer.text for _, item, answer in answered if not item.is_closed]
    assert len(texts) == 433 * 35
    assert len(set(texts)) / len(texts) > 0.95
    # A dataset holds a persona's answers to fewer items, so each item alone must vary as well.
    for item_id in {item.item_id for _, item, _ in answered if not item.is_closed}:
        own = [answer.text for _, item, answer in answered if item.item_id == item_id]
        assert len(set(own)) / len(own) > 0.95, item_id


def test_a_persona_never_contradicts_itself(answered: list[tuple[Persona, Item, Answer]]) -> None:
    signs: dict[tuple[str, str], set[int]] = {}
    for persona, item, answer in answered:
        sign = stance_sign(item, answer.code, answer.text)
        assert sign is not None
        signs.setdefault((persona.persona_id, item.construct), set()).add(sign)
    assert not [key for key, found in signs.items() if found >= {-1, 1}]
    # Yes and No have no middle, so a neutral stance shows there as a weak one and nowhere else.
    assert {frozenset(found) for found in signs.values()} >= {frozenset({-1}), frozenset({0}), frozenset({1})}
    five = [(p.persona_id, i.construct, stance_sign(i, a.code, "")) for p, i, a in answered if len(i.options) == 5]
    assert len({row[:2] for row in five}) == len(set(five))


def test_waves_and_draws_change_the_words_and_not_the_stance() -> None:
    persona = PANEL[0]
    answers = RulesEngine(SETTINGS).answer([group(persona, (LIKERT, TURNED, YESNO, OPEN), waves=3, draws=4)])
    likert, turned, yesno, written = (answers[start : start + 12] for start in range(0, 48, 12))
    assert len({answer.code for answer in likert}) == len({answer.code for answer in yesno}) == 1
    assert likert[0].code + turned[0].code == 6
    assert len({read_level(answer.text) for answer in written}) == 1
    assert len({answer.text for answer in written}) > 8
    assert len({answer.rationale for answer in likert}) > 4


def test_another_seed_is_the_same_people_asked_again() -> None:
    closed = tuple(item for item in ITEMS if item.is_closed)
    groups = [group(persona, closed) for persona in PANEL[:200]]
    first, again = (
        [answer.code for answer in RulesEngine(replace(SETTINGS, seed=seed, rationale=False)).answer(groups)]
        for seed in (7, 8)
    )
    assert 0.75 <= sum(a == b for a, b in zip(first, again, strict=True)) / len(first) <= 0.9


def test_the_wording_comes_from_the_cell_and_the_stance_from_the_engines_seed() -> None:
    one, other = (RulesEngine(SETTINGS).answer([group(NURSE, (LIKERT, OPEN), seed=seed)]) for seed in (7, 8))
    assert one[0].code == other[0].code
    assert read_level(one[1].text) == read_level(other[1].text)
    assert one[1].text != other[1].text


def test_answers_depend_on_nothing_but_persona_item_and_seeds() -> None:
    groups = [group(persona, ITEMS[:9]) for persona in PANEL[:5]]
    together = {answer.assignment_id: answer for answer in RulesEngine(SETTINGS).answer(groups)}
    for asked in reversed(groups):
        for cell in reversed(asked.cells):
            alone = RulesEngine(SETTINGS).answer([Group(asked.persona, (cell,))])[0]
            assert alone == together[alone.assignment_id]


def test_without_rationale_the_answer_is_the_option() -> None:
    answers = RulesEngine(replace(SETTINGS, rationale=False)).answer([group(NURSE, (LIKERT, TURNED))])
    assert [answer.text for answer in answers] == [f"{answer.label}." for answer in answers]
    assert {answer.rationale for answer in answers} == {""}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (replace(LIKERT, construct="taste_in_hats"), "taste_in_hats"),
        (replace(LIKERT, construct=""), "''"),
        (replace(LIKERT, scale="nominal"), "ordered"),
    ],
)
def test_what_the_simulator_does_not_know_is_an_error_of_its_cell_alone(item: Item, said: str) -> None:
    bad, good = RulesEngine(SETTINGS).answer([group(NURSE, (item, TURNED))])
    assert (bad.disposition, bad.text, bad.code) == ("error", "", None)
    assert said in bad.error
    assert item.item_id in bad.error
    assert good.disposition == "complete"


def test_a_persona_without_any_known_attribute_still_answers() -> None:
    for persona in (Persona("x"), Persona("y", text="I am a retired bus driver."), Persona("z", {"shoe size": 44})):
        for answer in RulesEngine(SETTINGS).answer([group(persona, (LIKERT, YESNO, OPEN))]):
            assert answer.disposition == "complete"
            assert stated_facts(answer.text, persona) == (0, 0)


@pytest.mark.parametrize("option", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_filters_of_sampling_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="top_k"):
        load_engine(replace(SETTINGS, **option))
