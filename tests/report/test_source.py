"""pytest tests/report/test_source.py"""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from polypersona.panel.export import render_reading
from polypersona.panel.sources import read_personas
from polypersona.recipe import build_recipe
from polypersona.report.page import browser_data
from polypersona.report.sample import SHOWN, Sample
from polypersona.report.source import load_source
from polypersona.report.tally import Tally
from polypersona.storage import RunDirectory


def panel_recipe(folder, *, is_human: bool):
    marks = {"is_human": True} if is_human else {}
    rows = [{"persona_id": f"id-{number}", "attributes": {"age": 30 + number}, **marks} for number in range(3)]
    file = folder / "people.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return build_recipe({"name": "mine", "out": str(folder), "panel": {"source": str(file)}})


@pytest.mark.parametrize("is_human", [True, False])
def test_a_panel_of_people_is_shown_without_cards_and_ids(tmp_path, is_human):
    recipe = panel_recipe(tmp_path, is_human=is_human)
    sample = Sample()
    rows = [["x", "Yes.", "complete", 0, 0]] * 3
    columns = dict(zip(SHOWN, map(list, zip(*rows, strict=True)), strict=True))
    sample.add(pa.table({"persona_id": [f"id-{number}" for number in range(3)], **columns}))
    source = load_source(RunDirectory.at(recipe.location), recipe, frozenset(sample.rows))
    data = browser_data(sample, source, Tally(item_types={"x": ("finance", "open")}))
    shown = json.dumps(data)
    assert len(data["personas"]) == 3
    assert ("id-1" in shown) is not is_human
    assert any(one["card"] for one in data["personas"]) is not is_human
    assert any("respondents are those of a survey" in note for note in source.notes) is is_human


def test_a_copy_of_a_panel_of_people_still_says_so(tmp_path):
    recipe = panel_recipe(tmp_path, is_human=True)
    (tmp_path / "copy.jsonl").write_bytes(render_reading(read_personas(recipe.panel)))
    copied = recipe.panel.model_copy(update={"source": str(tmp_path / "copy.jsonl")})
    assert read_personas(copied).is_human
