"""pytest tests/test_content.py: what of a recipe decides a run's content, and how runs of earlier versions go on."""

import json
from dataclasses import replace

import pytest

from polypersona.content import (
    content_parts,
    extend_ledger,
    fingerprint_of,
    refuse_another_recipe,
    refuse_changes,
)
from polypersona.engines.settings import Weights
from polypersona.errors import RecipeChangedError
from polypersona.ledger import Ledger
from polypersona.panel.sources import load_panel
from polypersona.population import Population, item_hashes, panel_digests
from polypersona.recipe import build_recipe
from polypersona.records import Item, Persona

FROZEN = {"dtype": "fp32", "quantization": "none", "slots": 8, "threads": 1, "shard_personas": 2}
ITEMS = tuple(Item(f"x.open.0{number}", "x", f"Why {number}?", "open") for number in range(1, 4))
PERSONAS = tuple(Persona(f"p{number}", {"age": 20 + number}) for number in range(6))
LATER = ("generate.repetition_penalty", "generate.stop", "generate.length_norm")


def recipe_of(**options):
    return build_recipe(
        {"name": "toy", "panel": {"source": "sampled", "size": 4}, "generate": {"engine": "fake", **options}}
    )


def stored(recipe, population, without=()):
    parts = content_parts(recipe, FROZEN, Weights(), population)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "content": {
            "parts": {key: value for key, value in parts.items() if key not in without},
            "items": item_hashes(population),
        },
        "ledger": extend_ledger(Ledger(2), recipe, population).as_json(),
    }


def population(personas=4, items=ITEMS):
    return Population(PERSONAS[:personas], items)


def panel_of(path, size=None, rows=6, **attributes):
    """A recipe whose panel is a file of `rows` personas, of which it asks `size`, and who they are."""
    lines = [json.dumps({"id": f"p{place}", "age": 20 + place, **attributes}) for place in range(rows)]
    path.write_text("\n".join(lines))
    recipe = build_recipe({"name": "toy", "panel": {"source": str(path), "size": size}, "generate": {"engine": "fake"}})
    return recipe, Population(load_panel(recipe.panel, recipe.seed).personas, ITEMS)


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("repetition_penalty", 1.2, "generate.repetition_penalty: 1.0 → 1.2"),
        ("stop", ["END"], 'generate.stop: [] → ["END"]'),
        ("length_norm", True, "generate.length_norm: false → true"),
    ],
)
def test_a_run_made_before_a_key_existed_was_made_with_its_default(option, value, line):
    asked, people = recipe_of(), population()
    old = stored(asked, people, without=LATER)
    assert not set(LATER) & set(old["content"]["parts"])
    refuse_changes("here", old, content_parts(asked, FROZEN, Weights(), people), asked, people)
    refuse_another_recipe("here", old, asked, people)
    changed = recipe_of(**{option: value})
    for refuse in (
        lambda: refuse_changes("here", old, content_parts(changed, FROZEN, Weights(), people), changed, people),
        lambda: refuse_another_recipe("here", old, changed, people),
    ):
        with pytest.raises(RecipeChangedError) as refused:
            refuse()
        assert line in refused.value.message.splitlines()[1].strip()


def test_every_way_of_asking_is_part_of_the_fingerprint():
    people = population()
    panel = panel_digests(people.personas, [4])[4]
    options = (
        {}, {"repetition_penalty": 1.2}, {"stop": ["END"]}, {"stop": ["END", "."]}, {"length_norm": True},
        {"context": "previous"}, {"calibration": "permute"}, {"calibration": "content_free"}, {"min_p": 0.1},
    )  # fmt: skip
    made = {
        fingerprint_of(content_parts(recipe_of(**one), FROZEN, Weights(), people), item_hashes(people), panel)
        for one in options
    }
    assert len(made) == len(options)


def grown(first, then, *, context="previous", waves=1):
    ledger = extend_ledger(Ledger(2), recipe_of(context=context), population(4, first))
    asked = recipe_of(context=context, waves=waves)
    return lambda people: extend_ledger(ledger, asked, population(people, then))


@pytest.mark.parametrize(
    ("first", "then", "people", "waves", "named"),
    [
        (ITEMS[:2], ITEMS, 4, 1, "item 'x.open.03' is new"),
        (ITEMS[:2], ITEMS, 6, 2, "item 'x.open.03' is new"),
        (ITEMS, ITEMS[:2], 6, 1, "item 'x.open.03' is gone"),
        (ITEMS, ITEMS[1:], 4, 2, "item 'x.open.01' is gone"),
        (ITEMS, ITEMS[::-1], 6, 1, "their order is another"),
    ],
)
def test_the_items_of_a_run_of_interviews_cannot_change(first, then, people, waves, named):
    with pytest.raises(RecipeChangedError, match=f"of the {len(first)} items .* {named}") as refused:
        grown(first, then, waves=waves)(people)
    assert "context: previous" in refused.value.message
    assert "another name" in refused.value.hint
    assert grown(first, then, context="none", waves=waves)(people).num_cells > 0


def test_a_run_of_interviews_grows_by_personas_waves_and_draws():
    assert grown(ITEMS, ITEMS)(6).num_cells == 18
    assert grown(ITEMS, ITEMS, waves=3)(6).num_cells == 54
    # Nothing new is asked for, so nothing is refused.
    assert grown(ITEMS, ITEMS[:2])(4).num_cells == 12
    renamed = (replace(ITEMS[0], stem="Other?"), *ITEMS[1:])
    assert grown(ITEMS, renamed)(4).num_cells == 12


def test_a_shorter_panel_of_the_same_people_is_taken(tmp_path):
    held = stored(*panel_of(tmp_path / "panel.jsonl"))
    for size in (1, 4, 5):
        recipe, people = panel_of(tmp_path / "panel.jsonl", size)
        refuse_changes("here", held, content_parts(recipe, FROZEN, Weights(), people), recipe, people)
        refuse_another_recipe("here", held, recipe, people)


@pytest.mark.parametrize("rows", [4, 6])
def test_a_shorter_panel_with_other_people_is_refused(tmp_path, rows):
    held = stored(*panel_of(tmp_path / "panel.jsonl"))
    recipe, people = panel_of(tmp_path / "panel.jsonl", 4, rows, occupation="nurse")
    with pytest.raises(RecipeChangedError, match="the first 6 personas: "):
        refuse_changes("here", held, content_parts(recipe, FROZEN, Weights(), people), recipe, people)
    with pytest.raises(RecipeChangedError, match="the first 6 personas: "):
        refuse_another_recipe("here", held, recipe, people)


def test_a_source_that_has_lost_people_is_taken_only_where_the_rest_are_known(tmp_path):
    first, people = panel_of(tmp_path / "panel.jsonl", 4)
    begun = extend_ledger(Ledger(2), first, people)
    held = stored(*panel_of(tmp_path / "panel.jsonl"))
    grown = extend_ledger(begun, *panel_of(tmp_path / "panel.jsonl"))
    held["ledger"] = grown.as_json()
    recipe, people = panel_of(tmp_path / "panel.jsonl", rows=4)
    refuse_changes("here", held, content_parts(recipe, FROZEN, Weights(), people), recipe, people)
    recipe, people = panel_of(tmp_path / "panel.jsonl", rows=5)
    with pytest.raises(RecipeChangedError, match=r"the first 6 personas: \w+ → \(absent\)"):
        refuse_changes("here", held, content_parts(recipe, FROZEN, Weights(), people), recipe, people)
