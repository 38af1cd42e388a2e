"""The compare command, through the command line's own entry point."""

from __future__ import annotations

import json
import sys

import pytest
from survey.human_runs import write_csv, write_json, write_run

from polypersona.cli.main import main
from polypersona.records import Persona
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import load_codebook

pytest_plugins = ["survey.conftest"]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `polypersona compare …` and return exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polypersona", "compare", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path, book):
    """A run whose personas all say the same, the humans who do not, and their codebook."""
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = [
        [f"h{place}", 1, 20 + place, "fm"[place % 2], "123"[place % 3], "12"[place % 2] if place % 3 == 2 else "",
         1 - 2 * (place % 2), 1 - 2 * (place % 5 == 0)]
        for place in range(60)
    ]  # fmt: skip
    human = write_csv(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    personas = [Persona(f"h{place}", {"sex": "fm"[place % 2]}) for place in range(60)]
    items = codebook_items(load_codebook(codebook))
    answers = {(one.persona_id, item.item_id, 1, 1): item.codes[0] for one in personas for item in items}
    return write_run(tmp_path, codebook, personas, items, answers), human, codebook


def test_it_says_alarm_source_scores_floors_and_where_the_rest_is(compare, files):
    run, human, codebook = files
    code, out, _ = compare(run.location, "--human", human, "--codebook", codebook, "--by", "sex")
    assert code == 0
    assert "(synthetic) beside 60 people, effective n 60" in out
    assert "Source: made up, CC0" in out
    assert "ALARM: Variance collapse on q1" in out
    for word in ("Total variation", "uniform", "split-half", "sex: f", "Person by person", "demographic back-off"):
        assert word in out
    assert out.rstrip().endswith("scores/human.json")


def test_json_is_for_a_program_to_read(compare, files):
    run, human, codebook = files
    code, out, _ = compare(run.location, "--human", human, "--codebook", codebook, "--json")
    content = json.loads(out)
    assert code == 0
    assert content["synthetic"] is True
    assert content["human"]["respondents"] == 60
    assert content["items"]["shared"] == ["q1", "q2", "q3_1", "q3_2"]
    assert "tables" not in content


def test_tables_are_written_as_csv_with_their_source(compare, files, tmp_path):
    run, human, codebook = files
    code, _, _ = compare(run.location, "--human", human, "--codebook", codebook, "--csv", tmp_path / "tables")
    assert code == 0
    assert {"human_scores.csv", "human_shares.csv", "SOURCE.txt"} <= {
        path.name for path in (tmp_path / "tables").iterdir()
    }


def test_respondents_become_a_panel_without_any_run(compare, files, tmp_path):
    _, human, codebook = files
    panel = tmp_path / "people.jsonl"
    code, out, _ = compare("--human", human, "--codebook", codebook, "--personas", panel)
    assert (code, out) == (0, f"60 personas in {panel}\n")
    first = json.loads(panel.read_text(encoding="utf-8").splitlines()[0])
    assert (first["persona_id"], first["attributes"], first["source"]) == (
        "h0",
        {"age": 20, "sex": "f"},
        "made up, CC0",
    )


def test_a_wrong_codebook_is_named_by_item_and_exits_2(compare, files, book, tmp_path):
    run, human, _ = files
    book["items"]["q1"]["options"] = {"1": "Agree", "2": "Neither"}
    book["items"]["q2"]["asked_if"] = {"q1": [7]}
    book["items"]["q9"] = book["items"]["q2"] | {"asked_if": {}}
    code, _, err = compare(run.location, "--human", human, "--codebook", write_json(tmp_path / "wrong.json", book))
    assert code == 2
    assert "'q1': the data hold '3' (20 times)" in err
    assert "'q2': `asked_if` names the code 7" in err
    assert "'q9': the data have no column 'q9'" in err
    assert "Traceback" not in err


def test_an_unknown_demographic_exits_2_with_the_nearest(compare, files):
    run, human, codebook = files
    code, _, err = compare(run.location, "--human", human, "--codebook", codebook, "--by", "sexe")
    assert code == 2
    assert "Did you mean 'sex'?" in err


def test_neither_run_nor_panel_is_a_mistake(compare, files):
    _, human, codebook = files
    code, _, err = compare("--human", human, "--codebook", codebook)
    assert code == 2
    assert "Name the RUN" in err


def test_a_panel_is_read_from_what_it_wrote(compare, files, tmp_path):
    run, human, codebook = files
    compare(run.location, "--human", human, "--codebook", codebook)
    assert run.read_json("scores/human.json")["run"] == run.path()
