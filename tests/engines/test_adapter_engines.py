"""Several adapters behind one engine, at toy size: each cell gets what its own adapter alone would say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_runs import DOMAINS, ITEMS
from toy_models import make_toy_model

from polypersona.engines.adapter_engines import AdapterEngines
from polypersona.engines.adapter_table import AdapterEntry, AdapterTable
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.models.loading import load_base_model
from polypersona.models.lora import attach_lora
from polypersona.records import Assignment, Persona
from polypersona.scopes import Scope


def make_adapter(base: Path, folder: Path, seed: int) -> str:
    model = attach_lora(load_base_model(str(base), dtype="fp32"), rank=4, alpha=8, dropout=0.0)
    noise = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineSettings, dict[str, str]]:
    folder = tmp_path_factory.mktemp("adapters")
    base = make_toy_model("llama", folder / "base")
    settings = EngineSettings("packed", 7, model=str(base), temperature=0, max_new_tokens=6, slots=4)
    return settings, {
        name: make_adapter(base, folder / name, seed) for seed, name in enumerate(("old", "young", "all"))
    }


def make_table(settings: EngineSettings, *, has_base: bool = False) -> AdapterTable:
    def entry(name: str, **personas: tuple[float, float]) -> AdapterEntry:
        return AdapterEntry(name, Scope(personas=personas), name, "hash", settings.model, "base hash")

    by_age = {"old": entry("old", age=(30.0, 99.0)), "young": entry("young", age=(18.0, 29.0))}
    base = AdapterEntry("none", model=settings.model) if has_base else None
    finance = () if has_base else ("all",)
    entries = by_age if has_base else {**by_age, "all": entry("all")}
    return AdapterTable(entries, {"healthcare": ("old", "young"), "finance": finance}, base)


def make_groups(ages: tuple[int, ...]) -> list[Group]:
    def cell(number: int, index: int) -> Cell:
        assignment = Assignment(f"p{number}", ITEMS[index].item_id)
        return Cell(assignment.assignment_id, ITEMS[index], assignment.seed(7))

    return [
        Group(Persona(f"p{number}", {"age": age}), (cell(number, 0), cell(number, 1)))
        for number, age in enumerate(ages)
    ]


@pytest.mark.parametrize("has_base", [False, True])
def test_each_cell_is_answered_by_its_own_adapter(toys: tuple[EngineSettings, dict[str, str]], has_base: bool) -> None:
    settings, folders = toys
    groups, table = make_groups((20, 40, 25, 70)), make_table(settings, has_base=has_base)
    engines = AdapterEngines(settings, table, 3, lambda entry: folders[entry.name])
    answers = {answer.assignment_id: answer for answer in engines.answer(groups)}
    engines.close()
    for name in table.answering:
        alone = load_engine(replace(settings, adapter=folders.get(name, "")))
        own = [
            Group(group.persona, cells)
            for group in groups
            if (cells := tuple(c for c in group.cells if table.name_for(group.persona, c.item.domain) == name))
        ]
        assert own
        for answer in alone.answer(own):
            assert answers[answer.assignment_id] == answer
        alone.close()
    assert len({answers[group.cells[0].assignment_id].option_probs for group in groups}) == 4


def test_how_many_are_held_at_once_changes_no_answer(toys: tuple[EngineSettings, dict[str, str]]) -> None:
    settings, folders = toys
    loaded: list[str] = []

    def load(wanted: EngineSettings):
        loaded.append(Path(wanted.adapter).name)
        return load_engine(wanted)

    groups = make_groups((20, 40))
    all_held = AdapterEngines(settings, make_table(settings), 3, lambda entry: folders[entry.name], load)
    first = [all_held.answer(groups), all_held.answer(groups)]
    assert sorted(loaded) == ["all", "old", "young"]
    loaded.clear()
    one_held = AdapterEngines(settings, make_table(settings), 1, lambda entry: folders[entry.name], load)
    assert [one_held.answer(groups), one_held.answer(groups)] == first
    assert len(one_held.held) == 1
    assert len(loaded) == 5  # the second call begins with what is held
    for engines in (all_held, one_held):
        engines.close()
        assert engines.held == ()


def test_the_description_of_a_domain_names_weights_and_people(toys: tuple[EngineSettings, dict[str, str]]) -> None:
    table = make_table(toys[0])
    assert [table.describe(domain) for domain in DOMAINS] == [
        "old hash on base hash for age 30 to 99; young hash on base hash for age 18 to 29",
        "all hash on base hash",
    ]
    assert make_table(toys[0], has_base=True).describe("finance") == "else none"
