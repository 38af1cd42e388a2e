"""Recipes, banks and records that are made to exhaust the machine or to break out of their parser."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from polypersona.domain_files import check_bank
from polypersona.errors import DatasetError, PersonaError, RecipeError
from polypersona.panel.rows import parse_table
from polypersona.recipe import load_recipe
from polypersona.record_files import Rejection, read_records

GOOD = "name: x\npanel: {size: 3}\n"
NINE = ", ".join
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
DEEP = "[" * 5000 + "]" * 5000
LONG = "1" * 5000
# name → (the recipe, what the message says)
RECIPES = {
    "a bomb of aliases": (BOMB + GOOD, "100,000 values"),
    "aliases of itself": (GOOD + "cluster: &a {limits: *a}\n", "in themselves"),
    "a tag of Python": ("name: !!python/object/apply:os.getcwd []\n", "constructor"),
    "another tag of Python": ("name: !!python/name:os.system\n", "constructor"),
    "too deep": (GOOD + f"cluster: {DEEP}\n", "too deeply"),
    "a date that is none": ("name: 2024-13-45\npanel: {size: 3}\n", "month"),
    "a number of many digits": (GOOD + f"seed: {LONG}\n", "digits"),
    "a key twice": (GOOD + "name: y\n", "the key 'name' twice"),
    "a merge that is none": (GOOD + "<<: 3\n", "merging"),
    "a number that is none": (GOOD + "generate: {temperature: .nan}\n", "finite"),
    "half a character": ('name: "\\ud800"\npanel: {size: 3}\n', "name"),
    "a control character": ("name: a\x00b\n", "not valid YAML"),
    "too long": (GOOD + "#" * (1 << 20), "bytes"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_in_one_sentence_and_soon(name: str, tmp_path: Path) -> None:
    text, message = RECIPES[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    begin = time.perf_counter()
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert time.perf_counter() - begin < 20
    assert "\n" not in str(caught.value)


def test_aliases_that_make_little_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\npanel: &p {size: 3}\n")
    assert load_recipe(tmp_path / "recipe.yaml").panel.size == 3
    text = "name: x\npanel: {source: a.csv, mapping: {a: &m {column: c, values: {'1': x}}, b: *m}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    mapping = load_recipe(tmp_path / "recipe.yaml").panel.mapping
    assert mapping["a"] == mapping["b"]


@pytest.mark.parametrize("value", ["2024-13-45", DEEP, LONG, "!!python/name:os.system", "&a [*a]"])
def test_a_hostile_override_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", [f"seed={value}"])
    assert len(str(caught.value)) < 500


HOSTILE_JSON = {
    "deep": DEEP,
    "deep objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "digits": f'{{"domain": {LONG}}}',
    "constants": '{"domain": NaN, "title": Infinity, "version": -Infinity, "items": {}}',
    "a key twice": '{"domain": "tea", "domain": "coffee", "title": "T", "version": 1, "items": {}}',
    "bytes": "\udcff\udcfe",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_a_hostile_bank_is_a_problem_with_its_place(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tea.json"
    path.write_bytes(HOSTILE_JSON[name].encode("utf-8", "surrogateescape"))
    problems = check_bank([path])
    assert problems
    assert all(problem.file == str(path) for problem in problems)


@pytest.mark.parametrize("name", HOSTILE_JSON)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_hostile_records_are_refused_or_kept_aside(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"records{suffix}"
    path.write_bytes(HOSTILE_JSON[name].encode("utf-8", "surrogateescape"))
    try:
        rows = list(read_records(path))
    except DatasetError as error:
        assert str(path) in error.message  # noqa: PT017
    else:
        assert all(isinstance(row, Rejection) for row in rows) or name in ("constants", "a key twice")


@pytest.mark.parametrize("name", HOSTILE_JSON)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_hostile_personas_are_refused_or_kept_aside(name: str, suffix: str) -> None:
    data = HOSTILE_JSON[name].encode("utf-8", "surrogateescape")
    try:
        table = parse_table(f"panel{suffix}", data)
    except PersonaError as error:
        assert f"panel{suffix}" in error.message  # noqa: PT017
    else:
        assert (not table.rows and table.rejects) or name in ("constants", "a key twice")


def test_a_bomb_of_entities_in_a_workbook_is_refused() -> None:
    import io
    import zipfile

    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    text = f'<?xml version="1.0"?><!DOCTYPE w [<!ENTITY e0 "ha">{entities}]><workbook>&e9;</workbook>'
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("[Content_Types].xml", text)
        archive.writestr("xl/workbook.xml", text)
    begin = time.perf_counter()
    with pytest.raises(PersonaError, match="not an Excel workbook"):
        parse_table("panel.xlsx", data.getvalue())
    assert time.perf_counter() - begin < 20


def test_the_records_of_a_file_may_not_name_numbers_that_are_none(tmp_path: Path) -> None:
    table = parse_table("panel.jsonl", json.dumps({"id": "p1", "age": float("nan")}).encode() + b"\n{}")
    assert table.rows[0].fields["id"] == "p1"
