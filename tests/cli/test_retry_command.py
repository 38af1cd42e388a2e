"""pytest tests/cli/test_retry_command.py"""

import json
import os
import subprocess
import sys
import time

import pytest

from polypersona.lease import hold
from polypersona.storage import RunDirectory, load_run

RECIPE = """# polypersona run smoke.yaml
name: smoke
out: OUT
panel: {source: PANEL}
instrument: {items: [healthcare.likert.01]}
generate: {engine: fake, shard_personas: 1, actors: 1, max_quarantined: 1.0, max_attempts: 1}
"""


def write_recipe(folder, failing, delay_s=0.0, size=6):
    rows = [{"id": f"p{place}", "fake_delay_s": delay_s, **failing.get(place, {})} for place in range(size)]
    panel = folder / "panel.jsonl"
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "smoke.yaml"
    path.write_text(RECIPE.replace("OUT", str(folder / "runs")).replace("PANEL", str(panel)))
    return str(path)


def polypersona(*arguments):
    code = "from polypersona.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )


@pytest.mark.ray
@pytest.mark.slow
def test_retry_says_what_became_of_the_quarantined_cells(tmp_path):
    mended = {"fake_failure": "error", "fake_once": str(tmp_path / "failed")}
    path = write_recipe(tmp_path, {1: mended, 4: {"fake_failure": "error"}})
    run = str(tmp_path / "runs" / "smoke")
    assert polypersona("generate", path).returncode == 0
    done = polypersona("retry", run, "--set", "generate.max_attempts=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"retry: round 1, 1 of 2 quarantined cells answered, 1 still quarantined in {run}\n"
    again = polypersona("retry", run, "--json", "--set", "generate.max_quarantined=0.1")
    assert again.returncode == 3
    assert "polypersona retry" in again.stderr
    wrong = polypersona("retry", run, "--set", "generate.waves=2")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr
    nowhere = polypersona("retry", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 2
    assert "is no run" in nowhere.stderr
    assert not (tmp_path / "nowhere").exists()
    assert polypersona("verify", run).returncode == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_reaches_max_hours_ends_with_exit_4_before_the_next_stage_and_goes_on(tmp_path):
    path = write_recipe(tmp_path, {}, delay_s=2.0)
    stages = ("run", path, "--from", "generate", "--to", "evaluate", "--set", "evaluate.reference=none")
    begin = time.monotonic()
    done = polypersona(*stages, "--set", "generate.max_hours=0.0014")
    assert done.returncode == 4, done.stderr
    assert time.monotonic() - begin < 100
    assert "generate stopped after generate.max_hours (0.0014); " in done.stderr
    assert "Run the same command again" in done.stderr
    run = RunDirectory.at(tmp_path / "runs" / "smoke")
    assert load_run(run)["stages"].keys() == {"generate"}
    assert not run.exists("lease.json")
    assert polypersona(*stages).returncode == 0
    assert load_run(run)["stages"]["evaluate"]


def test_a_second_driver_is_refused_in_one_sentence(tmp_path):
    path = write_recipe(tmp_path, {})
    with hold(RunDirectory.at(tmp_path / "runs" / "smoke")):
        for command in (("generate", path), ("run", path, "--to", "generate"), ("dataset", path)):
            done = polypersona(*command)
            assert done.returncode == 2
            assert f"is held by process {os.getpid()} on" in done.stderr
            assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
