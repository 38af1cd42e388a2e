"""Scores of whole personas of a run that grew, on a real local Ray."""

from __future__ import annotations

import pytest

from polypersona import evaluate, generate
from polypersona.evaluation.personas import blocks_of
from polypersona.ledger import Box, Ledger, shard_name
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory


def test_shards_of_one_block_are_read_together():
    ledger = Ledger(4).extend(Box(10, ("a",))).extend(Box(10, ("a",), waves=2))
    names = [f"responses/{shard_name(number, 'f')}" for number in range(6)]
    assert blocks_of(ledger, range(6), "f") == [[names[place], names[place + 3]] for place in range(3)]
    assert blocks_of(ledger, [1, 3, 4], "f") == [[names[3]], [names[1], names[4]]]


@pytest.mark.slow
@pytest.mark.ray
def test_a_wave_that_was_added_later_meets_the_first_one(local_ray, tmp_path):
    def recipe(waves):
        return build_recipe(
            {
                "name": "grown",
                "out": str(tmp_path),
                "panel": {"source": "sampled", "size": 30},
                "instrument": {"bank": "questionbank", "domains": ["finance"]},
                "model": {"base": "tiny", "adapter": "none"},
                "generate": {"engine": "rules", "shard_personas": 10, "waves": waves},
                "evaluate": {"bootstrap": 50, "reference": "none"},
            }
        )

    found = []
    for waves in (1, 2):
        generate.run(recipe(waves))
        evaluate.run(recipe(waves))
        scores = RunDirectory.at(recipe(waves).location).read_json("scores/scores.json")
        found.append({row["metric"]: row for row in scores["overall"]})
    assert "retest_waves_exact" not in found[0]
    again = found[1]["retest_waves_exact"]
    # The rules teacher says the same in every wave, to five closed items of finance.
    assert (again["score"], again["n"]) == (1, 30 * 5)
    assert again["floor"] < 0.6 < again["gain_high"] + again["floor"]
    for name in ("stance_consistency", "contradiction_rate"):
        assert found[0][name]["n"] * 2 == found[1][name]["n"]
        assert found[0][name]["score"] == found[1][name]["score"]
    assert found[1]["stance_consistency"]["gain_low"] > 0
