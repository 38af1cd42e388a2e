"""SPSS files, written by pyreadstat, become personas with labelled values; a missing value is an absent attribute."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyreadstat
import pytest

from polypersona.cli.main import main
from polypersona.errors import MissingExtraError, PersonaError
from polypersona.panel.sources import load_panel, read_personas
from polypersona.recipe_sections import PanelRecipe

NAN = float("nan")
PEOPLE = pd.DataFrame(
    {
        "id": [1.0, 2.0, 3.0],
        "age": [40.0, NAN, 999.0],
        "sex": [1.0, 2.0, 9.0],
        "trust": [0.0, 7.0, 10.0],
        "income": [1.5, 2.0, NAN],
        "region": ["N", "S", "X"],
        "town": ["  Ulm ", "", "Bonn"],
        "born": [dt.date(1984, 2, 29), None, dt.date(2001, 1, 1)],
        "w": [0.5, 1.5, 1.0],
    }
)
LABELS = {
    "sex": {1: "male", 2: "female", 9: "refused"},
    "trust": {0: "no trust", 10: "full trust"},
    "region": {"N": "north", "S": "south", "X": "not known"},
    "age": {999: "no answer"},
}
MISSING = {"sex": [9], "age": [{"lo": 900, "hi": 999}], "region": ["X"]}


def write(path: Path, frame: pd.DataFrame = PEOPLE, **options: Any) -> str:
    options = {"variable_value_labels": LABELS, "missing_ranges": MISSING, **options}
    pyreadstat.write_sav(frame, str(path), column_labels=[f"Label of {name}" for name in frame], **options)
    return str(path)


def call(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["polypersona", "personas", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(("name", "is_compressed"), [("p.sav", False), ("P.SAV", False), ("p.zsav", True)])
def test_labels_become_values_and_missing_ones_are_absent(tmp_path: Path, name: str, is_compressed: bool) -> None:
    reading = read_personas(PanelRecipe(source=write(tmp_path / name, compress=is_compressed), weight="w"))
    assert [(p.persona_id, p.weight, dict(p.attributes)) for p in reading.personas] == [
        ("1", 0.5, {"age": 40, "sex": "male", "trust": "no trust", "income": 1.5, "region": "north", "town": "Ulm",
                    "born": "1984-02-29"}),
        ("2", 1.5, {"sex": "female", "trust": 7, "income": 2.0, "region": "south"}),
        ("3", 1.0, {"trust": "full trust", "town": "Bonn", "born": "2001-01-01"}),
    ]  # fmt: skip
    assert isinstance(reading.personas[0].attributes["age"], int)
    assert isinstance(reading.personas[1].attributes["income"], float)
    assert reading.rejects == ()


def test_a_mapping_names_variables_and_recodes_labels(tmp_path: Path) -> None:
    panel = PanelRecipe(
        source=write(tmp_path / "p.sav"),
        id="id",
        mapping={"gender": {"column": "sex", "values": {"male": "man", "female": "woman"}}, "area": "region"},
    )
    reading = read_personas(panel)
    assert [dict(p.attributes) for p in reading.personas] == [
        {"gender": "man", "area": "north"},
        {"gender": "woman", "area": "south"},
    ]
    assert [(r.row, r.reason) for r in reading.rejects] == [(3, "the row has neither an attribute nor a text")]
    with pytest.raises(PersonaError, match=r"names the column 'sexx'.* Did you mean 'sex'"):
        read_personas(PanelRecipe(source=panel.source, mapping={"gender": "sexx"}))


def test_a_case_that_does_not_fit_is_kept_aside_with_its_number_and_field(tmp_path: Path) -> None:
    frame = PEOPLE.assign(w=[1.0, 0.0, NAN])
    reading = read_personas(PanelRecipe(source=write(tmp_path / "p.sav", frame), weight="w"))
    assert [(r.row, r.field) for r in reading.rejects] == [(2, "w"), (3, "w")]
    assert "a weight is a finite number above 0, not 0" in reading.rejects[0].reason


def test_describe_reads_an_spss_file(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = write(tmp_path / "p.sav")
    code, out, err = call(monkeypatch, capsys, "describe", path, "--weight", "w")
    assert (code, err) == (0, "")
    assert f"3 personas, {path}" in out
    assert "female 50.0%, male 50.0%" in out
    assert "1.5 to 2, median 1.75" in out
    assert "Label of" not in out


@pytest.mark.parametrize("kept", [0, 10, 500, -40])
def test_a_file_that_is_no_spss_file_or_cut_short_is_one_sentence(
    tmp_path: Path, kept: int, monkeypatch: Any, capsys: Any
) -> None:
    path = Path(write(tmp_path / "p.sav"))
    path.write_bytes(path.read_bytes()[:kept])
    code, out, err = call(monkeypatch, capsys, "describe", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {path}: this is not an SPSS file, or a damaged one: ")
    assert err.count("\n") == 2


def test_a_file_of_another_format_is_no_spss_file(tmp_path: Path) -> None:
    path = tmp_path / "p.sav"
    path.write_text("id,age\n1,40\n" * 50)
    with pytest.raises(PersonaError, match="this is not an SPSS file"):
        read_personas(PanelRecipe(source=str(path)))


def test_a_file_without_cases_holds_no_persona(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="holds no persona"):
        read_personas(PanelRecipe(source=write(tmp_path / "p.sav", PEOPLE.iloc[:0])))


def test_the_source_hash_is_of_the_file(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.sav"))
    copy = tmp_path / "b.sav"
    copy.write_bytes(path.read_bytes())
    other = write(tmp_path / "c.sav", PEOPLE.assign(age=[41.0, NAN, 999.0]))
    one, same, changed = (load_panel(PanelRecipe(source=str(p)), seed=1) for p in (path, copy, other))
    assert one.source_hash == same.source_hash != changed.source_hash


def test_without_pyreadstat_the_extra_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = write(tmp_path / "p.sav")
    monkeypatch.setitem(sys.modules, "pyreadstat", None)
    with pytest.raises(MissingExtraError, match=r"\.sav: .* the extra 'spss' \(pyreadstat\), which is not installed"):
        read_personas(PanelRecipe(source=path))
    code, out, err = call(monkeypatch, capsys, "describe", path)
    assert (code, out) == (2, "")
    assert "pip install 'polypersona[spss]'" in err
    assert err.count("\n") == 2
