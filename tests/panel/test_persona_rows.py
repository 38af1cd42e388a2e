"""Files of every format become rows; what cannot be read is kept aside with its place, or named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polypersona.errors import PersonaError
from polypersona.panel.sources import read_personas
from polypersona.recipe_sections import PanelRecipe

RECORDS = [{"id": "a", "age": 40, "area": "city"}, {"id": "b", "age": 51, "area": "rural"}]


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(records: list[dict[str, object]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", lines(*RECORDS)),
        ("p.ndjson", "\n" + lines(*RECORDS).replace("\n", "\r\n")),
        ("bom.jsonl", "\ufeff" + lines(*RECORDS)),
        ("p.json", json.dumps(RECORDS, indent=2)),
        ("data.json", json.dumps({"data": RECORDS})),
        ("lines.json", lines(*RECORDS)),
        ("nested.jsonl", lines(*({"id": r["id"], "persona": {**r, "id": r["id"]}} for r in RECORDS))),
        (
            "own.jsonl",
            lines(*({"persona_id": r["id"], "attributes": {"age": r["age"], "area": r["area"]}} for r in RECORDS)),
        ),
        ("p.csv", "id,age,area\na,40,city\n\nb,51,rural\n"),
        ("bom.csv", "\ufeffid,age,area\r\na,40,city\r\nb,51,rural\r\n"),
        ("p.tsv", "id\tage\tarea\na\t40\tcity\nb\t51\trural\n"),
        ("P.PARQUET", parquet(RECORDS)),
    ],
)
def test_every_format_gives_the_same_personas(tmp_path: Path, name: str, content: str | bytes) -> None:
    reading = read_personas(PanelRecipe(source=write(tmp_path, name, content)))
    assert [p.persona_id for p in reading.personas] == ["a", "b"]
    assert [dict(p.attributes) for p in reading.personas] == [
        {"age": 40, "area": "city"},
        {"age": 51, "area": "rural"},
    ]
    assert reading.rejects == ()


def test_a_url_is_read_like_a_path(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "with space.jsonl", lines(*RECORDS)))
    assert len(read_personas(PanelRecipe(source=path.as_uri())).personas) == 2
    with pytest.raises(PersonaError, match="There is no persona file"):
        read_personas(PanelRecipe(source=path.as_uri() + "x.jsonl"))
    with pytest.raises(PersonaError, match="cannot be read"):
        read_personas(PanelRecipe(source="nowhere://bucket/p.jsonl"))


def test_bad_lines_are_kept_aside_with_line_and_reason(tmp_path: Path) -> None:
    good = lines(RECORDS[0]).encode()
    content = (
        good + b'{"id": "x"\n\n[1, 2]\n\xff\xfe\n"text"\nnull\n' + b"[" * 100_000 + b"\n" + lines(RECORDS[1]).encode()
    )
    location = write(tmp_path, "p.jsonl", content)
    reading = read_personas(PanelRecipe(source=location))
    assert [p.persona_id for p in reading.personas] == ["a", "b"]
    assert {reject.file for reject in reading.rejects} == {location}
    assert [(reject.row, reject.reason[:32]) for reject in reading.rejects] == [
        (2, "the line is not valid JSON: Expe"),
        (4, "a record is an object, not a lis"),
        (5, "the line is not UTF-8"),
        (6, "a record is an object, not a tex"),
        (7, "a record is an object, not null"),
        (8, "the line is not valid JSON: nest"),
    ]


def test_bad_csv_rows_are_kept_aside_with_their_line(tmp_path: Path) -> None:
    content = 'id,age,bio\na,40,"two\nlines"\nb,51\nc,52,x,y\nd,"5"3,x\ne,54,"open\n'
    reading = read_personas(PanelRecipe(source=write(tmp_path, "p.csv", content)))
    assert [p.persona_id for p in reading.personas] == ["a"]
    assert reading.personas[0].attributes == {"age": 40, "bio": "two\nlines"}
    assert [(reject.row, reject.reason.split(":")[0]) for reject in reading.rejects] == [
        (4, "the row has 2 cells, the header 3"),
        (5, "the row has 4 cells, the header 3"),
        (6, "the line is not valid CSV"),
        (7, "the line is not valid CSV"),
    ]


def test_columns_without_a_name_are_not_read(tmp_path: Path) -> None:
    location = write(tmp_path, "p.csv", ",age\n0,40\n1,41\n")
    assert [p.attributes for p in read_personas(PanelRecipe(source=location)).personas] == [{"age": 40}, {"age": 41}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", '[{"age": 3},\n {"age": }]', r"p\.json, line 2: this is not valid JSON"),
        ("p.json", '{"people": []}', "a list of records"),
        ("p.json", "3", "a list of records"),
        ("p.json", b"\xff[]", "line 1: this is not UTF-8"),
        ("p.json", "[]", "holds no persona"),
        ("p.jsonl", "", "holds no persona"),
        ("p.jsonl", "{\n}\n", r"all 2 rows were kept aside, the first \(row 1\)"),
        ("p.csv", "", "holds no persona"),
        ("p.csv", "age,area\n", "holds no persona"),
        ("p.csv", "age,age\n1,2\n", "line 1: the column 'age' occurs twice"),
        ("p.csv", "age;area\n1;2\n", "the header is one column"),
        ("p.csv", b"age\n1\n\xe9\n", "line 3: this is not UTF-8"),
        ("p.parquet", b"PAR1 no", "not a Parquet file"),
        ("p.xls", b"", r"ends in \.jsonl, .*, not '\.xls'"),
        ("p", b"", "not ''"),
    ],
)
def test_a_file_that_gives_no_persona_is_one_named_error(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    location = write(tmp_path, name, content)
    with pytest.raises(PersonaError, match=message) as caught:
        read_personas(PanelRecipe(source=location))
    assert caught.value.message.startswith(location)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_missing_file_and_a_folder_are_named_errors(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="There is no persona file"):
        read_personas(PanelRecipe(source=str(tmp_path / "none.jsonl")))
    with pytest.raises(PersonaError, match="cannot be read"):
        read_personas(PanelRecipe(source=str(tmp_path)))
