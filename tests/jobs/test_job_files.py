"""Jobs are the command line: one call each, and a docstring with the line that submits them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
JOBS = ROOT / "jobs"
COMMANDS = {"run.py": "run", "retry.py": "retry"}


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.py")))
def test_a_job_begins_with_the_line_that_runs_it(name):
    text = ast.get_docstring(ast.parse((JOBS / name).read_text()))
    assert re.search(rf"^    .*\bpython jobs/{re.escape(name)} ", text, re.MULTILINE)
    if name in COMMANDS:
        assert re.search(
            r"^    RAY_AUTH_MODE=token ray job submit --address http://\S+ --working-dir \. --", text, re.M
        )


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_a_job_is_its_command(name, command):
    calls = [
        subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        for words in ([str(JOBS / name)], ["-m", "polypersona", command])
    ]
    assert [done.returncode for done in calls] == [0, 0], calls
    job, program = (done.stdout.split("\n", 1)[1] for done in calls)  # the first line has the program's name
    assert job == program


@pytest.mark.parametrize("command", COMMANDS.values())
def test_a_job_ends_with_the_exit_code_and_sentence_of_its_command(tmp_path, command):
    name = next(name for name, one in COMMANDS.items() if one == command)
    done = subprocess.run(
        [sys.executable, str(JOBS / name), str(tmp_path / "nowhere")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
