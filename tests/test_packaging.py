"""The wheel holds all that the program needs, and works away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("polypersona-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked as an installer does; its libraries are those of this environment."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return target


def run_installed(installed, cwd, *arguments):
    """Run Python on the installed copy: neither the working directory nor the checkout is searched."""
    code = (
        f"import sys; sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        f"import polypersona; assert polypersona.__file__.startswith({str(installed)!r}), polypersona.__file__\n"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code + arguments[0], *arguments[1:]],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


def run_program(installed, cwd, *arguments):
    return run_installed(installed, cwd, "from polypersona.cli.main import main; main()", *arguments)


def test_the_wheel_holds_every_file_of_the_package_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "polypersona").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for folder in ("questionbank", "jobs"):
        wanted |= {
            f"polypersona/_data/{path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix in {".json", ".yaml"}
        }
    assert sorted(wanted - names) == []
    assert {
        "polypersona/simulator/wordings.json",
        "polypersona/report/templates/report.html.j2",
        "polypersona/_data/questionbank/healthcare.json",
        "polypersona/_data/jobs/demo.yaml",
        "polypersona/py.typed",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".tmp"))] == []
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"polypersona"}
    assert wheel.stat().st_size < 12 << 20


def test_the_wheel_holds_the_embedded_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {"model.safetensors", "config.json", "tokenizer.json"}
    assert {f"polypersona/models/tiny/{name}" for name in files} <= names


def test_the_installed_program_finds_its_questionbank_and_recipes(installed, tmp_path):
    done = run_program(installed, tmp_path, "bank", "check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OK: 82 items in 10 domains")
    done = run_program(installed, tmp_path, "bank", "list", "--domain", "finance")
    assert done.returncode == 0, done.stderr
    assert "finance.likert.01" in done.stdout
    done = run_program(installed, tmp_path, "plan", "jobs/smoke.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["work"]["items"] == 20
    code = (
        "from polypersona.recipe import load_recipe\nfrom polypersona.resources import resource\n"
        "print(resource('jobs/demo.yaml'), load_recipe(resource('jobs/demo.yaml')).name)"
    )
    done = run_installed(installed, tmp_path, code)
    assert done.stdout.split() == [str(installed / "polypersona" / "_data" / "jobs" / "demo.yaml"), "demo"], done.stderr


def test_the_installed_program_runs_a_stage_elsewhere(installed, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\npanel: {size: 20}\ndataset: {records: 60}\n")
    done = run_program(installed, tmp_path, "dataset", "mine.yaml")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "mine" / "dataset" / "train.jsonl").read_text().splitlines()
    assert len(rows) > 30


def test_the_program_is_installed_under_its_name(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "polypersona = polypersona.cli.main:main" in archive.read(entry).decode()
