"""`polypersona submit` against a real cluster that cluster/local.sh starts, and its refusals without one."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from local_cluster import free_ports, joined_node, local_cluster

from polypersona.storage import RunDirectory
from polypersona.submission import build_submission
from polypersona.verify import verify

PROGRAM = str(Path(sys.executable).with_name("polypersona"))
SECRET = "sk-verysecret-0123456789"
FIRST = ["--from", "generate", "--to", "generate"]


def submit(*arguments, cwd, env=None, timeout=180):
    return subprocess.run(
        [PROGRAM, "submit", *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def is_refused(done, *words):
    """Whether a call ended with one sentence and a hint, and exit code 2."""
    lines = done.stderr.strip().splitlines()
    is_short = lines[0].startswith("Error: ") and len(lines) == 2 and "Traceback" not in done.stderr
    return done.returncode == 2 and not done.stdout and is_short and all(word in done.stderr for word in words)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:{port}", ["Nothing answers", "Connection refused"]),
        ("ray://127.0.0.1:10001", ["no address of a job server"]),
        ("127.0.0.1:6379", ["no address of a job server"]),
        ("http://127.0.0.1:99999", ["no address of a job server"]),
        ("http://user:pass@127.0.0.1:{port}", ["Nothing answers at http://***@127.0.0.1"]),
    ],
)
def test_an_address_where_no_cluster_is_gives_one_sentence(tmp_path, address, words):
    done = submit(
        "jobs/smoke.yaml", "--address", address.format(port=free_ports(1)[0]), "--set", f"out={tmp_path}", cwd=tmp_path
    )
    assert is_refused(done, *words), done.stderr


def test_a_server_that_is_no_job_server_gives_one_sentence(tmp_path):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        done = submit("jobs/smoke.yaml", "--address", address, "--set", f"out={tmp_path}", cwd=tmp_path)
    finally:
        server.shutdown()
    assert is_refused(done, "is no Ray job server"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs/smoke.yaml"], ["out is 'runs'"]),
        (["nowhere.yaml", "--set", "out=/x"], ["There is no recipe"]),
        (["jobs/smoke.yaml", "--set", "out=/x", "--env", "AWS_SECRET_ACCESS_KEY"], ["AWS_SECRET_ACCESS_KEY"]),
    ],
)
def test_a_mistake_is_said_before_the_cluster_is_asked(tmp_path, arguments, words):
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = submit(*arguments, "--address", f"http://127.0.0.1:{silent.getsockname()[1]}", cwd=tmp_path, timeout=30)
    assert is_refused(done, *words), done.stderr


def test_resources_that_are_no_json_are_refused(tmp_path):
    done = submit(
        "jobs/smoke.yaml", "--address", "http://127.0.0.1:1", "--entrypoint-resources", "{head: 1}", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "is no JSON object" in done.stderr


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(variables={"OPENAI_API_KEY": SECRET, "RAY_metrics_report_interval_ms": "300"}) as started:
        yield started


class Watcher(threading.Thread):
    """Reads the node's metrics until it is told to end; keeps the last value of each time series."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.values = {}
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.2):
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=10) as page:
                found = re.findall(r"^(ray_polypersona_.*) (\S+)$", page.read().decode(), re.MULTILINE)
                self.values.update((series, float(value)) for series, value in found)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()

    def total(self, metric, **labels):
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for series, value in self.values.items()
            if series.startswith(f"{metric}{{") and all(label in series for label in wanted)
        )


def address(cluster):
    return ["--address", cluster.address]


