"""The commands `models` and `doctor`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from polypersona.cli import info
from polypersona.models.catalogue import BASE_MODELS


def test_models_lists_the_catalogue_for_people_and_programs() -> None:
    text = CliRunner().invoke(info.models_command).output
    rows = json.loads(CliRunner().invoke(info.models_command, ["--json"]).output)
    assert [row["model_id"] for row in rows] == list(BASE_MODELS)
    assert all(row["model_id"] in text and row["license"] in text for row in rows)
    phi = next(row for row in rows if row["model_id"] == "microsoft/phi-2")
    assert phi["lora_targets"] == ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    assert phi["bf16_weights_gb"] == 5.6


def test_doctor_reports_this_machine() -> None:
    result = CliRunner().invoke(info.doctor_command, ["--json"])
    report = json.loads(result.output)
    assert report["cpus"] >= 1
    assert report["versions"]["ray"].startswith("2.")
    assert result.exit_code == (1 if report["problems"] else 0)


def test_doctor_names_what_is_missing_and_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "library_versions", lambda: {"torch": "2.0", "peft": "not installed"})
    result = CliRunner().invoke(info.doctor_command)
    assert result.exit_code == 1
    assert "Problem: peft is not installed." in result.stderr
