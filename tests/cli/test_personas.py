"""The `personas` commands, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polypersona.cli.main import main
from polypersona.panel.sampler import sample_personas
from polypersona.panel.sources import read_personas
from polypersona.recipe_sections import PanelRecipe


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["polypersona", "personas", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


PEOPLE = "caseid,AGE,WRK,w,junk\n1,40,FT,1.5,x\n2,9,RET,1,y\n2,50,FT,1,z\n3,,,0,x\n"


def test_sample_writes_synthetic_rows_that_load_again(run, tmp_path: Path) -> None:
    code, out, _ = run("sample", "--size", "30", "--seed", "5", "--out", "panel.jsonl")
    assert code == 0
    assert "30 synthetic personas" in out
    assert read_personas(PanelRecipe(source=str(tmp_path / "panel.jsonl"))).personas == sample_personas(30, 5)


def test_sample_prints_to_standard_output(run) -> None:
    code, out, _ = run("sample", "--size", "3", "--seed", "5")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["persona_id"] for row in rows] == [persona.persona_id for persona in sample_personas(3, 5)]
    assert all(row["synthetic"] is True for row in rows)


def test_import_writes_personas_and_reports_the_rest(run, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text(PEOPLE)
    arguments = ("import", "people.csv", "--id", "caseid", "--map", "age=AGE", "--map", "work=WRK", "--weight", "w")
    code, out, _ = run(*arguments, "--out", "out/panel.jsonl")
    assert code == 0
    assert "Kept aside: 2 rows" in out
    assert "people.csv, row 4, 'caseid': the id '2' occurs in row 3 already" in out
    assert "Columns not taken: junk" in out
    assert "2 personas in out/panel.jsonl" in out
    rows = [json.loads(line) for line in (tmp_path / "out/panel.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "persona_id": "1",
        "attributes": {"age": 40, "work": "FT"},
        "text": "",
        "weight": 1.5,
        "source": "people.csv",
    }
    code, out, _ = run(*arguments, "--out", "again.jsonl", "--json")
    report = json.loads(out)
    assert [reject["row"] for reject in report["rejects"]] == [4, 5]
    assert report["num_personas"] == 2
    assert report["unused"] == ["junk"]


def test_import_takes_a_recipe_for_recoded_values(run, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text(PEOPLE)
    (tmp_path / "r.yaml").write_text(
        "name: r\npanel:\n  source: people.csv\n  mapping:\n    work: {column: WRK, values: {FT: full time}}\n"
    )
    code, out, _ = run("import", "r.yaml", "--out", "panel.jsonl")
    assert code == 0
    assert "Not in the recoding of work, kept as they are: 'RET' (1)" in out
    assert json.loads((tmp_path / "panel.jsonl").read_text().splitlines()[0])["attributes"] == {"work": "full time"}


def test_describe_shows_composition_duplicates_and_contradictions(run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        "".join(
            json.dumps({"age": age, "work": "retired", "area": "[red]city", "a": 1, "b": 2}) + "\n" for age in (9, 70)
        )
    )
    code, out, _ = run("describe", "p.jsonl")
    assert code == 0
    assert "9 to 70" in out
    assert "[red]city 100.0%" in out
    assert "cards that differ in one attribute: 1 groups" in out
    assert "retired under 40 (age 9, work 'retired')" in out
    code, out, _ = run("describe", "p.jsonl", "--json")
    report = json.loads(out)
    assert report["duplicates"]["num_personas"] == 2
    assert report["contradictions"][0]["rule"] == "retired under 40"
    assert report["synthetic"] is False


def test_describe_of_the_sampler_says_synthetic(run) -> None:
    code, out, _ = run("describe", "sampled", "--size", "50")
    assert code == 0
    assert out.startswith("50 synthetic personas, sampled with seed 7")
    assert "Contradictions: 0" in out
    code, out, _ = run("describe", "sampled", "--json")
    assert json.loads(out)["num_personas"] == 433
    assert json.loads(out)["synthetic"] is True


def test_describe_reads_the_general_social_survey(run, test_data: Path) -> None:
    code, out, _ = run("describe", str(test_data / "gss_agents/gss_agents.jsonl"), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["num_personas"] == 3505
    sex = next(row for row in report["composition"] if row["attribute"] == "sex")
    assert sex["counts"] == {"Female": 1882, "Male": 1623}
    assert {found["rule"] for found in report["contradictions"]} == {"retired under 40"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("describe", "none.jsonl"), "There is no persona file 'none.jsonl'"),
        (("describe", "empty.jsonl"), "empty.jsonl holds no persona"),
        (("describe", "p.jsonl", "--map", "age=agee"), "Did you mean 'age'?"),
        (("describe", "p.jsonl", "--map", "age"), "is not ATTRIBUTE=COLUMN"),
        (("describe", "p.jsonl", "--map", "a=age", "--map", "a=age"), "twice"),
        (("describe", "p.jsonl", "--seed", "3"), "--seed is for a sampled panel"),
        (("describe", "p.jsonl", "--size", "2"), "panel.size asks for 2"),
        (("describe", "sampled", "--id", "x"), "A sampled panel has no columns"),
        (("describe", "r.yaml", "--size", "3"), "without further options"),
        (("describe", "hub.jsonl"), "CC BY-NC-SA 4.0"),
        (("import", "sampled", "--out", "x.jsonl"), "is not imported"),
        (("import", "p.jsonl", "--out", "p.jsonl"), "names the source itself"),
        (("import", "p.jsonl", "--out", "x.csv"), "end its name in .jsonl"),
        (("sample", "--size", "0"), "0 is not in the range"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_2(
    run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"age": 3}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "hub.jsonl").write_text('{"persona": "A sailor."}\n')
    (tmp_path / "r.yaml").write_text("name: r\npanel: {size: 3}\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_help_has_an_example_for_each_command(run) -> None:
    for arguments in ((), ("sample",), ("import",), ("describe",)):
        code, out, _ = run(*arguments, "--help")
        assert code == 0
        assert "Example: polypersona personas" in " ".join(out.split())


def test_a_secret_in_a_url_is_not_printed(run, tmp_path: Path) -> None:
    secret = "nowhere://KEY:SECRET@bucket/p"
    for arguments in (
        ("describe", f"{secret}.csv"),
        ("describe", f"{secret}.csv", "--seed", "3"),
        ("import", f"{secret}.csv", "--out", "p.jsonl"),
        ("import", f"{secret}.csv", "--out", f"{secret}.csv"),
        ("sample", "--size", "3", "--out", f"{secret}.jsonl"),
        ("sample", "--size", "3", "--out", f"{secret}.csv"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert "KEY" not in out + err
        assert "SECRET" not in out + err
