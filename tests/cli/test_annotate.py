"""The annotate command: its real server in its own process, and the table of results."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from annotated_runs import annotated_run, rate_all, write_humans

from polypersona.annotation.store import load_rater
from polypersona.cli.main import main


@pytest.fixture
def annotate(monkeypatch, capsys):
    """Run `polypersona annotate …` and return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["polypersona", "annotate", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def judged(entry):
    return (4, 5 if entry.kind == "model" else 2, "human" if entry.kind == "human" else "synthetic")


def test_the_command_serves_the_page_until_it_is_interrupted_and_keeps_every_rating(tmp_path):
    run = annotated_run(tmp_path)
    command = [sys.executable, "-m", "polypersona", "annotate", run.location, "--sample", "5", "--rater", "Anna",
               "--no-browser"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "anna has rated 0 of 5 answers.\n"
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/[\w-]+/", process.stdout.readline())
        with urllib.request.urlopen(f"{url}api/session", timeout=30) as reply:
            entry = json.load(reply)["entries"][0]["id"]
        rating = {"entry": entry, "realism": 3, "consistency": 2, "guess": "human"}
        request = urllib.request.Request(
            f"{url}api/ratings", json.dumps(rating).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply) == {"num_rated": 1}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert "1 of 5 answers are rated" in out
    assert set(load_rater(run, "anna").ratings) == {entry}


def test_results_are_a_table_and_json_with_the_same_figures(annotate, tmp_path):
    run, human = annotated_run(tmp_path), write_humans(tmp_path)
    for rater in ("anna", "bo"):
        rate_all(run, 36, rater, judged, human)
    code, out, err = annotate(run.location, "--results")
    assert (code, err) == (0, "")
    assert "(synthetic), 36 answers; rated by anna 36, bo 36" in out
    assert re.search(r"Persona consistency: conditioning gain +model − shuffled +3\.00 +\[3\.00, 3\.00\] +48\n", out)
    assert re.search(r"Taken for synthetic +human +0% +\[0%, \d+%\] +24\n", out)
    code, out, _ = annotate(run.location, "--results", "--json")
    content = json.loads(out)
    assert (code, content["synthetic"], content["rated"]) == (0, True, {"anna": 36, "bo": 36})
    (gain,) = (row for row in content["scores"] if row["name"] == "conditioning_gain_consistency")
    assert (gain["value"], gain["n"]) == (3.0, 48)


def test_what_is_undefined_is_shown_as_such_and_a_cut_off_line_is_mentioned(annotate, tmp_path):
    run = annotated_run(tmp_path)
    rate_all(run, 6, "anna", judged)
    path = run.local_path("annotations/anna.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    code, out, _ = annotate(run.location, "--results")
    assert code == 0
    assert re.search(r"Agreement on realism \(ordinal alpha\) +all +n/a +n/a +0\n", out)
    assert "note: 1 cut-off lines of anna are left out." in out
    assert "Without human answers (--human)" in out
    assert json.loads(annotate(run.location, "--results", "--json")[1])["scores"][-1]["value"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results"], "Nothing was rated"),
        (["--json"], "--json goes with --results"),
        (["--rater", "../x"], "A rater cannot be called '../x'"),
        (["--human", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--sample", "0"], "--sample"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(annotate, tmp_path, options, message):
    run = annotated_run(tmp_path)
    code, out, err = annotate(run.location, "--no-browser", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not run.names("annotations")


def test_a_place_without_a_run_is_named(annotate, tmp_path):
    code, _, err = annotate(tmp_path / "none", "--no-browser")
    assert code == 2
    assert "There are no responses in" in err
