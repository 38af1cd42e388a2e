"""Whole runs with `context: previous` and the tiny model: interviews through Ray, their growth, and what is refused."""

import hashlib
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from routed_bank import write_bank

from polypersona import generate
from polypersona.errors import RecipeChangedError
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory
from polypersona.verify import verify

ITEMS = ["pets.yesno.01", "pets.likert.01", "pets.open.01", "pets.likert.02", "pets.open.02"]


def recipe(folder, name, size=6, items=ITEMS, **options):
    settings = {
        "engine": "packed", "context": "previous", "rationale": True, "order": "random", "max_new_tokens": 16,
        "shard_personas": 2, "actors": 1, "slots": 8, **options,
    }  # fmt: skip
    return build_recipe(
        {
            "name": name,
            "out": str(folder),
            "panel": {"source": "sampled", "size": size},
            "instrument": {"bank": write_bank(folder), "items": items},
            "model": {"base": "tiny", "adapter": "none", "dtype": "fp32"},
            "generate": settings,
        }
    )


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "responses").iterdir()}


def rows(folder, *without):
    kept = {"shard", *without}
    table = pq.read_table(folder / "responses").to_pylist()
    return {row["assignment_id"]: {key: value for key, value in row.items() if key not in kept} for row in table}


@pytest.mark.ray
@pytest.mark.slow
def test_interviews_are_the_same_for_any_number_of_actors_and_grow_by_whole_interviews(local_ray, tmp_path):
    for actors in (1, 2):
        summary = generate.run(recipe(tmp_path, f"with{actors}", actors=actors))
        assert (summary["committed"], summary["quarantined"]) == (30, 0)
    assert hashes(tmp_path / "with1") == hashes(tmp_path / "with2")
    assert verify(RunDirectory.at(tmp_path / "with1")).is_clean
    held = {}
    for row in pq.read_table(tmp_path / "with1" / "responses").to_pylist():
        held.setdefault(row["persona_id"], {})[row["item_id"]] = row
    for own in held.values():
        has_pet = own[ITEMS[0]]["code"] == 2
        assert (own[ITEMS[1]]["disposition"] == "not_asked") is not has_pet
        asked = [row for row in own.values() if row["disposition"] != "not_asked"]
        assert len(asked) > 1
        for before, after in pairwise(asked):
            assert after["reused_prompt_tokens"] >= before["prompt_tokens"]
        assert sorted(own[ITEMS[3]]["options_as_shown"]) == [0, 1, 2]
        assert own[ITEMS[4]]["new_tokens"] > 1
    assert {own[ITEMS[0]]["code"] for own in held.values()} == {1, 2}

    before = hashes(tmp_path / "with1")
    with pytest.raises(RecipeChangedError, match=r"item 'pets\.yesno\.02' is new"):
        generate.run(recipe(tmp_path, "with1", items=[*ITEMS, "pets.yesno.02"]))
    assert hashes(tmp_path / "with1") == before
    assert generate.run(recipe(tmp_path, "with1", size=8, draws=2))["answered"] == 6 * 5 + 2 * 10
    assert before.items() <= hashes(tmp_path / "with1").items()
    assert verify(RunDirectory.at(tmp_path / "with1")).is_clean
    generate.run(recipe(tmp_path, "whole", size=8, draws=2))
    grown, whole = (rows(tmp_path / name, "reused_prompt_tokens", "option_probs") for name in ("with1", "whole"))
    assert grown == whole
    assert len(whole) == 80
