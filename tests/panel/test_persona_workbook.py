"""Excel workbooks, written by openpyxl, become personas; what is wrong with one is named by sheet and cell."""

from __future__ import annotations

import datetime as dt
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from polypersona.cli.main import main
from polypersona.errors import MissingExtraError, PersonaError
from polypersona.panel.sources import Reading, load_panel, read_personas
from polypersona.recipe_sections import PanelRecipe

HEADER = ["caseid", "age", "area"]


def write(path: Path, *rows: list[Any], title: str = "People", **others: list[list[Any]]) -> str:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    for name, lines in others.items():
        other = book.create_sheet(name)
        for line in lines:
            other.append(line)
    book.save(path)
    return str(path)


def read(path: Path, *rows: list[Any], **options: Any) -> Reading:
    return read_personas(PanelRecipe(source=write(path, *rows), **options))


def patch(path: str, *changes: tuple[str, str], member: str = "xl/worksheets/sheet1.xml") -> str:
    """Rewrite a part of the workbook, as a spreadsheet program saves what openpyxl cannot write."""
    members = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    text = members[member].decode()
    for old, new in changes:
        assert old in text, text
        text = text.replace(old, new)
    members[member] = text.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def call(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["polypersona", "personas", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_cells_keep_their_kind_and_empty_ones_are_absent(tmp_path: Path) -> None:
    reading = read(
        tmp_path / "p.xlsx",
        ["id", "age", "height", "member", "born", "seen", "rises", "worked", "zip", "note", 2020],
        [1, 40, 1.82, True, dt.date(1984, 2, 29), dt.datetime.fromisoformat("2024-01-02T03:04"), dt.time(6, 30),
         dt.timedelta(hours=30), "00501", None, 3],
        [2, None, None, False, None, None, None, None, None, "  ", 4],
    )  # fmt: skip
    assert [p.persona_id for p in reading.personas] == ["1", "2"]
    assert reading.personas[0].attributes == {
        "age": 40, "height": 1.82, "member": True, "born": "1984-02-29", "seen": "2024-01-02T03:04:00",
        "rises": "06:30:00", "worked": "30:00:00", "zip": "00501", "2020": 3,
    }  # fmt: skip
    assert reading.personas[1].attributes == {"member": False, "2020": 4}
    assert reading.rejects == ()
    assert reading.notes == ()


def test_the_first_visible_sheet_that_holds_anything_is_read_and_the_others_named(tmp_path: Path) -> None:
    path = tmp_path / "p.xlsx"
    book = openpyxl.Workbook()
    book.active.title = "Hidden"
    book.active.append(["secret"])
    book.active.sheet_state = "hidden"
    book.create_sheet("Blank")
    people = book.create_sheet("People")
    people["A3"], people["B3"], people["A4"], people["B4"] = "id", "age", "x", 30
    book.create_sheet("Codes").append(["code", "label"])
    book.active = 1
    book.save(path)
    reading = read_personas(PanelRecipe(source=str(path)))
    assert [(p.persona_id, dict(p.attributes)) for p in reading.personas] == [("x", {"age": 30})]
    assert reading.notes == ("Sheet read: People; not read: Hidden, Blank, Codes",)


def test_rows_are_counted_as_the_sheet_shows_them(tmp_path: Path) -> None:
    reading = read(
        tmp_path / "p.xlsx", HEADER, ["a", 40, "city"], [], [None, 41, "city"], ["a", 42, "rural"], id="caseid"
    )
    assert [p.persona_id for p in reading.personas] == ["a"]
    assert [(r.row, r.field, r.reason) for r in reading.rejects] == [
        (4, "caseid", "the id is missing"),
        (5, "caseid", "the id 'a' occurs in row 2 already"),
    ]


def test_a_row_longer_than_the_header_is_kept_aside(tmp_path: Path) -> None:
    reading = read(tmp_path / "p.xlsx", HEADER, ["a", 40, "city", None, "?"], ["b", 41], id="caseid")
    assert [(p.persona_id, dict(p.attributes)) for p in reading.personas] == [("b", {"age": 41})]
    assert [(r.row, r.reason) for r in reading.rejects] == [(2, "the row has 5 cells, the header 3")]


def test_a_formula_counts_as_its_saved_value(tmp_path: Path) -> None:
    path = write(tmp_path / "p.xlsx", ["id", "age", "twice", "note"], ["a", 40, "=B2*2", '=IF(B2>50,"old","")'])
    with pytest.raises(PersonaError, match=r"sheet 'People', cell C2: the formula was never calculated"):
        read_personas(PanelRecipe(source=path))
    patch(path, ("<f>B2*2</f>", "<f>B2*2</f><v>80</v>"))
    with pytest.raises(PersonaError, match="cell D2: the formula was never calculated"):
        read_personas(PanelRecipe(source=path))
    patch(path, ('<c r="D2">', '<c r="D2" t="str">'))  # so it is saved where it gave an empty text
    (persona,) = read_personas(PanelRecipe(source=path)).personas
    assert persona.attributes == {"age": 40, "twice": 80}


def test_an_error_value_is_no_attribute(tmp_path: Path) -> None:
    rows = (HEADER, ["a", "#N/A", "city"], ["b", 41, "rural"])
    reading = read(tmp_path / "p.xlsx", *rows)
    assert [dict(p.attributes) for p in reading.personas] == [
        {"caseid": "a", "area": "city"},
        {"caseid": "b", "age": 41, "area": "rural"},
    ]
    assert reading.skipped == {"age": 1}
    mapped = read(tmp_path / "p.xlsx", *rows, mapping={"age": "age"})
    assert [(r.row, r.field, r.reason) for r in mapped.rejects] == [(2, "age", "the error value #N/A is no attribute")]


def test_a_wrong_size_in_the_file_hides_no_row(tmp_path: Path) -> None:
    path = patch(write(tmp_path / "p.xlsx", HEADER, ["a", 40, "city"]), ('ref="A1:C2"', 'ref="A1"'))
    assert len(read_personas(PanelRecipe(source=path)).personas) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no visible sheet has a header row"),
        ([["  "]], "no visible sheet has a header row"),
        ([["age", "age"], [1, 2]], "sheet 'People', row 1: the column 'age' occurs twice"),
        ([["id", None, "age"], [1, "?", 2]], "sheet 'People', cell B1: the column has values but no name"),
        ([["id", "#REF!"], [1, 2]], "cell B1: a column's name is expected, not the error value #REF!"),
        ([["id", "age"]], "holds no persona"),
    ],
)
def test_a_sheet_without_a_usable_header_is_one_named_error(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = tmp_path / "p.xlsx"
    with pytest.raises(PersonaError, match=message) as caught:
        read(path, *rows)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def test_an_empty_column_may_go_without_a_name(tmp_path: Path) -> None:
    (persona,) = read(tmp_path / "p.xlsx", ["id", None, "age"], [1, None, 2]).personas
    assert persona.attributes == {"age": 2}


def zipped(name: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, "<not xml")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an Excel workbook"),
        (b"id,age\n1,2\n", "not an Excel workbook: File is not a zip file"),
        (zipped("a.txt"), "not an Excel workbook"),
        (zipped("[Content_Types].xml"), "not an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "an encrypted workbook, or one of Excel before 2007"),
    ],
)
def test_a_file_that_is_no_workbook_is_one_sentence(
    tmp_path: Path, data: bytes, message: str, monkeypatch: Any, capsys: Any
) -> None:
    path = tmp_path / "p.xlsx"
    path.write_bytes(data)
    code, out, err = call(monkeypatch, capsys, "describe", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {path}: this is {message}")
    assert err.count("\n") == 2


def test_a_damaged_workbook_is_one_sentence(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "p.xlsx", HEADER, ["a", 40, "city"]))
    patch(str(path), ("<sheetData>", "<sheetData"))
    with pytest.raises(PersonaError, match="this is not an Excel workbook"):
        read_personas(PanelRecipe(source=str(path)))


