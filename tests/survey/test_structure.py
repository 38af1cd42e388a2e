"""Run: pytest tests/survey/test_structure.py. The stereotyping index of made-up groups whose truth is known."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from survey.human_runs import write_csv, write_json, write_run

from polypersona.compare import run as compare
from polypersona.records import Persona
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.distribution import chance_between, eta_squared
from polypersona.survey.inference import Moments
from polypersona.survey.structure import stereotyping_rows

GROUPS, OPTIONS, PEOPLE = 20, 5, 400
VALUES = np.arange(1.0, OPTIONS + 1)


def moments(group, clusters):
    """The moments of some members: the group of each, and their weighted totals by option (N, K)."""
    totals, squares = np.zeros((GROUPS, OPTIONS)), np.zeros((GROUPS, OPTIONS, OPTIONS))
    np.add.at(totals, group, clusters)
    np.add.at(squares, group, clusters[:, :, None] * clusters[:, None, :])
    count = np.bincount(group, minlength=GROUPS)
    return Moments(totals, squares, count, count)


def comparison(human, synthetic, *, is_ordered=True):
    question = SimpleNamespace(values=tuple(VALUES), is_ordered=is_ordered, item_id="q")
    grouping = SimpleNamespace(labels=tuple(map(str, range(GROUPS))), name="region")
    profiles = SimpleNamespace(groupings=(grouping,), members=np.arange(GROUPS)[:, None])
    halves = np.ones((1, 2, GROUPS, OPTIONS))
    humans = SimpleNamespace(profiles=profiles, half_totals=lambda item: halves)
    items = (SimpleNamespace(question=question),)
    return SimpleNamespace(humans=humans, items=items, moments=lambda item: (human, synthetic))


def means(group_sd, panel, *, spread=0.0, weigh=False, is_ordered=True, rounds=150):
    """Mean index, people's and run's ε² over samples of one population: people, and a panel of `panel` personas.

    `spread` is how far the expected shares of personas differ within a group; without it personas answer like people.
    """
    rng = np.random.default_rng(3)
    found = []
    for _ in range(rounds):
        logits = rng.normal(size=(GROUPS, OPTIONS)) * group_sd
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        sides = []
        for count, is_expected in ((PEOPLE, False), (panel, spread > 0)):
            group = rng.integers(GROUPS, size=count)
            if is_expected:
                drawn = rng.gamma(shares[group] / spread)
                clusters = drawn / drawn.sum(axis=1, keepdims=True)
            else:
                clusters = np.eye(OPTIONS)[(np.log(shares[group]) + rng.gumbel(size=(count, OPTIONS))).argmax(axis=1)]
            weight = rng.choice([0.5, 2.0], size=count) if weigh else np.ones(count)
            sides.append(moments(group, clusters * weight[:, None]))
        (row,) = stereotyping_rows(comparison(*sides, is_ordered=is_ordered), 0)
        found.append((row["index"], row["human"], row["synthetic"]))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("panel", "spread", "weigh", "is_ordered"),
    [(4000, 0.0, False, True), (4000, 0.5, True, True), (200, 0.5, False, False), (200, 0.0, True, False)],
)
def test_groups_that_do_not_differ_have_no_index_however_small_the_samples_are(panel, spread, weigh, is_ordered):
    index, human, synthetic = means(0.0, panel, spread=spread, weigh=weigh, is_ordered=is_ordered)
    # Without a correction the people's share of variance is (G − 1)/(n − 1) = 0.048.
    assert index == pytest.approx(0, abs=0.007)
    assert human == pytest.approx(0, abs=0.006)
    assert synthetic == pytest.approx(0, abs=0.006)


@pytest.mark.parametrize(("panel", "spread"), [(4000, 0.0), (200, 0.0), (200, 0.5)])
def test_groups_that_differ_alike_on_both_sides_have_no_index_either(panel, spread):
    index, human, synthetic = means(0.8, panel, spread=spread)
    assert human > 0.1
    assert synthetic > 0.1
    assert index == pytest.approx(0, abs=0.012)


def test_the_floor_is_the_index_of_answers_without_differences_between_groups():
    rng = np.random.default_rng(1)
    group = rng.integers(GROUPS, size=PEOPLE)
    people = moments(group, np.eye(OPTIONS)[(group + rng.integers(3, size=PEOPLE)) % OPTIONS])
    blind = moments(np.arange(200) % GROUPS, np.full((200, OPTIONS), 0.2))
    (row,) = stereotyping_rows(comparison(people, blind), 0)
    assert row["synthetic"] == pytest.approx(0, abs=1e-12)
    assert row["shuffled"] == -row["human"]
    assert row["index"] == pytest.approx(row["shuffled"])
    assert "Kelley1935" in row["signature"]


def test_one_answer_each_of_equal_weight_gives_kelleys_formula():
    rng = np.random.default_rng(2)
    group = rng.choice(GROUPS, p=np.arange(1, GROUPS + 1) / 210, size=PEOPLE)
    side = moments(group, np.eye(OPTIONS)[rng.integers(OPTIONS, size=PEOPLE)])
    assert (side.clusters > 0).all()
    plain = eta_squared(side.totals, VALUES)
    found = eta_squared(side.totals, VALUES, chance_between(side.totals, side.squares, VALUES[:, None]))
    assert found == pytest.approx(1 - (1 - plain) * (PEOPLE - 1) / (PEOPLE - GROUPS))


def test_the_shuffled_floor_of_twins_is_the_mean_over_permutations_of_their_pairs(tmp_path, book):
    rng = random.Random(4)
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = [
        # The heavy respondents and those without a twin answer otherwise than the others.
        [f"p{place}", 0.2 if place % 3 else 3, 30, "fm"[place % 2], 1 + (rng.random() < 0.2) if place % 3 else 3,
         "" if place % 3 else rng.choice("12"), rng.choice(["1", "-1"]), rng.choice(["1", "-1"])]
        for place in range(60)
    ]  # fmt: skip
    human = write_csv(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    twins = [
        Persona(f"p{place}", {"age": 30, "sex": "fm"[place % 2]}, weight=0.2 if place % 3 else 3.0)
        for place in range(1, 50)
    ]
    others = [Persona(f"other {place}", {"age": 20, "sex": "f"}, weight=5.0) for place in range(30)]
    items = codebook_items(parse_codebook(book)[0])
    answers = {}
    for persona in (*twins, *others):
        for item in items:
            for draw in (1, 2):
                code = 3 if persona in others else rng.choice([1, 2, 2, 3])
                answers[persona.persona_id, item.item_id, 1, draw] = code if item.item_id == "q1" else item.codes[0]
    run = write_run(tmp_path, codebook, [*twins, *others], items, answers, draws=2)
    result = compare(run, str(human), str(codebook), ["sex"])
    own = {row[0]: row[4] for row in rows}
    pairs = [(own[one.persona_id], answers[one.persona_id, "q1", 1, draw]) for one in twins for draw in (1, 2)]
    gaps = [abs(human - other) for human, _ in pairs for _, other in pairs]
    (found,) = (row for row in result["tables"]["individuals"] if (row["item"], row["by"]) == ("q1", "all"))
    assert found["n"] == len(pairs)
    assert found["accuracy_shuffled"] == pytest.approx(1 - sum(gaps) / len(gaps) / 2)


def test_a_run_whose_ids_are_the_respondents_by_chance_has_no_twins(tmp_path, book):
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = [
        [str(place), 1, 60, "fm"[place % 2], 1 + place % 3, "1" if place % 3 == 2 else "", "1", "-1"]
        for place in range(60)
    ]  # fmt: skip
    rows[2][5], rows[0][6:], rows[1][6:] = "2", ["-1", "1"], ["-1", "1"]
    rows[3][2] = 20
    human = write_csv(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    personas = [Persona(str(place), {"sex": "fm"[place % 2], "age": 20}) for place in range(60)]
    items = codebook_items(parse_codebook(book)[0])
    answers = {(one.persona_id, item.item_id, 1, 1): item.codes[0] for one in personas for item in items}
    result = compare(write_run(tmp_path, codebook, personas, items, answers), str(human), str(codebook))
    assert result["tables"]["individuals"] == []
    assert any("none is a twin" in note for note in result["notes"])
    assert set(result["by"]) == {"age", "sex"}


def test_a_group_of_three_people_has_no_coefficient_and_a_group_of_no_personas_takes_none_of_the_others(tmp_path):
    rng = random.Random(6)
    codes = {"1": "Agree", "2": "Neither", "3": "Disagree"}
    book = {
        "title": "Toy", "source": "made up, CC0", "respondent_id": "id", "not_asked": "empty cell",
        "demographics": {"area": {"label": "Area", "values": ["city", "village", "island", "ship"]}},
        "items": {"q1": {"stem": "I trust people.", "response_type": "agreement", "options": codes}},
    }  # fmt: skip
    codebook = write_json(tmp_path / "codebook.json", book)
    areas = ["city"] * 40 + ["village"] * 30 + ["island"] * 3 + ["ship"] * 20
    said = [rng.randint(1, 3) for _ in areas]
    rows = [[f"h{place}", area, code] for place, (area, code) in enumerate(zip(areas, said, strict=True))]
    human = write_csv(tmp_path / "human.csv", ["id", "area", "q1"], rows)
    personas = [Persona(f"s{place}", {"area": area}) for place, area in enumerate(areas[:73])]
    (item,) = codebook_items(parse_codebook(book)[0])
    answers = {(one.persona_id, "q1", 1, 1): rng.choice(item.codes) for one in personas}
    result = compare(write_run(tmp_path, codebook, personas, [item], answers), str(human), str(codebook))
    (row,) = result["tables"]["regression"]
    assert (row["group"], row["reference"], row["group_n"], row["group_human_n"]) == ("village", "city", 30, 30)
    assert (row["n"], row["human_n"]) == (73, 73)
    assert row["human"] == pytest.approx((np.mean(said[40:70]) - np.mean(said[:40])) / 2)
    assert result["regression"]["coefficients"] == 1
