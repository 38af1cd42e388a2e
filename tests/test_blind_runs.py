"""Run: pytest tests/test_blind_runs.py. What a run shows that was never shown a card, with the embedded model."""

from __future__ import annotations

import pytest

from polypersona import evaluate, generate
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.questionbank import load_bank
from polypersona.recipe import build_recipe
from polypersona.records import Persona
from polypersona.storage import RunDirectory

YOUNG, OLD = Persona("y", {"age": 21, "work": "student"}), Persona("o", {"age": 84, "work": "retired"})


@pytest.mark.parametrize("engine", ["fake", "rules"])
def test_a_hidden_card_changes_no_answer(engine):
    items = [item for item in load_bank() if item.is_closed][:12]
    answered = {}
    for persona in ("shown", "hidden"):
        asked = load_engine(EngineSettings(engine, 7, persona=persona))
        cells = tuple(Cell(f"{place:016x}", item, place) for place, item in enumerate(items))
        answers = asked.answer([Group(YOUNG, cells), Group(OLD, cells)])
        answered[persona] = [(one.text, one.option_probs) for one in answers]
        assert asked.name == engine
    assert answered["hidden"][:12] == answered["hidden"][12:]
    assert answered["shown"][:12] != answered["shown"][12:]


def scores_of(tmp_path, persona):
    recipe = build_recipe(
        {
            "name": persona,
            "out": str(tmp_path),
            "panel": {"source": "sampled", "size": 64},
            "instrument": {"bank": "questionbank", "domains": ["technology", "finance", "environment"]},
            "model": {"base": "tiny", "adapter": "none"},
            "generate": {"engine": "packed", "persona": persona, "shard_personas": 32, "temperature": 0.7},
            "evaluate": {"reference": "teacher", "bootstrap": 300},
        }
    )
    generate.run(recipe)
    evaluate.run(recipe)
    return RunDirectory.at(recipe.location).read_json("scores/scores.json")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_without_cards_keeps_much_of_its_overlap_and_loses_its_gain(local_ray, tmp_path):
    seeing, blind = (scores_of(tmp_path, persona) for persona in ("shown", "hidden"))
    ours, theirs = ({row["metric"]: row for row in scores["overall"]} for scores in (seeing, blind))
    assert seeing["conditioning"]["ignores_cards"] is False
    assert blind["conditioning"]["ignores_cards"] is True
    for name in ("stance_agreement", "exact_agreement", "quadratic_kappa", "bleu", "rouge1"):
        assert theirs[name]["gain_low"] <= 0 <= theirs[name]["gain_high"], name
        assert ours[name]["gain_low"] > 0, name
    assert ours["stance_agreement"]["gain_low"] > 0.1
    # On the same tables overlap and structure look like those of a somewhat weaker model.
    for name, share in (("bleu", 0.5), ("rouge1", 0.6), ("length_similarity", 0.8), ("sentiment_similarity", 0.85)):
        assert theirs[name]["score"] > share * ours[name]["score"], name
    # Nor are the answers of one person consistent with each other any more.
    assert theirs["stance_consistency"]["gain_low"] <= 0 <= theirs["stance_consistency"]["gain_high"]
    assert ours["stance_consistency"]["gain_low"] > 0
    assert ours["contradiction_rate"]["gain_high"] < 0
    assert "hidden" in blind["caption"]