def test_describe_reads_a_workbook(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    rows = [[number, 20 + number, "city" if number % 3 else "rural"] for number in range(1, 20)]
    path = write(tmp_path / "p.xlsx", HEADER, *rows, [20, "n/a", "city"], Codes=[["x"]])
    code, out, err = call(monkeypatch, capsys, "describe", path, "--id", "caseid")
    assert (code, err) == (0, "")
    assert f"20 personas, {path}" in out
    assert 'age: 1 of 20 values is not a number (row 21: "n/a"), so the attribute is not numeric' in out
    assert "Sheet read: People; not read: Codes" in out
    assert "city 70.0%, rural 30.0%" in out
    code, out, _ = call(monkeypatch, capsys, "describe", path, "--id", "caseid", "--json")
    content = json.loads(out)
    assert content["not_numbers"] == {"age": {"num_values": 20, "num_strays": 1, "row": 21, "value": "n/a"}}
    assert content["notes"] == ["Sheet read: People; not read: Codes"]


def test_the_source_hash_is_of_the_workbook(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.xlsx", HEADER, ["a", 40, "city"]))
    copy = tmp_path / "b.xlsx"
    copy.write_bytes(path.read_bytes())
    other = write(tmp_path / "c.xlsx", HEADER, ["a", 41, "city"])
    one, same, changed = (load_panel(PanelRecipe(source=str(p)), seed=1) for p in (path, copy, other))
    assert one.source_hash == same.source_hash != changed.source_hash
    assert one.personas == same.personas


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = write(tmp_path / "p.xlsx", HEADER, ["a", 40, "city"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"\.xlsx: .* the extra 'excel' \(openpyxl\), which is not installed"):
        read_personas(PanelRecipe(source=path))
    code, out, err = call(monkeypatch, capsys, "describe", path)
    assert (code, out) == (2, "")
    assert "pip install 'polypersona[excel]'" in err
    assert err.count("\n") == 2


def test_openpyxl_is_loaded_for_workbooks_only(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    monkeypatch.setitem(sys.modules, "pyreadstat", None)
    path = tmp_path / "p.csv"
    path.write_text("age\n40\n")
    assert len(read_personas(PanelRecipe(source=str(path))).personas) == 1
