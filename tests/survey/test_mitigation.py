"""Run: pytest tests/survey/test_mitigation.py. What each mitigation does to answers whose faults are known."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from click.testing import CliRunner
from survey.human_runs import write_csv, write_json, write_run

from polypersona.cli.main import cli
from polypersona.compare import Mitigation
from polypersona.compare import run as compare
from polypersona.records import Persona
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.frame import tempered
from polypersona.survey.inference import Moments
from polypersona.survey.rectification import People, choose_sample, rectify
from polypersona.survey.temperature import GRID, NEUTRAL, fit
from polypersona.survey.weighting import MAX_FACTOR, rake, reweighted


def test_raking_gives_the_margins_of_the_people_and_says_what_it_costs():
    members = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [-1, 1]])
    panel, people = np.array([40.0, 10, 30, 15, 5]), np.array([10.0, 30, 20, 40, 0])
    found = rake(panel, people, members)
    weights = panel * found.factors
    known = weights[:4].reshape(2, 2)
    assert known.sum(axis=1) / known.sum() == pytest.approx([0.4, 0.6], abs=1e-6)
    assert (weights[[0, 2]].sum() / weights.sum()) == pytest.approx(0.3, abs=1e-6)
    assert weights.sum() == pytest.approx(panel.sum())
    assert found.distance < 1e-6
    assert found.design_effect > 1.2
    assert rake(people, people, members).factors[:4] == pytest.approx(np.ones(4))


def test_a_few_personas_never_speak_for_everybody():
    found = rake(np.array([99.0, 1.0]), np.array([1.0, 99.0]), np.array([[0], [1]]))
    assert found.factors.max() <= MAX_FACTOR * 1.01
    assert found.distance > 0.1


def test_the_temperature_of_an_item_is_fitted_on_the_others_of_its_type():
    true = np.array([[0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.2, 0.1], [0.25, 0.4, 0.25, 0.1]])
    peaked = true**2 / (true**2).sum(axis=1, keepdims=True)
    totals = np.stack([np.rint(1e6 * _powered(peaked, 1 / tau)) for tau in GRID]).astype(np.int64)
    assert fit(totals, true, ["likert"] * 3).tolist() == [2.0] * 3
    assert fit(totals, true, ["likert", "likert", "single"]).tolist() == [2.0, 2.0, 1.0]
    wild = true.copy()
    wild[0] = [1, 0, 0, 0]  # an item's own people do not decide on its temperature, but on the others'
    assert fit(totals, wild, ["likert"] * 3)[0] == 2.0
    assert GRID[NEUTRAL] == 1


def test_probabilities_are_raised_answer_by_answer_and_still_sum_to_one():
    flat, sizes = np.array([0.8, 0.2, 0.6, 0.3, 0.1], np.float32), np.array([2, 0, 3])
    found = tempered(flat, sizes, np.array([2.0, 1.0, 1.0]))
    assert found == pytest.approx([0.64 / 0.68, 0.04 / 0.68, 0.6, 0.3, 0.1], abs=1e-6)


def _powered(p, exponent):
    return p**exponent / (p**exponent).sum(axis=1, keepdims=True)


def _panel(profiles, answers, weights):
    totals, squares = np.zeros((3, 5)), np.zeros((3, 5, 5))
    for profile, answer, weight in zip(profiles, answers, weights, strict=True):
        vector = weight * np.eye(5)[answer]
        totals[profile] += vector
        squares[profile] += np.outer(vector, vector)
    count = np.bincount(profiles, minlength=3)
    return Moments(totals, squares, count, count)


def test_rectified_means_keep_their_coverage_with_a_biased_run_and_are_narrower_where_it_is_informative():
    generator = np.random.default_rng(4)
    shares, means = np.array([0.3, 0.4, 0.3]), np.array([0.6, 2.0, 3.4])

    def answers(profiles, shift):
        noisy = means[profiles] + shift + generator.normal(0, 0.6, len(profiles))
        return np.clip(np.rint(noisy), 0, 4).astype(int)

    crowd = generator.choice(3, 20_000, p=shares)
    truth = People(crowd, answers(crowd, 0.0) / 4, np.ones(len(crowd)))
    covered = wrong = 0
    ratios = []
    for _ in range(200):
        personas, asked = generator.choice(3, 600, p=shares), generator.choice(3, 50, p=shares)
        sample = People(asked, answers(asked, 0.0) / 4, np.ones(50))
        found = rectify(_panel(personas, answers(personas, 0.5), np.ones(600)), np.arange(5.0), sample, truth)
        covered += found.rectified.low <= found.benchmark.value <= found.rectified.high
        wrong += found.synthetic.low <= found.benchmark.value <= found.synthetic.high
        ratios.append(found.width_ratio)
    assert covered >= 180
    assert wrong == 0
    assert np.mean(ratios) < 0.7


def test_reweighting_scales_totals_once_and_squares_twice():
    moments = _panel([0, 1, 1], [0, 2, 4], [1.0, 1.0, 2.0])
    found = reweighted(moments, np.array([2.0, 0.5, 1.0]))
    assert found.totals.sum(axis=1).tolist() == [2.0, 1.5, 0.0]
    assert found.squares.sum(axis=(1, 2)).tolist() == [4.0, 1.25, 0.0]


def test_a_larger_sample_of_people_holds_the_smaller_one():
    ids = tuple(f"r{number}" for number in range(40))
    small, large = choose_sample(ids, 10), choose_sample(ids, 25)
    assert (small.sum(), large.sum()) == (10, 25)
    assert large[small].all()


BOOK = {
    "title": "Made up", "source": "made up", "license": "CC0", "respondent_id": "id", "not_asked": "empty cell",
    "demographics": {"region": {"label": "region", "values": ["north", "south"]}},
    "items": {
        name: {"stem": f"{name}?", "response_type": "likert",
               "options": {str(code): f"option {code}" for code in range(1, 6)}}
        for name in ("q1", "q2", "q3")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """Nine in ten personas are of the north, six in ten people of the south, and answers are too sure of themselves."""
    folder, draw = tmp_path_factory.mktemp("skewed"), random.Random(8)
    book = write_json(folder / "codebook.json", BOOK)
    level = {"north": -0.6, "south": 0.7}

    def p(region, item, power):
        places = np.linspace(-1, 1, 5)
        found = np.exp(-1.5 * (places - level[region] * (1 - 0.2 * item)) ** 2) ** power
        return found / found.sum()

    people = []
    for number in range(400):
        region = "north" if draw.random() < 0.4 else "south"
        people.append([f"r{number}", region, *(draw.choices(range(1, 6), p(region, i, 1))[0] for i in range(3))])
    human = write_csv(folder / "human.csv", ["id", "region", "q1", "q2", "q3"], people)
    items = codebook_items(parse_codebook(BOOK)[0])
    personas = [Persona(f"p{n}", {"region": "north" if n % 10 else "south"}) for n in range(300)]
    runs = []
    for name, power in (("peaked", 2.0), ("calm", 1.0)):
        given = {}
        for persona in personas:
            for place, item in enumerate(items):
                odds = p(persona.attributes["region"], place, power)
                code = draw.choices(range(1, 6), odds)[0]
                given[persona.persona_id, item.item_id, 1, 1] = code, odds.tolist()
        runs.append(write_run(folder / name, book, personas, items, given))
    return runs, str(human), str(book)


def test_each_mitigation_is_shown_beside_the_run_as_generated(skewed):
    (run, calm), human, book = skewed
    result = compare(run, human, book, ["region"], Mitigation(60, (calm,)))
    rows = {(row["measure"], row["variant"]): row for row in result["tables"]["mitigation"]}
    variants = ["as generated", "raked to the people", "temperature by type", "temperature, raked", "run"]
    assert [variant for measure, variant in rows if measure == "total_variation"] == variants
    tv = [rows["total_variation", variant]["score"] for variant in variants]
    spread = [rows["variance_ratio", variant]["score"] for variant in variants]
    assert tv[1] < tv[0]
    assert tv[3] == min(tv[:4])
    assert tv[3] < 0.1 < tv[0]
    assert spread[0] < 0.8
    assert abs(1 - spread[3]) < 0.1
    assert rows["total_variation", "raked to the people"]["change"] == pytest.approx(tv[1] - tv[0])
    assert rows["total_variation", "raked to the people"]["n_effective"] < 200
    facts = result["mitigation"]
    assert set(facts["temperatures"]["likert"]) <= {1.5, 2.0, 3.0}  # peaked by 2, and people are a sample
    assert facts["design_effect"] > 1.5
    mean = facts["rectified"]
    assert mean["items"] == 3
    assert mean["rectified_error"] < 0.05
    assert mean["rectified_covered"] == 1
    assert 0.5 < mean["width_ratio"] < 1.2
    assert all(row["people_asked"] == 60 and row["people_held_out"] == 340 for row in result["tables"]["rectified"])
    assert compare(run, human, book, ["region"])["mitigation"] is None


def test_the_command_prints_before_and_after(skewed):
    (run, _), human, book = skewed
    command = ["compare", run.location, "--human", human, "--codebook", book, "--mitigate", "--rectify", "40"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "as generated" in done.output
    assert "temperature, raked" in done.output
    assert "Rectified by 40 people" in done.output
    stored = json.loads((run.local_path("scores/human.json")).read_text())
    assert stored["mitigation"]["people_asked"] == 40
    assert run.exists("scores/human_mitigation.parquet")
