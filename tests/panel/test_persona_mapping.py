"""Columns become attributes, texts, ids and weights as the recipe says, and no row is lost without a word."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from polypersona.errors import PersonaError
from polypersona.panel.mapping import UnusableError, convert_value
from polypersona.panel.sources import Reading, read_personas
from polypersona.recipe_sections import PanelRecipe


def read(folder: Path, records: list[Any] | str, **options: Any) -> Reading:
    path = folder / ("p.csv" if isinstance(records, str) else "p.jsonl")
    text = records if isinstance(records, str) else "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text)
    return read_personas(PanelRecipe(source=str(path), **options))


def attributes(reading: Reading) -> list[dict[str, Any]]:
    return [dict(persona.attributes) for persona in reading.personas]


def test_a_mapping_takes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        [{"id": 7, "SEX": 2, "YOB": 1980, "text": "hello"}],
        mapping={"gender": {"column": "SEX", "values": {"1": "male", "2": "female"}}},
    )
    assert attributes(reading) == [{"gender": "female"}]
    assert reading.personas[0].persona_id == "7"
    assert reading.personas[0].text == ""
    assert reading.unused == ("YOB", "text")


def test_a_value_outside_the_recoding_is_kept_and_counted(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        [{"w": "FT"}, {"w": "other"}, {"w": "other"}, {"w": "DK"}, {"w": None}, {"w": "FT", "x": 1}],
        mapping={"work": {"column": "w", "values": {"FT": "full time", "DK": ""}}, "x": "x"},
    )
    assert attributes(reading)[:3] == [{"work": "full time"}, {"work": "other"}, {"work": "other"}]
    assert reading.unmapped == {"work": {"other": 2}}
    assert [(reject.row, reject.reason) for reject in reading.rejects] == [
        (4, "the row has neither an attribute nor a text"),
        (5, "the row has neither an attribute nor a text"),
    ]


def test_recoding_finds_numbers_booleans_and_parts_of_lists(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        [{"a": 1.0, "b": True, "c": ["x", "y"]}],
        mapping={
            "a": {"column": "a", "values": {"1": "one"}},
            "b": {"column": "b", "values": {"yes": "so"}},
            "c": {"column": "c", "values": {"x": "ex", "y": ""}},
        },
    )
    assert attributes(reading) == [{"a": "one", "b": "so", "c": ("ex",)}]
    assert reading.unmapped == {}


def test_csv_columns_become_numbers_where_every_cell_is_one(tmp_path: Path) -> None:
    reading = read(tmp_path, "i,f,zip,mixed,neg\n1,1,01234,1,-3\n,2.5,99999,x,4\n3,1e3,10000,2,\n")
    assert attributes(reading) == [
        {"i": 1, "f": 1.0, "zip": "01234", "mixed": "1", "neg": -3},
        {"f": 2.5, "zip": "99999", "mixed": "x", "neg": 4},
        {"i": 3, "f": 1000.0, "zip": "10000", "mixed": "2"},
    ]
    assert isinstance(reading.personas[0].attributes["i"], int)
    assert isinstance(reading.personas[0].attributes["f"], float)


def test_a_recoded_age_is_a_number(tmp_path: Path) -> None:
    values = {"18-29": "24", "30-49": "40"}
    reading = read(tmp_path, [{"b": "18-29"}, {"b": "30-49"}], mapping={"age": {"column": "b", "values": values}})
    assert attributes(reading) == [{"age": 24}, {"age": 40}]


def test_json_texts_stay_texts(tmp_path: Path) -> None:
    assert attributes(read(tmp_path, [{"zip": "12345"}])) == [{"zip": "12345"}]


def test_values_and_interests_in_one_cell_are_lists(tmp_path: Path) -> None:
    reading = read(tmp_path, 'interests,values\n"chess, hiking",family; security\nyoga,\n')
    assert attributes(reading) == [
        {"interests": ("chess", "hiking"), "values": ("family", "security")},
        {"interests": ("yoga",)},
    ]


def test_cells_no_attribute_can_hold_are_counted_when_unnamed_and_rejected_when_named(tmp_path: Path) -> None:
    records = [{"age": 4, "deep": {"x": 1}}, {"age": 5, "deep": "fine"}]
    reading = read(tmp_path, records)
    assert attributes(reading) == [{"age": 4}, {"age": 5, "deep": "fine"}]
    assert reading.skipped == {"deep": 1}
    reading = read(tmp_path, records, mapping={"age": "age", "deep": "deep"})
    assert [(reject.row, reject.field) for reject in reading.rejects] == [(1, "deep")]
    assert "an object is no attribute" in reading.rejects[0].reason


def test_nested_and_flat_records_live_in_one_file(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        [
            {"persona_id": "a", "age": 30},
            {"persona_id": "b", "domain": "finance", "persona": {"age": 31}},
            {"id": "row-9", "metadata": {"persona_id": "c"}, "persona": {"age": 32}},
            {"persona_id": "d", "persona": {"attributes": {"age": 33}, "text": "hi"}},
        ],
    )
    assert [(p.persona_id, dict(p.attributes), p.text) for p in reading.personas] == [
        ("a", {"age": 30}, ""),
        ("b", {"age": 31}, ""),
        ("c", {"age": 32}, ""),
        ("d", {"age": 33}, "hi"),
    ]


def test_the_mark_of_generated_files_is_no_attribute(tmp_path: Path) -> None:
    reading = read(tmp_path, [{"age": 30, "synthetic": True}])
    assert attributes(reading) == [{"age": 30}]
    assert reading.is_synthetic


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"id": "agentid"}, "panel.id"),
        ({"text": "agentid"}, "panel.text"),
        ({"text": ["age", "agentid"]}, "panel.text"),
        ({"weight": "agentid"}, "panel.weight"),
        ({"mapping": {"work": "agentid"}}, "panel.mapping.work"),
        ({"mapping": {"work": {"column": "agentid", "values": {"a": "b"}}}}, "panel.mapping.work"),
    ],
)
def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises(PersonaError, match=f"{field} names the column 'agentid'.*Did you mean 'agent_id'") as caught:
        read(tmp_path, [{"agent_id": "a", "age": 3}], **options)
    assert caught.value.hint == "Columns: agent_id, age."


def test_a_missing_or_repeated_id_keeps_the_row_aside(tmp_path: Path) -> None:
    records = [{"id": "a", "age": 1}, {"age": 2}, {"id": "", "age": 3}, {"id": "a", "age": 4}, {"id": [1], "age": 5}]
    reading = read(tmp_path, [*records, {"id": 6.0, "age": 6}, {"id": True, "age": 7}])
    assert [p.persona_id for p in reading.personas] == ["a", "6"]
    assert [(reject.row, reject.field, reject.reason) for reject in reading.rejects] == [
        (2, "id", "the id is missing"),
        (3, "id", "the id is missing"),
        (4, "id", "the id 'a' occurs in row 1 already"),
        (5, "id", "[1] is no id"),
        (7, "id", "True is no id"),
    ]


def test_weights_are_finite_and_above_zero(tmp_path: Path) -> None:
    reading = read(tmp_path, "w,age\n1.5,1\n0,2\n-1,3\nnan,4\ninf,5\n,6\nx,7\n2,8\n", weight="w")
    assert [(p.weight, p.attributes["age"]) for p in reading.personas] == [(1.5, 1), (2.0, 8)]
    assert [(reject.row, reject.field) for reject in reading.rejects] == [(row, "w") for row in range(3, 9)]
    assert "finite number above 0, not '0'" in reading.rejects[0].reason


def test_a_body_weight_is_no_survey_weight(tmp_path: Path) -> None:
    reading = read(tmp_path, [{"age": 40, "weight": 81.5}])
    assert reading.personas[0].weight == 1.0
    assert attributes(reading) == [{"age": 40, "weight": 81.5}]


def test_each_of_several_texts_is_a_persona(tmp_path: Path) -> None:
    records = [{"id": "a", "x": " one ", "y": "two"}, {"id": "b", "x": "three", "y": None}]
    reading = read(tmp_path, records, text=["x", "y"])
    assert [(p.persona_id, p.text) for p in reading.personas] == [("a.1", "one"), ("a.2", "two"), ("b.1", "three")]


def test_distinct_keeps_the_first_of_equal_personas(tmp_path: Path) -> None:
    records = [{"t": "one"}, {"t": "two"}, {"t": "one"}, {"t": " one  "}]
    assert len({p.persona_id for p in read(tmp_path, records, text="t").personas}) == 4
    reading = read(tmp_path, records, text="t", distinct=True)
    assert [p.text for p in reading.personas] == ["one", "two"]
    assert reading.repeats == 2


def test_a_text_that_is_none_keeps_the_row_aside(tmp_path: Path) -> None:
    reading = read(tmp_path, [{"t": "one"}, {"t": 3}, {"t": "half \ud800"}, {"t": ""}], text="t")
    assert [(reject.row, reject.field) for reject in reading.rejects] == [(2, "t"), (3, "t"), (4, "")]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        (None, None), ("", None), ("  ", None), (math.nan, None), ([], None), (" a ", "a"), (0, 0), (False, False),
        (2.5, 2.5), (["a", " ", 3], ("a", "3")),
    ],
)  # fmt: skip
def test_cells_become_values(cell: Any, value: Any) -> None:
    found = convert_value(cell)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("cell", [math.inf, {"a": 1}, [["a"]], b"bytes", "\ud800"])
def test_cells_that_are_no_values_are_refused(cell: Any) -> None:
    with pytest.raises(UnusableError):
        convert_value(cell)