@pytest.mark.slow
def test_a_job_runs_the_code_that_was_sent_commits_and_is_clean(cluster, tmp_path):
    (tmp_path / "scratch").mkdir()
    # A copy of the package away from the checkout, as it is in a wheel, with a version of its own.
    sent = build_submission("jobs/smoke.yaml", tmp_path / "scratch", overrides=["out=/x"]).package
    (sent / "__init__.py").write_text('"""A copy."""\n\n__version__ = "9.9.9"\n')
    code = f"import sys; sys.path[:] = [{str(sent.parent)!r}] + sys.path\nfrom polypersona.cli.main import main; main()"
    out = tmp_path / "runs"
    with Watcher(cluster.metrics_port) as watcher:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, "submit", "jobs/smoke.yaml", *address(cluster), *FIRST,
             "--set", f"out={out}", "--entrypoint-memory", "1000000"],
            cwd=tmp_path, env=cluster.environment(RAY_ADDRESS="http://127.0.0.1:1"),
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"generate: run {out}/smoke" in done.stdout
    assert re.search(r"stop: +RAY_AUTH_MODE=token ray job stop --address http://127.0.0.1:\d+ raysubmit_", done.stderr)
    assert "INFO" not in done.stderr
    audit = verify(RunDirectory.at(out / "smoke"))
    assert audit.is_clean, audit.problems
    assert (audit.planned, audit.committed) == (4000, 4000)
    events = "".join(path.read_text() for path in (out / "smoke" / "events").iterdir())
    assert '"polypersona": "9.9.9"' in events
    # What the actors counted in their last moments is not exported; nothing is counted twice.
    assert 0 < watcher.total("ray_polypersona_responses_total", run="smoke", engine="fake") <= 4000
    assert 0 < watcher.total("ray_polypersona_shards_total", run="smoke") <= audit.shards
    assert any(series.startswith("ray_polypersona_shards_pending{") for series in watcher.values)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_outlives_the_death_of_a_node(cluster, tmp_path):
    people = [{"persona_id": f"p{number}", "attributes": {"age": 20, "fake_delay_s": 1}} for number in range(60)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    (tmp_path / "long.yaml").write_text(
        f"name: long\nout: {tmp_path / 'runs'}\npanel: {{source: people.jsonl, distinct: false}}\n"
        "instrument: {max_items: 4}\nmodel: {adapter: none}\n"
        "generate: {engine: fake, actors: 4, shard_personas: 1}\n"
    )
    run = RunDirectory.at(tmp_path / "runs" / "long")
    call = [PROGRAM, "submit", "long.yaml", *address(cluster), *FIRST, "--working-dir", "."]
    with joined_node(cluster, cpus=2) as kill:
        job = subprocess.Popen(
            call, cwd=tmp_path, env=cluster.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end = time.monotonic() + 240
        while len(actors := committers(run)) < 4 and time.monotonic() < end and job.poll() is None:
            time.sleep(0.2)
        before = set(run.names("responses", ".parquet"))
        kill()
        told, _ = job.communicate(timeout=240)
    assert len(actors) == 4, told
    assert len(before) < 60
    assert job.returncode == 0, told
    audit = verify(run)
    assert audit.is_clean, audit.problems
    assert (audit.planned, audit.committed) == (240, 240)
    events = "".join(path.read_text() for path in Path(run.path("events")).iterdir())
    assert "start again because" in events
    assert '"event": "failure"' not in events


def committers(run):
    """Return the actors that have committed a shard."""
    folder = Path(run.path("events"))
    return {path.name for path in folder.glob("actor-*.jsonl") if '"commit"' in path.read_text()}


@pytest.mark.slow
def test_a_job_ends_with_the_exit_code_of_its_run_and_is_followed_again_by_its_id(cluster, tmp_path):
    rows = [{"persona_id": f"p{index}", "attributes": {"age": 20 + index}} for index in range(10)]
    rows[3]["attributes"]["fake_failure"] = "error"
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\nout: {tmp_path / 'runs'}\npanel: {{source: people.jsonl, distinct: false}}\n"
        "instrument: {max_items: 4}\nmodel: {adapter: none}\ngenerate: {engine: fake, max_attempts: 1}\n"
    )
    call = ["mine.yaml", *address(cluster), *FIRST, "--working-dir", ".", "--submission-id", "night"]
    done = submit(*call, cwd=tmp_path, env=cluster.environment())
    assert done.returncode == 3, done.stdout + done.stderr
    assert "4 of 40 cells (10.00 %) are quarantined" in done.stdout
    again = submit(*call, cwd=tmp_path, env=cluster.environment())
    assert (again.returncode, again.stdout) == (3, done.stdout)
    assert "Job night has ended already, nothing is started;" in again.stderr
    other = submit(*call, "--set", "seed=8", cwd=tmp_path, env=cluster.environment())
    assert is_refused(other, "Job night is there already and runs something else"), other.stderr


@pytest.mark.slow
def test_a_mistake_that_only_the_job_can_find_gives_its_exit_code(cluster, tmp_path):
    out = tmp_path / "runs"
    (tmp_path / "mine.yaml").write_text("name: mine\nout: ${NOWHERE_SET}\npanel: {size: 20}\n")
    done = submit("mine.yaml", *address(cluster), *FIRST, cwd=tmp_path, env=cluster.environment())
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the environment variable NOWHERE_SET is not set" in done.stdout
    assert not out.exists()


@pytest.mark.slow
def test_an_interrupt_leaves_the_job_running_and_says_how_to_stop_it(cluster, tmp_path):
    people = [{"persona_id": "slow", "attributes": {"age": 30, "fake_delay_s": 120}}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    (tmp_path / "slow.yaml").write_text(
        f"name: slow\nout: {tmp_path / 'runs'}\npanel: {{source: people.jsonl}}\n"
        "instrument: {max_items: 4}\nmodel: {adapter: none}\ngenerate: {engine: fake}\n"
    )
    call = [PROGRAM, "submit", "slow.yaml", *address(cluster), *FIRST, "--working-dir", "."]
    env = cluster.environment()
    following = subprocess.Popen(call, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 180
    while not (tmp_path / "runs" / "slow" / "run.json").exists() and time.monotonic() < end:
        time.sleep(0.5)
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=60)
    assert following.returncode == 130
    (job,) = re.findall(r"^Detached: job (\S+) goes on\.$", told, re.MULTILINE)
    assert "Traceback" not in told
    stop = re.findall(r"^stop: +(.*)$", told, re.MULTILINE)[-1]
    ray = Path(sys.executable).with_name("ray")
    again = subprocess.Popen(call, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any("Running entrypoint" in line for line in again.stdout)
    stopped = subprocess.run(
        ["bash", "-c", stop.replace(" ray ", f" {ray} ")], env=env, capture_output=True, text=True, timeout=60
    )
    assert stopped.returncode == 0, stopped.stderr
    _, told = again.communicate(timeout=60)
    assert again.returncode == 1
    assert told.splitlines()[0] == f"Job {job} does this already, and is followed."
    assert told.splitlines()[-2] == f"Error: Job {job} was stopped."


@pytest.mark.slow
def test_a_wrong_token_and_a_missing_one_give_one_sentence(cluster, tmp_path):
    call = ["jobs/smoke.yaml", *address(cluster), "--set", f"out={tmp_path}"]
    wrong = submit(*call, cwd=tmp_path, env=cluster.environment(RAY_AUTH_TOKEN="wrong-wrong-wrong-wrong"))
    assert is_refused(wrong, "refuses the token"), wrong.stderr
    missing = submit(*call, cwd=tmp_path, env=cluster.environment(HOME=str(tmp_path)))
    assert is_refused(missing, "asks for a token"), missing.stderr
    assert (cluster.home / ".ray" / "auth_token").read_text() not in wrong.stderr + missing.stderr


@pytest.mark.slow
def test_workers_have_the_secrets_of_their_node_and_ray_shows_them_nowhere(cluster, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    monkeypatch.setenv("PLACE", str(out))
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nout: ${PLACE}\npanel: {size: 4}\ninstrument: {max_items: 2}\nmodel: {adapter: none}\n"
        "generate: {engine: endpoint, closed: text, max_attempts: 1,\n"
        "  endpoint: {url: 'http://127.0.0.1:1/v1', model: m, max_retries: 0}}\n"
    )
    done = submit(
        "mine.yaml", *address(cluster), *FIRST, "--env", "PLACE", cwd=tmp_path, env=cluster.environment(PLACE=str(out))
    )
    # The endpoint is nowhere, but its key was found: else the sentence would be that it is not set.
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "127.0.0.1:1" in done.stdout
    assert "is not set" not in done.stdout
    assert SECRET not in done.stdout + done.stderr
    env = cluster.environment(RAY_AUTH_MODE="token")
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    dump = subprocess.run(
        [ray, "job", "list", *address(cluster)], env=env, capture_output=True, text=True, timeout=60
    ).stdout
    assert "'PLACE'" in dump
    assert SECRET not in dump
    files = [*cluster.folder.rglob("logs/**/*"), *out.rglob("*")]
    assert len(files) > 20
    shown = [path for path in files if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not shown
