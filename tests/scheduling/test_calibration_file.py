"""pytest tests/scheduling/test_calibration_file.py"""

import json
from dataclasses import replace

import pytest

from polypersona.errors import StorageError
from polypersona.scheduling.calibration import Calibration, Figures, load_calibrations, save_calibration
from polypersona.scheduling.record_file import key_of

FIGURES = Figures(2, 300, 20.0, 15.0, 6000, 4500, 900, 3.0, 1 << 29, None)
RECORD = Calibration("2026-01-02", "a CPU", {"dtype": "bf16", "slots": 8}, FIGURES, {"torch": "2"}, ("a note",))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "polypersona"


def test_rates_are_one_actors():
    assert FIGURES.rates() == {
        "rows_per_s": 15.0,
        "rows_per_cpu_s": 20.0,
        "prompt_tokens_per_s": 300.0,
        "new_tokens_per_s": 45.0,
        "reused_share": 0.75,
    }


def test_what_was_not_measured_has_no_rate():
    rates = replace(FIGURES, cpu_s=None, prompt_tokens=0, reused_prompt_tokens=0).rates()
    assert rates["rows_per_cpu_s"] is None
    assert rates["reused_share"] is None


def test_nothing_is_known_before_the_first_record():
    assert load_calibrations() == {}


def test_a_record_comes_back_as_it_was_kept(folder):
    path = save_calibration(RECORD)
    assert path == str(folder / "calibration.json")
    assert load_calibrations() == {key_of(RECORD.parts): RECORD}
    assert json.loads((folder / "calibration.json").read_text())["synthetic"] is True
    assert [file.name for file in folder.iterdir()] == ["calibration.json"]


def test_a_record_replaces_the_one_for_the_same_parts_and_no_other():
    other = replace(RECORD, parts={"dtype": "fp32", "slots": 8})
    for record in (RECORD, other, replace(RECORD, date="2026-02-03")):
        save_calibration(record)
    records = load_calibrations()
    assert len(records) == 2
    assert records[key_of(RECORD.parts)].date == "2026-02-03"
    assert records[key_of(other.parts)] == other


def damaged(change):
    save_calibration(RECORD)
    content = json.loads(json.dumps({"format": 1, "calibrations": {"k": RECORD.as_json()}}))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "text",
    [
        lambda: "",
        lambda: "{",
        lambda: "[]",
        lambda: "\udcff\udcfe",
        lambda: damaged(lambda content: content.update(format=2)),
        lambda: damaged(lambda content: content["calibrations"].update(k=3)),
        lambda: damaged(lambda content: content["calibrations"]["k"]["figures"].pop("rows")),
        lambda: damaged(lambda content: content["calibrations"]["k"]["figures"].update(seconds=0)),
        lambda: damaged(lambda content: content["calibrations"]["k"]["figures"].update(rows="many")),
        lambda: damaged(lambda content: content["calibrations"]["k"].pop("date")),
    ],
)
def test_a_damaged_file_is_one_sentence_and_is_not_written_over(folder, text):
    content = text().encode("utf-8", "surrogateescape")
    folder.mkdir(exist_ok=True)
    (folder / "calibration.json").write_bytes(content)
    for touch in (load_calibrations, lambda: save_calibration(RECORD)):
        with pytest.raises(StorageError, match=r"calibration\.json is damaged: ") as caught:
            touch()
        assert caught.value.message.count(". ") <= 1
        assert "Delete it" in caught.value.hint
    assert (folder / "calibration.json").read_bytes() == content
