"""Run: pytest tests/bias/test_forms_and_effects.py. Answers with a bias put into them, and those without one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from polypersona.bias.effects import EFFECTS, Battery, answers_of, is_apart
from polypersona.bias.forms import DONT_KNOW, WORDING_ITEMS, build_forms
from polypersona.bias.habits import Habits
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.questionbank import item_hash, load_bank
from polypersona.records import Item, Persona

FIVE = ("Strongly disagree", "Disagree", "Neither", "Agree", "Strongly agree")
ITEMS = tuple(Item(f"x.likert.{n:02}", "x", f"I often save money, case {n}.", "likert", FIVE) for n in range(4))
FORMS = build_forms([*ITEMS, *WORDING_ITEMS], shows_options=True)
BY_KEY = {(form.item_id, form.variant): form for form in FORMS}


def answered(probabilities: Callable[[Item, float], np.ndarray], people: int = 120) -> Battery:
    """Everybody's drawn answers to all forms; a persona's stance is between −1 and 1."""
    draw = random.Random(11)
    battery = Battery(BY_KEY)
    for who in range(people):
        stance = draw.uniform(-1, 1)
        rows = []
        for form in FORMS:
            p = probabilities(form, stance)
            code = draw.choices(form.codes, p / p.sum())[0]
            rows.append({"persona_id": str(who), "item_id": form.item_id, "variant": form.variant, "code": code,
                         "option_probs": None, "disposition": "complete"})  # fmt: skip
        battery.add(answers_of(rows, BY_KEY))
    return battery


def honest(form: Item, stance: float) -> np.ndarray:
    """Answers the meaning of a form: its options on the scale, reverse keys turned; nobody takes an added option."""
    count = len(form.options) - (DONT_KNOW in form.options)
    places = np.linspace(-1, 1, count)
    p = np.exp(-2 * (places - (-stance if form.reverse else stance)) ** 2)
    return np.append(p, 0.0) if count < len(form.options) else p


def biased(form: Item, stance: float) -> np.ndarray:
    p = honest(form, stance)
    if form.response_type == "likert":
        p = p * np.exp(0.6 * np.arange(len(p)))  # says yes
    if form.variant == "forbid":
        p = p * np.array([3.0, 1.0])  # shies from forbidding
    shown = form.shown or range(len(p))
    for place, option in enumerate(shown):
        p[option] *= 1.25 ** (len(p) - place)  # prefers what comes first
    if DONT_KNOW in form.options:
        p[-1] = p[:-1].sum() / 4
    return p


def scores(battery: Battery) -> Mapping[str, dict]:
    return {row["effect"]: row for row in battery.rows()}


def test_answers_to_the_meaning_of_a_question_have_no_bias():
    found = scores(answered(honest))
    assert set(found) == {effect.name for effect in EFFECTS}
    for name, row in found.items():
        if not row["is_level"]:
            assert row["low"] < 0 < row["high"], name
    assert found["dont_know"]["score"] == 0
    assert found["typo"]["is_control"]
    assert found["option_order"]["n"] == 120 * (len(ITEMS) + len(WORDING_ITEMS))


def test_each_bias_is_recovered_with_its_sign_and_the_controls_stay_null():
    battery = answered(biased)
    found = scores(battery)
    for name in ("acquiescence", "option_order", "forbid"):
        assert found[name]["low"] > 0, name
        assert found[name]["d"] > 0.1, name
    assert found["dont_know"]["low"] < 0.2 < found["dont_know"]["high"]
    for name in ("typo", "letter_swap"):
        assert found[name]["low"] < 0 < found[name]["high"]
    by_item = [row for row in battery.item_rows() if row["effect"] == "acquiescence"]
    assert [row["item"] for row in by_item] == [item.item_id for item in ITEMS]
    assert found["acquiescence"]["items"] == len(ITEMS)
    assert found["acquiescence"]["items_apart"] == len(ITEMS)


def test_probabilities_are_used_where_there_are_any_and_leave_no_noise():
    rows = [
        {"persona_id": who, "item_id": ITEMS[0].item_id, "variant": variant, "code": 1, "disposition": "complete",
         "option_probs": [0.2] * 5 if variant == "" else [0.1, 0.2, 0.2, 0.2, 0.3]}
        for who in ("a", "b") for variant in ("", "typo")
    ]  # fmt: skip
    battery = Battery(BY_KEY)
    battery.add(answers_of(rows, BY_KEY))
    row = scores(battery)["typo"]
    assert (row["score"], row["low"], row["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert row["items_apart"] == 1
    assert scores(battery)["acquiescence"]["n"] == 0


def test_answers_at_temperature_zero_count_as_their_codes():
    key = ITEMS[0].item_id, ""
    row = {"persona_id": "a", "item_id": key[0], "variant": "", "code": 2, "disposition": "complete",
           "option_probs": [0.1, 0.4, 0.3, 0.1, 0.1]}  # fmt: skip
    assert answers_of([row], BY_KEY, is_greedy=True)["a"][key].tolist() == [0, 1, 0, 0, 0]
    assert answers_of([row], BY_KEY)["a"][key].tolist() == pytest.approx([0.1, 0.4, 0.3, 0.1, 0.1])


def test_forms_are_the_same_each_time_and_differ_from_their_item_as_they_say():
    bank = [item for item in load_bank() if item.is_closed]
    forms = build_forms(bank, shows_options=True)
    assert forms == build_forms(bank, shows_options=True)
    assert len({item_hash(form) for form in forms}) == len(forms)
    plain = {item.item_id: item for item in bank}
    for form in forms:
        item = plain[form.item_id]
        if form.variant in ("typo", "letter_swap"):
            assert (
                sorted(form.stem) == sorted(item.stem)
                if form.variant == "letter_swap"
                else len(form.stem) == len(item.stem) - 1
            )
            assert form.stem != item.stem
        if form.variant == "even":
            assert len(form.options) % 2 == 0
            assert set(form.codes) < set(item.codes)
        if form.variant == "negated":
            assert form.reverse != item.reverse
            assert item.stem.removeprefix("Statement: ") in form.stem
    assert not [form for form in build_forms(bank, shows_options=False) if form.variant in ("order", "dont_know")]


def test_the_rules_teacher_reads_meanings_and_not_wordings():
    from polypersona.references import is_known_to_teacher

    forms = [form for form in build_forms(load_bank(), shows_options=True) if is_known_to_teacher(form)]
    keys = {(form.item_id, form.variant): form for form in forms}
    engine, battery = load_engine(EngineSettings("rules", 7)), Battery(keys)
    for age in range(20, 80, 5):
        person = Persona(f"p{age}", {"age": age, "politics": "liberal" if age < 50 else "conservative"})
        cells = tuple(Cell(f"{place}", form, place, form.shown or None) for place, form in enumerate(forms))
        rows = [
            {"persona_id": person.persona_id, "item_id": form.item_id, "variant": form.variant, "code": answer.code,
             "option_probs": answer.option_probs, "disposition": answer.disposition}
            for form, answer in zip(forms, engine.answer([Group(person, cells)]), strict=True)
        ]  # fmt: skip
        battery.add(answers_of(rows, keys))
    found = scores(battery)
    for name in ("acquiescence", "option_order", "typo", "letter_swap"):
        assert (found[name]["score"], found[name]["error"]) == (0, 0), name
    assert found["dont_know"]["n"] == 0


def said(
    persona: str, item: Item, code: int | None, text: str = "", disposition: str = "complete", wave: int = 1
) -> dict:
    return {"persona_id": persona, "item_id": item.item_id, "wave": wave, "draw": 1, "code": code, "text": text,
            "disposition": disposition}  # fmt: skip


def test_habits_count_lines_repetitions_and_missing_answers_beside_their_floor():
    open_items = [Item(f"x.open.{n:02}", "x", "Why?", "open") for n in range(2)]
    habits = Habits({item.item_id: item for item in (*ITEMS[:3], *open_items)})
    for who, codes in enumerate([(5, 5, 5), (1, 1, 1), (5, 3, 1), (1, 3, 5)]):
        habits.add([said(str(who), item, code) for item, code in zip(ITEMS, codes, strict=False)])
    words = "I like to save some money"
    habits.add([said("0", open_items[0], None, words), said("0", open_items[1], None, words.upper())])
    habits.add([said("1", open_items[0], None, f" {words}"), said("1", open_items[1], None, "x", "refusal")])
    found = {row["habit"]: row for row in habits.rows()}
    assert (found["straight_lining"]["score"], found["straight_lining"]["n"]) == (0.5, 4)
    # Options by item: 5,1,5,1 · 5,1,3,3 · 5,1,1,5.
    assert found["straight_lining"]["floor"] == pytest.approx(0.5 * 0.25 * 0.5 * 2)
    assert found["refusal"]["score"] == pytest.approx(1 / 16)
    assert (found["said_before"]["score"], found["said_before"]["n"]) == (pytest.approx(1 / 3), 3)
    assert found["said_by_others"]["score"] == pytest.approx(2 / 3)
    assert found["ends"]["score"] == pytest.approx(10 / 12)
    assert found["middle_of_scale"]["score"] == pytest.approx(2 / 12)


def test_an_effect_without_error_is_apart_from_zero_only_where_it_is_not_zero():
    from polypersona.survey.inference import Interval

    assert not is_apart(Interval(0.0, 0.0, 0.0, 0.0))
    assert is_apart(Interval(0.1, 0.1, 0.1, 0.0))
