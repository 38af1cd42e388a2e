"""Panels as the stages get them: sampled, from real files, with licence, size and a stable source hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polypersona.errors import PersonaError
from polypersona.panel.export import render_reading, render_sampled
from polypersona.panel.sampler import sample_personas
from polypersona.panel.sources import PERSONA_HUB_LICENSE, load_panel, read_personas
from polypersona.recipe_sections import PanelRecipe

GSS = "gss_agents/gss_agents.jsonl"
CHAT = "persona_chat/Synthetic-Persona-Chat_test.csv"


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_sampled_panel_is_the_samplers() -> None:
    panel = load_panel(PanelRecipe(size=20), seed=3)
    assert panel.personas == sample_personas(20, 3)
    assert panel.source_hash == load_panel(PanelRecipe(size=21), seed=3).source_hash
    assert panel.license == ""


@pytest.mark.parametrize(
    "options",
    [
        {"mapping": {"age": "AGE"}}, {"id": "x"}, {"text": "x"}, {"weight": "x"}, {"distinct": True},
        {"accept_license": "MIT"},
    ],
)  # fmt: skip
def test_a_sampled_panel_refuses_options_of_files(options: dict[str, Any]) -> None:
    with pytest.raises(PersonaError, match=f"panel.{next(iter(options))} is for personas from a file"):
        load_panel(PanelRecipe(size=5, **options), seed=1)


def test_a_sampled_panel_needs_a_size() -> None:
    with pytest.raises(PersonaError, match="size is missing"):
        load_panel(PanelRecipe(), seed=1)


def test_size_takes_the_first_and_never_more_than_there_are(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [{"age": age} for age in (30, 31, 30, 32)])
    whole = load_panel(PanelRecipe(source=source), seed=1)
    part = load_panel(PanelRecipe(source=source, size=3), seed=2)
    assert part.personas == whole.personas[:3]
    assert part.source_hash == whole.source_hash
    with pytest.raises(PersonaError, match=r"has 4 usable personas \(0 rows kept aside\), panel.size asks for 5"):
        load_panel(PanelRecipe(source=source, size=5), seed=1)


def test_another_content_has_another_source_hash(tmp_path: Path) -> None:
    one = load_panel(PanelRecipe(source=write(tmp_path / "a.jsonl", [{"age": 30}])), seed=1)
    other = load_panel(PanelRecipe(source=write(tmp_path / "b.jsonl", [{"age": 31}])), seed=1)
    assert one.source_hash != other.source_hash


def test_persona_hub_needs_its_licence_accepted(tmp_path: Path) -> None:
    source = write(tmp_path / "hub.jsonl", [{"persona": "A retired sailor."}, {"persona": "A chemist."}])
    with pytest.raises(PersonaError, match=r"CC BY-NC-SA 4\.0") as caught:
        load_panel(PanelRecipe(source=source), seed=1)
    assert f"accept_license: {PERSONA_HUB_LICENSE}" in caught.value.hint
    with pytest.raises(PersonaError, match="the recipe accepts MIT"):
        load_panel(PanelRecipe(source=source, accept_license="MIT"), seed=1)
    for accepted in (PERSONA_HUB_LICENSE, "cc by-nc-sa 4.0"):
        panel = load_panel(PanelRecipe(source=source, accept_license=accepted), seed=1)
        assert [(p.text, dict(p.attributes)) for p in panel.personas] == [("A retired sailor.", {}), ("A chemist.", {})]
        assert panel.license == PERSONA_HUB_LICENSE


def test_persona_hub_keeps_its_licence_through_an_import(tmp_path: Path) -> None:
    source = write(tmp_path / "hub.jsonl", [{"persona": "A retired sailor."}])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(render_reading(read_personas(PanelRecipe(source=source, accept_license=PERSONA_HUB_LICENSE))))
    with pytest.raises(PersonaError, match="licence"):
        load_panel(PanelRecipe(source=str(copy)), seed=1)
    assert load_panel(PanelRecipe(source=str(copy), accept_license=PERSONA_HUB_LICENSE), seed=1).license


def test_a_text_with_attributes_is_not_persona_hub(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", [{"persona": "A sailor.", "age": 61}, {"persona": "A chemist."}])
    panel = load_panel(PanelRecipe(source=source, accept_license="CC-BY-4.0"), seed=1)
    assert [(p.text, dict(p.attributes)) for p in panel.personas] == [("A sailor.", {"age": 61}), ("A chemist.", {})]
    assert panel.license == "CC-BY-4.0"


def test_sampled_personas_survive_their_file(tmp_path: Path) -> None:
    personas = sample_personas(50, 7)
    path = tmp_path / "p.jsonl"
    path.write_bytes(render_sampled(personas))
    assert all(json.loads(line)["synthetic"] is True for line in path.read_text().splitlines())
    reading = read_personas(PanelRecipe(source=str(path)))
    assert reading.personas == personas
    assert reading.is_synthetic


def test_imported_personas_survive_their_file(tmp_path: Path) -> None:
    records = [{"id": "a", "age": 3, "w": 1.5, "tags": ["x", "y"], "text": "hi"}, {"id": "b", "age": 4, "w": 2}]
    reading = read_personas(PanelRecipe(source=write(tmp_path / "p.jsonl", records), weight="w"))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(render_reading(reading))
    assert read_personas(PanelRecipe(source=str(copy))).personas == reading.personas
    assert json.loads(copy.read_text().splitlines()[0])["source"] == "p.jsonl"


def test_the_general_social_survey_loads(test_data: Path) -> None:
    reading = read_personas(PanelRecipe(source=str(test_data / GSS)))
    assert len(reading.personas) == 3505
    assert reading.rejects == ()
    first = reading.personas[0]
    assert first.persona_id == "0023952f-142e-434b-82e2-7a7451b7c55f"
    assert first.attributes["age"] == 25
    assert len(first.attributes) == 27


def test_the_general_social_survey_loads_through_a_mapping(test_data: Path) -> None:
    panel = PanelRecipe(
        source=str(test_data / GSS),
        size=3000,
        mapping={
            "age": "age",
            "gender": {"column": "sex", "values": {"Female": "female", "Male": "male"}},
            "politics": {"column": "political_views", "values": {"Liberal": "liberal"}},
        },
    )
    reading = read_personas(panel)
    assert len(reading.personas) == 3000
    assert reading.personas[0].attributes == {"age": 25, "gender": "male", "politics": "Slightly liberal"}
    assert list(reading.unmapped) == ["politics"]
    assert sum(reading.unmapped["politics"].values()) == 3505 - 485
    assert len(reading.unused) == 24


def test_persona_chat_has_1868_distinct_personas(test_data: Path) -> None:
    columns = ["user 1 personas", "user 2 personas"]
    source = str(test_data / CHAT)
    assert len(load_panel(PanelRecipe(source=source, text="user 1 personas"), seed=1).personas) == 968
    assert len(load_panel(PanelRecipe(source=source, text=columns), seed=1).personas) == 2 * 968
    reading = read_personas(PanelRecipe(source=source, text=columns, distinct=True))
    assert (len(reading.personas), reading.repeats) == (1868, 68)
    assert all(not persona.attributes for persona in reading.personas)


def test_records_of_a_dataset_give_its_personas(test_data: Path) -> None:
    source = str(test_data / "polypersona_replication" / "data" / "test.json")
    reading = read_personas(PanelRecipe(source=source))
    assert len(reading.personas) == 239
    assert {reject.field for reject in reading.rejects} == {"persona_id"}
    assert len(reading.personas) + len(reading.rejects) == 358
