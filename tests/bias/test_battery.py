"""Run: pytest tests/bias/test_battery.py. The battery as a stage, on a real local Ray."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from polypersona import generate
from polypersona.bias import battery
from polypersona.cli.main import cli
from polypersona.errors import StorageError
from polypersona.lease import hold
from polypersona.ledger import RESPONSES, Box, Ledger, shard_name
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import PanelRecipe
from polypersona.storage import RunDirectory, update_run
from polypersona.verify import verify


def recipe_of(tmp_path, name="run", engine="fake", **generating):
    return build_recipe(
        {
            "name": name,
            "out": str(tmp_path),
            "panel": {"source": "sampled", "size": 80},
            "instrument": {"bank": "questionbank", "domains": ["finance", "technology"]},
            "model": {"base": "tiny", "adapter": "none"},
            "generate": {"engine": engine, "shard_personas": 40, **generating},
        }
    )


@pytest.mark.ray
def test_the_battery_is_answered_once_in_a_folder_of_its_own_and_adds_nothing_to_the_run(local_ray, tmp_path):
    recipe = recipe_of(tmp_path)
    generate.run(recipe)
    directory = RunDirectory.at(recipe.location)
    before = directory.sizes(RESPONSES)
    found = battery.run(recipe, sample=60)
    assert directory.sizes(RESPONSES) == before
    nested = RunDirectory.at(f"{recipe.location}/bias")
    assert verify(nested).is_clean
    files = {name: nested.read(name) for name in nested.names(RESPONSES)}
    again = battery.run(recipe, sample=60)
    assert {name: nested.read(name) for name in nested.names(RESPONSES)} == files
    assert json.dumps(again) == json.dumps(found)
    effects = {row["effect"]: row for row in found["effects"]}
    # The fake engine answers by hashing: an added option gets its share, and nothing else has a direction.
    assert effects["dont_know"]["low"] > 0.05
    for name in ("option_order", "typo", "letter_swap", "acquiescence"):
        assert effects[name]["low"] < 0 < effects[name]["high"], name
    assert {row["habit"] for row in found["habits"]} >= {"straight_lining", "refusal", "said_before"}
    more = battery.run(recipe, sample=70)
    assert more["sample"] == 70
    assert {name: nested.read(name) for name in files} == files
    fewer = battery.run(recipe, sample=60)
    assert json.dumps(fewer) == json.dumps(found)
    assert {row["personas"] for row in fewer["effects"]} == {60}
    never_asked = battery.run(recipe, sample=50)
    assert {row["personas"] for row in never_asked["effects"]} == {50}
    assert {name: nested.read(name) for name in files} == files


@pytest.mark.ray
def test_a_battery_at_temperature_zero_rests_on_the_codes(local_ray, tmp_path):
    found = battery.run(recipe_of(tmp_path, temperature=0), sample=10)
    shares = [row["score"] * row["n"] for row in found["by_item"] if row["effect"] == "dont_know"]
    assert shares
    assert shares == pytest.approx([round(one) for one in shares])


@pytest.mark.ray
def test_the_command_prints_effects_and_the_drift_to_another_run(local_ray, tmp_path):
    path = tmp_path / "recipe.json"
    for name, seed in (("one", 1), ("two", 2)):
        recipe = recipe_of(tmp_path, name, "rules")
        path.write_text(recipe.model_copy(update={"seed": seed}).model_dump_json(exclude_unset=True))
        against = ["--against", str(tmp_path / "one")] if name == "two" else []
        done = CliRunner().invoke(cli, ["bias", str(path), "--sample", "20", *against])
        assert done.exit_code == 0, done.output
    assert "Acquiescence" in done.output
    assert "Control: a letter missing" in done.output
    assert "Drift: this run minus" in done.output
    stored = json.loads((tmp_path / "two" / "scores" / "bias.json").read_text())
    assert stored["synthetic"] is True
    drift = {row["name"]: row for row in stored["drift"]}
    assert (drift["acquiescence"]["change"], drift["typo"]["change"]) == (0, 0)
    assert drift["middle"]["is_comparable"]


@pytest.mark.ray
def test_retry_of_a_batterys_own_run_asks_its_quarantined_forms_again(local_ray, tmp_path):
    rows: list[dict[str, object]] = [{"id": f"p{place}", "age": 20 + place} for place in range(6)]
    rows[2] |= {"fake_failure": "error", "fake_once": str(tmp_path / "failed")}
    (tmp_path / "panel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"shard_personas": 3, "actors": 1, "max_attempts": 1, "max_quarantined": 1.0}
    recipe = recipe_of(tmp_path, **options).model_copy(
        update={"panel": PanelRecipe(source=str(tmp_path / "panel.jsonl"))}
    )
    battery.run(recipe, sample=5)
    nested = tmp_path / "run" / "bias"
    quarantined = verify(RunDirectory.at(nested)).quarantined
    assert quarantined > 0
    command = ["retry", str(nested), "--json", "--set", "generate.max_attempts=2"]
    with hold(RunDirectory.at(tmp_path / "run")):  # as `bias` holds it
        refused = CliRunner().invoke(cli, command)
    assert "is held by" in str(refused.exception)
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["asked"], told["answered"], told["quarantined"]) == (quarantined, quarantined, 0)
    assert verify(RunDirectory.at(nested)).is_clean
    assert {row["personas"] for row in battery.run(recipe, sample=5)["effects"] if row["n"]} == {5}


def test_a_batterys_run_is_told_from_a_run_of_its_name(tmp_path):
    nested = RunDirectory.at(tmp_path / "run" / "bias")
    for items, owner in ((("a",), None), (("a", "a#reversed"), RunDirectory.at(tmp_path / "run"))):
        plan = {"recipe": {"name": "bias"}, "ledger": Ledger(8).extend(Box(5, items)).as_json()}
        update_run(nested, plan)
        assert battery.owner_of(nested) == owner
        update_run(nested, plan | {"recipe": {"name": "other"}})
        assert battery.owner_of(nested) is None
    assert battery.owner_of(RunDirectory.at(tmp_path / "nowhere")) is None


def test_a_run_without_a_battery_is_no_measure_of_drift(tmp_path):
    with pytest.raises(StorageError, match="There is no battery"):
        battery.run(recipe_of(tmp_path), 10, RunDirectory.at(tmp_path / "nowhere"))


def test_a_battery_of_another_version_is_not_compared_with(tmp_path):
    run = RunDirectory.at(tmp_path / "run")
    run.write_json("scores/bias.json", {"bias_version": battery.BIAS_VERSION - 1, "effects": [], "habits": []})
    with pytest.raises(StorageError, match="of version 1, whose effects mean something else"):
        battery.run(recipe_of(tmp_path), sample=10, against=run)


def test_a_battery_that_answered_nothing_forces_its_size_on_none(tmp_path):
    nested = RunDirectory.at(tmp_path / "bias")
    ledger = Ledger(8).extend(Box(5000, ("a",)))
    update_run(nested, {"fingerprint": "f00d", "ledger": ledger.as_json()})
    assert battery._most_asked(nested) == 0
    nested.write(f"responses/{shard_name(0, 'f00d')}", b"")
    assert battery._most_asked(nested) == 5000
