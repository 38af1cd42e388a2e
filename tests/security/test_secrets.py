"""Keys of stores and servers: nothing that a run leaves behind shows one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs
import pytest
import yaml
from endpoint_server import Step, completion, serve
from faulty_s3 import FaultyS3

from polypersona.cli import main as program
from polypersona.cli.failure import show_failure, show_thread_failure
from polypersona.location import mask_environment
from polypersona.storage import RunDirectory

KEY_ID, SECRET, API_KEY = "AKIASHOWN0TO0NOBODY0", "wJalrXUtnFEMI/K7MDENG+bPxRfi", "sk-shown-to-nobody-0123456789"
SECRETS = (KEY_ID, SECRET, quote(SECRET, safe=""), API_KEY)
URL = f"s3://{KEY_ID}:{quote(SECRET, safe='')}@bucket/x"


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyS3]:
    server = FaultyS3()
    yield server
    server.stop()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A short path: Ray puts sockets below it."""
    folder = tempfile.mkdtemp(prefix="pps", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run_program(folder: Path, ray_folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment = {
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere", "NO_PROXY": "127.0.0.1",
        "RAY_TMPDIR": str(ray_folder), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TOY_KEY": API_KEY,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", "from polypersona.cli.main import main; main()", *arguments],
        cwd=folder, capture_output=True, timeout=280, env={**clean, **environment}, check=False,
    )  # fmt: skip


def shown_in(texts: dict[str, bytes]) -> list[tuple[str, str]]:
    return [(where, secret) for where, text in texts.items() for secret in SECRETS if secret.encode() in text]


def left_behind(ray_folder: Path) -> dict[str, bytes]:
    files = (path for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): path.read_bytes() for path in files}


def objects(url: str) -> dict[str, bytes]:
    fs, root = pafs.FileSystem.from_uri(url)
    infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    return {info.path: fs.open_input_stream(info.path).read() for info in infos if info.is_file}


def write_recipe(folder: Path, out: str, endpoint: str, **sections: object) -> None:
    content = {
        "name": "toy",
        "out": out,
        "panel": {"source": "sampled", "size": 6},
        "instrument": {"items": ["healthcare.likert.01", "healthcare.open.01"]},
        "dataset": {"records": 10},
        "generate": {
            "engine": "endpoint", "closed": "text", "shard_personas": 2, "max_quarantined": 1.0,
            "endpoint": {"url": endpoint, "model": "toy", "key_variable": "TOY_KEY", "max_retries": 0},
        },
        "evaluate": {"reference": "none", "bootstrap": 10},
        **sections,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_store_with_a_server_shows_no_key_anywhere(
    store: FaultyS3, tmp_path: Path, ray_folder: Path
) -> None:
    out = f"{URL}?endpoint_override={store.address}&scheme=http&region=us-east-1"
    # The server repeats the key it was sent, in an answer and in a refusal.
    steps = {
        "Options: Very dissatisfied": Step(body=completion(f"Satisfied. Your key is {API_KEY}.")),
        "Question:": Step(500, body={"error": {"message": f"I do not like the key {API_KEY}"}}),
    }
    with serve() as server:
        server.by_text = steps
        write_recipe(tmp_path, out, server.url)
        done = run_program(tmp_path, ray_folder, "run", "recipe.yaml", "--to", "report")
    kept, logs = objects(out), left_behind(ray_folder)
    assert done.returncode == 0, done.stderr.decode()
    assert len(kept) > 10
    assert any("raylet" in name for name in logs)
    assert shown_in({"stdout": done.stdout, "stderr": done.stderr, **kept, **logs}) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_a_store_refuses_shows_no_key_anywhere(store: FaultyS3, tmp_path: Path, ray_folder: Path) -> None:
    out = f"{URL}?endpoint_override={store.address}&scheme=http&region=us-east-1"
    write_recipe(tmp_path, out.replace("/x?", "/y?"), "http://127.0.0.1:9/v1", generate={"engine": "fake"})
    store.choose = lambda method, path, place: "403" if method == "PUT" and "shard-" in path else None
    try:
        done = run_program(tmp_path, ray_folder, "run", "recipe.yaml", "--from", "generate", "--to", "generate")
    finally:
        store.choose = lambda method, path, place: None
    assert done.returncode == 2
    assert b"s3://***@bucket" in done.stderr
    kept = objects(out.replace("/x?", "/y?"))
    assert shown_in({"stdout": done.stdout, "stderr": done.stderr, **kept, **left_behind(ray_folder)}) == []


def test_a_json_file_shows_no_key(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path)
    run.write_json("a.json", {"captions": [f"of {URL}."]})
    assert run.read_json("a.json") == {"captions": ["of s3://***@bucket/x."]}


def test_a_foreign_traceback_at_the_top_shows_no_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        try:
            raise OSError(f"cannot open {URL}?secret_key={SECRET}")
        except OSError as error:
            raise RuntimeError(f"the server does not know {API_KEY!r} nor {quote(API_KEY)}") from error

    monkeypatch.setenv("TOY_API_KEY", API_KEY)
    monkeypatch.setattr(program.cli, "main", fail)
    with pytest.raises(SystemExit) as stop:
        program.main()
    shown = capsys.readouterr()
    assert (stop.value.code, shown.out) == (1, "")
    assert "Traceback" in shown.err
    assert "RuntimeError: the server does not know '***' nor ***" in shown.err
    assert "OSError: cannot open s3://***@bucket/x?secret_key=***" in shown.err
    assert not any(secret in shown.err for secret in SECRETS)


def test_a_thread_that_fails_shows_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(URL)

    monkeypatch.setattr(threading, "excepthook", show_thread_failure)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    shown = capsys.readouterr().err
    assert "OSError: s3://***@bucket/x" in shown
    show_failure(ValueError("plain"))
    assert capsys.readouterr().err.endswith("ValueError: plain\n")


def test_values_of_variables_named_as_secrets_are_masked_and_others_are_not() -> None:
    environment = {
        "OPENAI_API_KEY": API_KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": "hf_0123456789", "DB_PASSWORD": "short",
        "HOME": "/home/somebody", "TOKENIZERS_PARALLELISM": "false-by-all-means", "KEYBOARD": "qwertyuiop",
    }  # fmt: skip
    text = (
        f"{API_KEY} {SECRET} {quote(SECRET, safe='')} hf_0123456789 short /home/somebody false-by-all-means qwertyuiop"
    )
    shown = mask_environment(text, environment)
    assert shown == "*** *** *** *** short /home/somebody false-by-all-means qwertyuiop"
