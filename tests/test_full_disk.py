"""A disk that is full, read-only or forbidden in mid-run: one clear error, nothing half-written, and it resumes."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polypersona import dataset
from polypersona.errors import StorageError
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory, load_run

ROOT = Path(__file__).parent.parent


class SmallDisk:
    """A file system in memory of a size of its own."""

    def __init__(self, folder):
        self.folder = folder

    def remount(self, *options):
        subprocess.run(["mount", "-o", ",".join(("remount", *options)), str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs rights that this user lacks")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def forbidden(folder):
    """Take the right to make files in a folder from everybody, even from root."""
    if os.geteuid() == 0:
        if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode != 0:
            pytest.skip("this file system cannot refuse root")
        yield
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    else:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)


def all_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One file, one stage


def limited(limit, source, *arguments):
    """Run Python with files limited to so many bytes: what the system says then is as on a full disk."""

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path):
    run = RunDirectory.at(tmp_path / "run")
    run.write("shard", b"old")
    source = (
        "import sys; from polypersona.storage import RunDirectory as R; R.at(sys.argv[1]).write('shard', b'x' * 9999)"
    )
    failed = limited(5000, source, run.location)
    assert "StorageError" in failed.stderr
    assert "/shard cannot be written: File too large" in failed.stderr
    assert all_files(tmp_path / "run") == {"shard": b"old"}


def test_a_full_disk_is_named_and_leaves_the_old_file(disk):
    disk.remount("size=16k")
    run = RunDirectory.at(disk.folder / "run")
    run.write("shard", b"old")
    for _ in range(3):
        with pytest.raises(StorageError, match="/shard cannot be written: No space left on device"):
            run.write("shard", os.urandom(100_000))
        assert all_files(disk.folder) == {"run/shard": b"old"}
    disk.remount("size=1m")
    run.write("shard", b"x" * 100_000)
    assert len(run.read("shard")) == 100_000


def dataset_recipe(folder):
    panel = {"source": "sampled", "size": 30}
    return build_recipe({"name": "d", "out": str(folder), "panel": panel, "dataset": {"records": 240}})


@pytest.mark.parametrize("kib", [16, 100, 200])
def test_a_dataset_that_does_not_fit_is_not_there_at_all(disk, kib):
    recipe, run = dataset_recipe(disk.folder), RunDirectory.at(disk.folder / "d")
    whole = dataset.run(dataset_recipe(disk.folder.parent))
    disk.remount(f"size={kib}k")
    with pytest.raises(StorageError, match="No space left on device"):
        dataset.run(recipe)
    assert all_files(disk.folder) == {}
    assert load_run(run) == {}
    disk.remount("size=64m")
    assert dataset.run(recipe) == whole
    assert all_files(disk.folder / "d" / "dataset") == all_files(disk.folder.parent / "d" / "dataset")


# A run


def write_recipe(folder, out, name):
    # Every third persona takes its time, so that there is a middle of the run.
    rows = [
        {"id": f"p{place}", "age": 20 + place, **({"fake_delay_s": 0.2} if place % 3 == 0 else {})}
        for place in range(60)
    ]
    rows[7]["fake_failure"] = "invalid"
    (folder / "panel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "run",
                "out": str(out),
                "panel": {"source": str(folder / "panel.jsonl")},
                "instrument": {"items": ["healthcare.likert.01", "healthcare.open.01", "technology.yesno.01"]},
                "generate": {"engine": "fake", "shard_personas": 2, "actors": 2, "max_quarantined": 1.0},
            }
        )
    )
    return path


def polypersona(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "polypersona", *map(str, arguments)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def answers(out):
    return {name: data for name, data in all_files(out / "run").items() if name.startswith(("responses", "quarantine"))}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The answers of a run on a sound disk."""
    folder = tmp_path_factory.mktemp("calm")
    done = polypersona("generate", write_recipe(folder, folder / "out", "calm"))
    assert done.returncode == 0, done.stderr
    return answers(folder / "out")


class Middle(threading.Thread):
    """Does something once, as soon as a run has committed a few shards."""

    def __init__(self, out, deed):
        super().__init__(daemon=True)
        self.out, self.deed, self.is_done = out, deed, False
        self.start()

    def run(self):
        end = time.monotonic() + 180
        while time.monotonic() < end:
            if len(list((self.out / "run" / "responses").glob("shard-*"))) >= 4:
                self.deed()
                self.is_done = True
                return
            time.sleep(0.02)


def assert_stopped_clean(done, out, calm, reason):
    """Hold that a command ended with one clear error, and that what is there of the run is whole."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("Error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert reason in done.stderr, done.stderr
    found = answers(out)
    assert not [name for name in found if name.endswith(".tmp")]
    assert found.items() <= calm.items()
    return found


def assert_resumes(recipe, out, calm):
    done = polypersona("generate", recipe)
    assert done.returncode == 0, done.stderr
    assert answers(out) == calm
    audit = polypersona("verify", out / "run")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    left = {name.partition("/")[0] for name in all_files(out / "run")}
    assert left <= {"run.json", "responses", "quarantine", "events"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_disk_gets_full_stops_with_one_error_and_goes_on_with_more_room(disk, calm, tmp_path):
    recipe, out = write_recipe(tmp_path, disk.folder, "full"), disk.folder
    disk.remount("size=240k")
    found = assert_stopped_clean(polypersona("generate", recipe), out, calm, "No space left on device")
    assert 0 < len(found) < len(calm)
    again = assert_stopped_clean(polypersona("generate", recipe), out, calm, "No space left on device")
    assert found.items() <= again.items()
    disk.remount("size=64m")
    assert_resumes(recipe, out, calm)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_disk_becomes_read_only_stops_with_one_error_and_goes_on_when_it_is_not(disk, calm, tmp_path):
    recipe, out = write_recipe(tmp_path, disk.folder, "read-only"), disk.folder
    middle = Middle(out, lambda: disk.remount("ro"))
    done = polypersona("generate", recipe)
    assert middle.is_done
    found = assert_stopped_clean(done, out, calm, "Read-only file system")
    assert 0 < len(found) < len(calm)
    again = polypersona("generate", recipe)
    assert again.returncode == 2, again.stderr
    assert again.stderr.count("Error: ") == 1
    assert answers(out) == found
    disk.remount("rw")
    assert_resumes(recipe, out, calm)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_loses_its_right_to_write_stops_with_one_error_and_goes_on_with_it(calm, tmp_path):
    recipe, out = write_recipe(tmp_path, tmp_path / "out", "right"), tmp_path / "out"
    with contextlib.ExitStack() as stack:
        middle = Middle(out, lambda: stack.enter_context(forbidden(out / "run" / "responses")))
        done = polypersona("generate", recipe)
        assert middle.is_done
        found = assert_stopped_clean(done, out, calm, "/responses/shard-")
        assert 0 < len(found) < len(calm)
        assert_stopped_clean(polypersona("generate", recipe), out, calm, "/responses/shard-")
    assert_resumes(recipe, out, calm)
