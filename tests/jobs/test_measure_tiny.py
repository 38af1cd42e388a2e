"""The measurement of the tiny model: on answers made by hand, and (slow) on the model itself."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.rules import RulesEngine
from polypersona.examples import build_example, example_item, example_persona
from polypersona.metrics.base import Pair
from polypersona.panel.sampler import sample_personas
from polypersona.questionbank import load_bank
from polypersona.records import Assignment, Example

SCRIPT = Path(__file__).parents[2] / "jobs" / "measure_tiny.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_tiny", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_tiny"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng, bank = random.Random(1), list(load_bank())
    engine = RulesEngine(EngineSettings("rules", 7, rationale=True))
    rows = []
    for persona in sample_personas(150, 7):
        for item in rng.sample(bank, 8):
            assignment = Assignment(persona.persona_id, item.item_id)
            cell = Cell(assignment.assignment_id, item, assignment.seed(7))
            answer = engine.answer([Group(persona, (cell,))])[0]
            rows.append(build_example(persona, item, answer, "labels"))
    return rows


def rows_of(script: ModuleType, examples: list[Example], *, is_blind: bool) -> list[object]:
    """Answers equal to the references, or each the reference of another persona to the same item."""
    by_item: dict[str, list[Example]] = {}
    for example in examples:
        by_item.setdefault(example.metadata["item_id"], []).append(example)
    rows = []
    for same in by_item.values():
        for index, example in enumerate(same):
            source = same[(index + 1) % len(same)].metadata if is_blind else example.metadata
            pair = Pair(
                example_item(example),
                source["reference"],
                source["code"],
                "complete",
                example.metadata["reference"],
                example.metadata["code"],
            )
            rows.append(script.Row(pair, example_persona(example), example.metadata["persona_id"]))
    return rows


def test_the_gain_of_a_perfect_model_over_a_blind_one_excludes_zero(
    script: ModuleType, examples: list[Example]
) -> None:
    figures = script._figures(rows_of(script, examples, is_blind=True), rows_of(script, examples, is_blind=False))
    assert figures["stance_agreement.tuned"] == [1.0, 1.0, 1.0]
    assert figures["bleu.tuned"] == [1.0, 1.0, 1.0]
    assert figures["well_formed.base"][0] == figures["well_formed.tuned"][0] == 1.0
    assert figures["stance_agreement.gain"][1] > 0.2
    assert figures["true_facts.base"][0] < 0.9 < figures["true_facts.tuned"][0]


def test_a_model_gains_nothing_over_itself(script: ModuleType, examples: list[Example]) -> None:
    rows = rows_of(script, examples, is_blind=True)
    figures = script._figures(rows, rows)
    assert figures["stance_agreement.gain"] == [0.0, 0.0, 0.0]


def test_one_attribute_predicts_more_than_none_and_less_than_the_card(
    script: ModuleType, examples: list[Example]
) -> None:
    best, majority, name = script._best_lookup(examples[:900], examples[900:])
    assert majority < best < script._retest(examples[900:], 7) < 0.95
    assert name in examples[0].metadata["persona"]["attributes"]


def test_figures_replace_what_stood_in_the_card(script: ModuleType, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"head\n{script.BEGIN}\nold\n{script.END}\ntail\n")
    script._write_card(card, "new")
    assert card.read_text() == f"head\n{script.BEGIN}\nnew\n{script.END}\ntail\n"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_after_tuning_the_tiny_model_follows_personas_it_has_never_seen(tmp_path: Path) -> None:
    """One seed of the measurement in the model card, through all the stages, as a user runs it; the card has three."""
    command = [sys.executable, str(SCRIPT), "--seeds", "7", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    stance = figures["stance_agreement.tuned"][0]
    assert stance >= 0.70
    assert stance > figures["lookup_stance"]
    assert figures["well_formed.tuned"][0] >= 0.97
    assert figures["stance_agreement.gain"][1] > 0
    assert figures["bleu.gain"][1] > 0
