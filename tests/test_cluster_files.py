"""The files in cluster/ fit this release and each other, the image can be built, and the documents' commands parse."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cluster_files import CLUSTER, RAY_VERSION, ROOT, document, groups, ray_up_file, submitter
from ray.dashboard.modules.job.cli import submit as ray_job_submit
from ray.scripts.scripts import cli as ray_cli
from ray.util.accelerators import accelerators

from polypersona import __version__
from polypersona.cli.main import cli
from polypersona.scheduling.machines import ACCELERATOR, MARKET, SPOT

GPU_TYPES = {value for name, value in vars(accelerators).items() if name.startswith("NVIDIA_")}


def test_every_file_has_the_image_of_this_release_and_the_ray_of_the_constraints():
    images = [ray_up_file()["docker"]["image"], submitter()["image"]]
    images += [group["template"]["spec"]["containers"][0]["image"] for group in groups()]
    assert {image.rsplit(":", 1)[1] for image in images} == {__version__}
    assert len(set(images)) == 1
    assert images[0] in (CLUSTER / "README.md").read_text()
    assert document("raycluster.yaml", "RayCluster")["spec"]["rayVersion"] == RAY_VERSION


def test_labels_are_those_that_pools_are_chosen_by():
    found = [kind["labels"] for kind in ray_up_file()["available_node_types"].values()]
    found += [group["labels"] for group in groups()]
    for labels in found:
        assert set(labels) <= {ACCELERATOR, MARKET}
        assert labels[MARKET] in {SPOT, "on-demand"}
        assert labels.get(ACCELERATOR, "L4") in GPU_TYPES


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash_and_may_be_run(path):
    assert os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_local_script_says_how_it_is_used():
    done = subprocess.run([str(CLUSTER / "local.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: cluster/local.sh start [CPUS [OPTION…]] | stop" in done.stderr


# The image


def copied():
    """Return the sources of the Dockerfile's COPY lines."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.*)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    return sorted({source for line in lines for source in line.split()[:-1]})


def is_let_through(path):
    """Whether .dockerignore lets a file into the build."""
    inside = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!").strip()
        if not pattern or pattern.startswith("#"):
            continue
        places = [path, *(str(parent) for parent in Path(path).parents)][:-1]
        bare = pattern.removeprefix("**/")
        if any(fnmatch.fnmatch(place, bare) or fnmatch.fnmatch(Path(place).name, bare) for place in places):
            inside = rule.startswith("!")
    return inside


def test_the_image_is_built_from_files_that_are_there_and_not_ignored():
    assert {"polypersona", "questionbank", "jobs", "constraints.txt", "pyproject.toml"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source
        assert is_let_through(source), source
    for secret in (".git/config", ".venv/bin/python", "runs/demo/run.json", "polypersona.env", "tests/conftest.py"):
        assert not is_let_through(secret), secret
    assert not is_let_through("polypersona/__pycache__/x.pyc")


@pytest.mark.slow
def test_the_files_of_the_image_make_a_wheel_of_the_whole_package(tmp_path):
    for source in copied():
        kept = [path for path in _files(ROOT / source) if is_let_through(str(path.relative_to(ROOT)))]
        for path in kept:
            target = tmp_path / "context" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    wheel = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out")]
    done = subprocess.run([*wheel, str(tmp_path / "context")], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / f"polypersona-{__version__}-py3-none-any.whl").stat().st_size > 1 << 20


def _files(path):
    return [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]


# What the documents say


def commands(text, program):
    """Yield the words of every call of a program in a text's code lines, joined over line ends."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        bare = re.sub(r"\s+#.*", "", line.strip()).removesuffix(" &")
        words = shlex.split(bare) if re.match(rf"(\w+=\S+ )*{program} ", bare) else []
        while words and "=" in words[0]:
            words = words[1:]
        if words:
            yield words


def documented():
    yield (CLUSTER / "README.md").read_text()
    yield (CLUSTER / "local.sh").read_text().replace("#   ", "").replace("RECIPE", "jobs/smoke.yaml")
    yield from ((path.read_text()) for path in sorted((ROOT / "jobs").glob("*.py")))


def test_every_command_in_the_documents_and_jobs_parses():
    own = rays = 0
    for text in documented():
        for words in commands(text, "polypersona"):
            command = cli.get_command(click.Context(cli), words[1])
            command.make_context(words[1], words[2:])
            own += 1
        for words in commands(text, "ray"):
            if words[1:3] == ["job", "submit"]:
                context = ray_job_submit.make_context("submit", words[3:])
                program, script, *_ = context.params["entrypoint"]
                assert program == "python"
                assert (ROOT / script).exists()
            else:
                ray_cli.get_command(click.Context(ray_cli), words[1]).make_context(words[1], words[2:])
            rays += 1
    assert own >= 5
    assert rays >= 5


def test_the_readme_names_every_file_of_the_folder_and_no_other():
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"cluster/([\w-]+\.\w+)", text)) | {"Dockerfile", "rayjob-entrypoint.sh", "README.md"}
    assert "cluster/Dockerfile" in text
    assert named == {path.name for path in CLUSTER.iterdir() if path.is_file()}
