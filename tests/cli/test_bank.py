"""The bank commands, through the command line's own entry point."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from polypersona.cli.main import main
from polypersona.resources import resource


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `polypersona bank …` and return exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polypersona", "bank", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_check_counts_the_shipped_bank(bank):
    assert bank("check") == (0, "OK: 82 items in 10 domains (26 likert, 35 open, 15 yesno, 6 agreement).\n", "")


def test_check_takes_single_files(bank):
    folder = resource("questionbank")
    code, out, _ = bank("check", str(folder / "finance.json"), str(folder / "healthcare.json"))
    assert (code, out.split("(")[0]) == (0, "OK: 17 items in 2 domains ")


def test_one_problem_is_one_sentence_and_a_hint(bank, tmp_path: Path):
    data = json.loads((resource("questionbank") / "finance.json").read_text())
    del data["items"]["likert"][1]["options"]
    file = tmp_path / "finance.json"
    file.write_text(json.dumps(data))
    code, out, err = bank("check", str(file))
    assert (code, out) == (2, "")
    assert err == (
        f"Error: {file}, item 'finance.likert.02', field 'options': the field is missing.\n"
        "Add the options, low to high, or move the item to `open`.\n"
    )


def test_several_problems_are_all_listed_and_the_exit_code_is_2(bank, tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    code, out, err = bank("check", str(tmp_path), str(tmp_path / "b.json"))
    assert (code, out) == (2, "")
    assert [line for line in ("a.json", "b.json", "found 2 problems in 2 file(s)") if line not in err] == []
    assert "Traceback" not in err


def test_check_speaks_json(bank, tmp_path: Path):
    code, out, _ = bank("check", "--json")
    assert code == 0
    assert json.loads(out)["items_by_type"] == {"likert": 26, "open": 35, "yesno": 15, "agreement": 6}
    code, out, _ = bank("check", "--json", str(tmp_path / "none.json"))
    found = json.loads(out)
    assert (code, found["is_valid"], found["problems"][0]["file"]) == (2, False, str(tmp_path / "none.json"))


def test_list_filters_by_domain_and_type(bank):
    code, out, _ = bank("list", "--domain", "finance", "--type", "likert")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["finance.likert.01", "finance.likert.02"]
    assert "(reverse)" in out.splitlines()[1]
    assert len(bank("list")[1].splitlines()) == 82


def test_list_and_show_speak_json(bank):
    rows = json.loads(bank("list", "--type", "agreement", "--json")[1])
    assert len(rows) == 6
    row = json.loads(bank("show", rows[0]["item_id"], "--json")[1])
    assert row == rows[0]
    assert row["codes"] == [1, 2, 3, 4, 5]


def test_show_prints_options_with_their_codes(bank):
    code, out, _ = bank("show", "healthcare.likert.02")
    assert code == 0
    lines = {line.split(maxsplit=1)[0]: line for line in out.splitlines()}
    assert lines["reverse"].endswith("true")
    assert "option 5       Strongly agree" in out
    assert "HCAHPS" in lines["source"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "healthcare.likert.2"), "Did you mean 'healthcare.likert.02'?"),
        (("list", "--domain", "finanse"), "Did you mean 'finance'?"),
        (("list", "--type", "numeric"), "numeric"),
        (("list", "--bank", "nowhere.json"), "nowhere.json: there is no such file."),
    ],
)
def test_a_mistake_exits_2_and_names_what_is_near(bank, arguments: tuple[str, ...], words: str):
    code, out, err = bank(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_bank_commands_read_banks_of_other_places(bank):
    file = str(resource("questionbank") / "lifestyle.json")
    assert len(bank("list", "--bank", file)[1].splitlines()) == 8
    assert bank("show", "--bank", file, "lifestyle.open.01")[0] == 0
