"""A file is in the run directory whole or not at all, wherever that is; a failure names the place."""

import errno
import json
import os
import pickle
import platform
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.errors import StorageError
from polypersona.events import EventLog
from polypersona.location import join_location
from polypersona.panel.sources import read_personas
from polypersona.recipe_sections import PanelRecipe
from polypersona.storage import SCHEMA_VERSION, RunDirectory, load_run, update_run


@pytest.fixture
def run(tmp_path):
    return RunDirectory.at(tmp_path / "runs" / "toy")


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory):
    """A bucket on a real S3 server (moto) on this machine; its URL with everything a client needs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none")),
        ("NO_PROXY", "127.0.0.1"),
        ("no_proxy", "127.0.0.1"),
    ):
        patch.setenv(name, value)
    options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    fs, path = pafs.FileSystem.from_uri(f"s3://bucket{options}&allow_bucket_creation=true")
    fs.create_dir(path)
    yield f"s3://bucket/runs/toy{options}"
    server.stop()
    patch.undo()


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_read_as_it_was_written(run):
    assert not run.exists("a/b.bin")
    run.write("a/b.bin", b"\x00one")
    assert run.exists("a/b.bin")
    assert run.read("a/b.bin") == b"\x00one"
    run.write("a/b.bin", pa.py_buffer(b"two"))
    assert run.read("a/b.bin") == b"two"
    assert all_files(run.local_path()) == ["a/b.bin"]


def test_naming_a_run_directory_creates_nothing(tmp_path):
    run = RunDirectory.at(tmp_path / "runs" / "toy")
    assert load_run(run) == {}
    assert run.names("responses") == []
    run.delete("run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_the_same_after_the_process_has_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.at("runs/toy")
    monkeypatch.chdir("/")
    run.write("a", b"x")
    assert (tmp_path / "runs" / "toy" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["with space", "50%20off", "ünïcode", "a#b", "what?"])
def test_a_path_is_taken_literally(tmp_path, name):
    run = RunDirectory.at(tmp_path / name)
    run.write("deep/a", b"x")
    assert run.read("deep/a") == b"x"
    assert run.exists("deep/a")
    assert run.names("deep") == ["deep/a"]
    assert (tmp_path / name / "deep" / "a").is_file()


def test_a_file_url_is_a_local_path(tmp_path):
    folder = tmp_path / "with space"
    run = RunDirectory.at(folder.as_uri())
    run.write("a", b"x")
    assert run.read("a") == b"x"
    assert run.is_local
    assert run.local_path("a") == folder / "a"
    assert (folder / "a").is_file()


@pytest.mark.parametrize("kind", ["write", "fsync", "rename"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(run, monkeypatch, kind):
    run.write("shard", b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullFile:
        def __init__(self, path):
            path.touch()
            self.path = path

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return False

        write = flush = fail

    with monkeypatch.context() as patch:
        if kind == "write":
            patch.setattr("pathlib.Path.open", lambda path, mode: FullFile(path))
        elif kind == "fsync":
            patch.setattr("os.fsync", fail)
        else:
            patch.setattr("pathlib.Path.replace", fail)
        for name in ("shard", "other"):
            with pytest.raises(StorageError, match=f"/{name} cannot be written: No space left on device") as caught:
                run.write(name, b"new")
            assert "what was committed before is kept" in caught.value.hint
    assert run.read("shard") == b"old"
    assert all_files(run.local_path()) == ["shard"]


def test_a_writer_that_is_interrupted_leaves_nothing(run, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.write("shard", b"new")
    assert all_files(run.local_path()) == []


def test_what_a_killed_writer_left_is_swept_and_what_a_live_one_writes_is_not(run):
    source = (
        "import os, signal, sys; from polypersona.storage import RunDirectory\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunDirectory.at(sys.argv[1]).write(sys.argv[2], b'half')"
    )
    for name in ("run.json", "responses/shard"):
        died = subprocess.run([sys.executable, "-c", source, run.location, name], check=False)
        assert died.returncode == -signal.SIGKILL
    mine = run.local_path("responses") / f".other.0.{os.getpid()}@{platform.node()}.tmp"
    far, old = (run.local_path("responses") / f".{name}.0.1@elsewhere.tmp" for name in ("far", "old"))
    for path in (mine, far, old):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    assert len(all_files(run.local_path())) == 5
    run.sweep()
    assert all_files(run.local_path()) == sorted(f"responses/{path.name}" for path in (mine, far))


def test_there_is_nothing_to_sweep_where_no_run_is(tmp_path, s3_url):
    RunDirectory.at(tmp_path / "none").sweep()
    RunDirectory.at(s3_url).sweep()


def test_the_data_are_on_disk_before_the_name_appears(run, monkeypatch):
    seen = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, run.exists("shard")))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watch)
    run.write("shard", b"12345")
    assert seen == [(5, False)]


def test_a_file_that_is_still_being_written_is_not_listed(run):
    run.write("responses/b.parquet", b"")
    run.write("responses/a.parquet", b"")
    run.write("responses/note.txt", b"")
    run.write("responses/deeper/c.parquet", b"")
    (run.local_path("responses") / ".d.parquet.tmp").write_bytes(b"")
    (run.local_path("responses") / ".d.parquet").write_bytes(b"")
    assert run.names("responses", ".parquet") == ["responses/a.parquet", "responses/b.parquet"]
    assert run.names("responses") == ["responses/a.parquet", "responses/b.parquet", "responses/note.txt"]


@pytest.mark.parametrize("name", ["../other", "a/../../other", "/etc/passwd", "a/..", ".."])
@pytest.mark.parametrize("deed", ["read", "exists", "names", "delete", "path", "local_path"])
def test_no_name_leaves_the_run_directory(run, name, deed):
    run.write("a/b", b"x")
    with pytest.raises(StorageError, match="leaves the run directory"):
        getattr(run, deed)(name)
    with pytest.raises(StorageError, match="leaves the run directory"):
        run.write(name, b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written: Permission denied"):
        RunDirectory.at(tmp_path / "toy").write("a", b"x")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("no folder")
    run = RunDirectory.at(tmp_path / "runs" / "toy")
    with pytest.raises(StorageError, match=r"runs/toy/a cannot be written: (Not a directory|File exists)"):
        run.write("a", b"x")
    assert load_run(run) == {}


def test_a_missing_file_says_what_to_do(run):
    with pytest.raises(StorageError, match=r"There is no .*/toy/dataset/test\.jsonl\. Run the stage that writes it"):
        run.read("dataset/test.jsonl")


def test_a_folder_is_no_file(run):
    run.write("adapter/a", b"x")
    assert not run.exists("adapter")
    with pytest.raises(StorageError, match="cannot be read"):
        run.read("adapter")


def test_a_file_is_deleted_once(run):
    run.write("a", b"x")
    run.delete("a")
    run.delete("a")
    assert not run.exists("a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{\n"a": }', r"run\.json is not valid JSON \(line 2\)"),
        (b"", r"run\.json is not valid JSON"),
        (b"\xff\xfe{", r"run\.json is not JSON text|is not valid JSON"),
        (b"[1]", r"run\.json is no run's record"),
    ],
)
def test_a_broken_record_of_the_run_is_named(run, data, message):
    run.write("run.json", data)
    with pytest.raises(StorageError, match=message):
        load_run(run)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_json_is_read_back_with_what_is_undefined_as_null(tmp_path_factory, content):
    run = RunDirectory.at(tmp_path_factory.getbasetemp() / "json")
    run.write_json("a.json", {"content": content})
    text = run.read("a.json").decode()
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == {"content": without_nan(content)}


def without_nan(content):
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and (content != content or abs(content) == float("inf")) else content


def test_a_runs_record_says_that_it_is_synthetic_and_keeps_what_other_stages_wrote(run):
    update_run(run, {"seed": 7, "stages": {"dataset": {"rows": 3, "old": True}}, "frozen": {"slots": 4, "old": True}})
    content = update_run(run, {"stages": {"dataset": {"rows": 4}, "report": {}}, "frozen": {"slots": 8}})
    assert content == load_run(run)
    assert content == {
        "schema_version": SCHEMA_VERSION,
        "synthetic": True,
        "seed": 7,
        "stages": {"dataset": {"rows": 4}, "report": {}},
        "frozen": {"slots": 8},
    }


@pytest.mark.parametrize("location", ["nowhere://bucket/runs", "runs/toy"])
def test_an_address_that_is_none_is_named(location):
    with pytest.raises(StorageError, match="is no place for a run"):
        RunDirectory(location).filesystem()


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/runs/toy", "/runs/toy/a/b"),
        ("/odd?/toy", "/odd?/toy/a/b"),
        ("s3://bucket/toy", "s3://bucket/toy/a/b"),
        ("s3://bucket/toy/?region=eu&scheme=http", "s3://bucket/toy/a/b?region=eu&scheme=http"),
    ],
)
def test_a_files_location_keeps_the_urls_options_at_its_end(location, path):
    assert join_location(location, "a/b") == path
    assert RunDirectory.at(location).path("a/b") == path


def test_an_object_store_holds_a_run_as_a_folder_does(s3_url):
    run = RunDirectory.at(s3_url)
    assert not run.is_local
    assert load_run(run) == {}
    assert run.names("responses") == []
    run.write("responses/b.parquet", b"two")
    run.write("responses/a.parquet", b"one")
    run.write("responses/a.parquet", b"one again")
    assert run.names("responses", ".parquet") == ["responses/a.parquet", "responses/b.parquet"]
    assert run.read("responses/a.parquet") == b"one again"
    update_run(run, {"seed": 7})
    assert load_run(pickle.loads(pickle.dumps(run)))["seed"] == 7
    run.delete("responses/a.parquet")
    run.delete("responses/a.parquet")
    assert not run.exists("responses/a.parquet")
    with pytest.raises(StorageError, match=r"There is no s3://bucket/runs/toy/responses/a\.parquet"):
        run.read("responses/a.parquet")
    with pytest.raises(StorageError, match="is not a local path"):
        run.local_path("run.json")


def test_a_place_whose_url_holds_a_secret_is_used_and_not_shown(s3_url):
    url = s3_url.replace("s3://", "s3://KEY:SECRET@").replace("/toy", "/secret")
    run = RunDirectory.at(url)
    update_run(run, {"recipe": {"out": url}})
    EventLog(run, "driver").write("started", place=url)
    panel = f"{url.partition('?')[0]}/p.csv?{url.partition('?')[2]}"
    run.write("p.csv", b"id,age\na,40\n")
    reading = read_personas(PanelRecipe(source=panel))
    assert len(reading.personas) == 1
    assert load_run(run)["recipe"]["out"] == url.replace("KEY:SECRET", "***")
    shown = [run.path(), reading.location, *(run.read(name).decode() for name in ("run.json", *run.names("events")))]
    assert len(shown) == 4
    assert not [text for text in shown if "KEY" in text or "SECRET" in text]


def test_a_large_object_is_whole(s3_url):
    run = RunDirectory.at(s3_url)
    data = os.urandom(12 << 20)
    run.write("big", data)
    assert run.read("big") == data


def test_a_bucket_that_is_not_there_is_named(s3_url):
    run = RunDirectory.at(s3_url.replace("s3://bucket", "s3://nowhere"))
    with pytest.raises(StorageError, match=r"s3://nowhere/runs/toy/a.* cannot be written"):
        run.write("a", b"x")
    assert not run.exists("a")


def test_a_server_that_does_not_answer_is_named(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    run = RunDirectory.at("s3://bucket/toy?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    with pytest.raises(StorageError, match="cannot be looked for"):
        run.exists("run.json")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "events").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"events/driver\.jsonl cannot be written"):
        EventLog(RunDirectory.at(tmp_path), "driver").write("start")


def test_a_place_that_ray_deletes_with_the_job_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "ray" / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(StorageError, match=r"Ray deletes with the job.*absolute path or a URL"):
        RunDirectory.at("runs/smoke").refuse_unusable()
    RunDirectory.at(tmp_path / "runs" / "smoke").refuse_unusable()
    assert not (tmp_path / "runs").exists()


def test_a_run_below_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=r"no place for a run: .*taken is a file"):
        RunDirectory.at(tmp_path / "taken" / "smoke").refuse_unusable()


def test_a_run_in_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(StorageError, match="may not be written"):
        RunDirectory.at(tmp_path / "runs").refuse_unusable()
