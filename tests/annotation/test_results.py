"""From ratings to figures."""

import math

import pytest
from annotated_runs import annotated_run, rate_all, write_humans

from polypersona.annotation.results import annotation_scores
from polypersona.annotation.session import open_session
from polypersona.errors import StorageError


def found(run):
    return {(row["name"], row["kind"]): row for row in annotation_scores(run)}


def by_kind(entry):
    return {"model": (4, 5, "synthetic"), "shuffled": (4, 2, "synthetic"), "human": (5, 4, "human")}[entry.kind]


def test_raters_who_see_through_everything_give_its_figures(tmp_path):
    run, human = annotated_run(tmp_path), write_humans(tmp_path)
    for rater in ("anna", "bo"):
        rate_all(run, 36, rater, by_kind, human)
    rows = found(run)
    assert rows["realism", "human"]["value"] == 5.0
    assert rows["consistency", "model"]["n"] == 24
    gain = rows["conditioning_gain_consistency", "model − shuffled"]
    assert (gain["value"], gain["low"], gain["high"], gain["n"]) == (3.0, 3.0, 3.0, 48)
    assert rows["conditioning_gain_realism", "model − shuffled"]["value"] == 0.0
    assert rows["detection_rate", "model"]["value"] == 1.0
    assert 0.7 < rows["detection_rate", "model"]["low"] < 1.0
    assert rows["false_alarm_rate", "human"]["value"] == 0.0
    assert rows["discrimination", "model − human"]["value"] == 1.0
    assert [rows[f"alpha_{name}", "all"]["value"] for name in ("realism", "consistency", "guess")] == [1.0, 1.0, 1.0]
    assert rows["alpha_guess", "all"]["n"] == 36
    assert all(set(row) == {"name", "kind", "value", "n", "low", "high"} for row in annotation_scores(run))


def test_raters_who_see_nothing_give_a_gain_of_nothing(tmp_path):
    run = annotated_run(tmp_path)
    rate_all(
        run, 100, "anna", lambda entry: (1 + int(entry.entry_id, 16) % 5, 1 + int(entry.entry_id[3:], 16) % 5, "human")
    )
    rows = found(run)
    gain = rows["conditioning_gain_consistency", "model − shuffled"]
    assert gain["low"] < 0 < gain["high"]
    assert rows["detection_rate", "model"]["value"] == 0.0
    assert ("discrimination", "model − human") not in rows
    alone = rows["alpha_realism", "all"]
    assert (math.isnan(alone["value"]), alone["n"]) == (True, 0)


def test_nothing_rated_is_said(tmp_path):
    run = annotated_run(tmp_path)
    open_session(run, 5, "anna")
    with pytest.raises(StorageError, match="Nothing was rated"):
        annotation_scores(run)
