"""What a recipe, a bank or a panel names cannot make a run write outside its directory."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from polypersona.errors import RecipeError, StorageError
from polypersona.events import EventLog
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory
from polypersona.training.folder import CHECKPOINTS, drop_checkpoints

PACKAGE = Path(__file__).resolve().parents[2] / "polypersona"
# Modules that write outside a run directory, with the place that they write to.
WRITES_ELSEWHERE = {
    "storage.py", "local_files.py", "object_store.py", "lease.py", "shared_path.py",  # the run directory's own
    "compare.py",  # where --out says
    "fake.py",  # a marker of a failure that is asked for
    "native.py", "calibration.py",  # the user's cache folder
    "pretraining.py",  # the shipped model, by its own script
    "folder.py", "settings.py", "finetune.py", "submission.py",  # temporary folders
    "adapter_files.py", "checkpoints.py",  # temporary folders, too
    "inventory.py",  # os.devnull
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "..", ".", "", "a\\..\\b", "a\nb", "-rf", "~", "$HOME", "a\x00b", "a b"]
)
def test_a_run_is_named_by_a_plain_name(name: str) -> None:
    with pytest.raises(RecipeError, match="name"):
        build_recipe({"name": name, "panel": {"size": 2}})


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/../b", ".."])
def test_no_name_leads_out_of_the_run_directory(name: str, tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path / "run")
    for deed in (
        lambda: run.write(name, b""),
        lambda: run.read(name),
        lambda: run.delete(name),
        lambda: run.exists(name),
        lambda: run.names(name),
        lambda: run.address(name),
    ):
        with pytest.raises(StorageError, match="leaves the run directory"):
            deed()
    with pytest.raises(StorageError, match="leaves the run directory"):
        EventLog(run, f"../{name}").write("x")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "profile").write_text("mine\n")
    (tmp_path / "run" / "events").mkdir(parents=True)
    for name in ("responses", CHECKPOINTS, "run-2"):
        (tmp_path / "run" / name).symlink_to(mine)
    (tmp_path / "run" / "events" / "driver.jsonl").symlink_to(mine / "profile")
    run = RunDirectory.at(tmp_path / "run")
    for deed in (
        lambda: run.write("responses/shard.parquet", b"x"),
        lambda: run.write("run-2/a/b", b"x"),
        lambda: EventLog(run, "driver").write("x"),
    ):
        with pytest.raises(StorageError, match="leads out of the run directory"):
            deed()
    drop_checkpoints(run)
    assert [path.name for path in mine.iterdir()] == ["profile"]
    assert (mine / "profile").read_text() == "mine\n"


def test_a_run_directory_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = RunDirectory.at(tmp_path / "runs" / "x")
    run.write("responses/a", b"1")
    EventLog(run, "driver").write("x")
    assert (tmp_path / "disk" / "x" / "responses" / "a").read_bytes() == b"1"
    (tmp_path / "disk" / "x" / "inner").symlink_to(tmp_path / "disk" / "x" / "responses")
    run.write("inner/b", b"2")  # a link that stays inside is none of anybody's business
    assert run.read("responses/b") == b"2"


def test_a_neighbour_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    (tmp_path / "run-private").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "responses").symlink_to(tmp_path / "run-private")
    with pytest.raises(StorageError, match="leads out of the run directory"):
        RunDirectory.at(tmp_path / "run").write("responses/a", b"1")


def test_files_are_written_by_the_run_directory_and_by_few_others() -> None:
    writers = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or ".writable_path(" in text:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            opens = called == "open" and any(set(mode) & set("wax") and len(mode) <= 3 for mode in modes)
            if opens or called in ("write_text", "write_bytes", "open_output_stream", "symlink_to", "touch"):
                writers.add(path.name)
    unknown = sorted(writers - WRITES_ELSEWHERE)
    assert not unknown, f"{unknown}: write through RunDirectory.write or to its writable_path, or name the module here."
