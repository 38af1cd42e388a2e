"""Whole stages with the endpoint engine against a real server: a run through Ray, a dataset, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from endpoint_server import Step, completion, refusal, serve

from polypersona import dataset, generate
from polypersona.content import content_parts
from polypersona.engines.settings import Weights, refuse_unsupported
from polypersona.errors import EngineError, RecipeChangedError, RecipeError
from polypersona.population import Population
from polypersona.recipe import build_recipe
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node
from polypersona.scheduling.policy import build_plan
from polypersona.storage import RunDirectory
from polypersona.verify import verify

KEY = "sk-proj-MN0123456789abcdef"
CLOSED = {
    "Options: Very dissatisfied": Step(body=completion("Satisfied. It has served me well.")),
    "Options: Strongly disagree": Step(body=completion("Agree. It has served me well.")),
    "Options: No": Step(body=completion("Yes.")),
}
ENDPOINT = {"url": "http://127.0.0.1:9/v1", "model": "toy"}


@pytest.fixture
def server():
    with serve() as running:
        yield running


def content(folder, url, **options):
    return {
        "name": "run",
        "out": str(folder),
        "panel": {"source": "sampled", "size": 6},
        "instrument": {"items": ["healthcare.likert.01", "technology.yesno.01", "healthcare.open.01"]},
        "generate": {
            "engine": "endpoint", "closed": "text", "shard_personas": 2, "max_quarantined": 0.5,
            "endpoint": {"url": url, "model": "toy", "key_variable": "TOY_KEY", "max_retries": 1},
            **options,
        },
    }  # fmt: skip


def run_program(folder, *arguments, **environment):
    """Run the command line in a process of its own, with a Ray of its own, and return what it said."""
    return subprocess.run(
        [sys.executable, "-c", "from polypersona.cli.main import main; main()", *arguments],
        env={**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", **environment},
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def files_with(text, *folders):
    found = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in found if text.encode() in path.read_bytes()]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_answered_over_http_and_writes_the_key_nowhere(server, tmp_path):
    server.by_text = dict(CLOSED)
    server.steps = [refusal(429, f"slow down, {KEY}", Retry_After="0"), refusal(400, f"no, {KEY}")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content(tmp_path, server.url)))
    with tempfile.TemporaryDirectory(prefix="ppray", dir="/tmp") as logs:  # Ray's sockets need a short path
        # Where Ray itself writes, to look for the key there, too.
        done = run_program(
            tmp_path, "run", "recipe.yaml", "--from", "generate", "--to", "generate", TOY_KEY=KEY, RAY_TMPDIR=logs
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
        assert list(Path(logs).rglob("*.log"))
        assert files_with(KEY, tmp_path, logs) == []
    assert "one actor keeps 8 requests in flight" in " ".join(done.stdout.split())
    run = RunDirectory.at(tmp_path / "run")
    assert verify(run).problems == ()
    rows = pq.read_table(tmp_path / "run" / "responses").to_pylist()
    assert len(rows) == 18
    assert {row["disposition"] for row in rows} == {"complete"}
    assert max(row["attempts"] for row in rows) == 2
    assert {row["reused_prompt_tokens"] for row in rows} == {64}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    parts = json.loads((tmp_path / "run" / "run.json").read_text())["content"]["parts"]
    assert (parts["generate.endpoint.url"], parts["generate.endpoint.model"]) == (server.url, "toy")
    assert "generate.endpoint.concurrency" not in parts


@pytest.mark.ray
def test_a_key_that_is_refused_or_not_set_comes_back_from_the_actor_as_a_users_mistake(local_ray, server, tmp_path):
    server.default = refusal(401, "Incorrect API key provided")
    endpoint = {"url": server.url, "model": "toy"}
    without = build_recipe(content(tmp_path, server.url, endpoint={**endpoint, "key_variable": None}))
    with pytest.raises(EngineError, match="HTTP 401: Incorrect API key provided") as caught:
        generate.run(without)
    assert caught.value.exit_code == 2
    named = build_recipe(content(tmp_path, server.url, endpoint={**endpoint, "key_variable": "TOY_KEY_NOT_SET"}))
    with pytest.raises(EngineError, match="TOY_KEY_NOT_SET is not set"):
        generate.run(named)
    assert not list((tmp_path / "run").glob("responses/*"))
    server.default, server.by_text = Step(), dict(CLOSED)  # neither left the run unable to go on
    assert generate.run(without)["committed"] == 18


def test_an_endpoint_can_be_the_teacher(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    server.by_text = dict(CLOSED)
    base = content(tmp_path, server.url, closed="score", engine="packed")
    base |= {
        "panel": {"source": "sampled", "size": 20},
        "instrument": {"items": ["healthcare.likert.01", "healthcare.likert.02", "healthcare.open.01"]},
        "dataset": {"teacher": "endpoint", "records": 30},
    }
    figures = dataset.run(build_recipe(base))
    assert (figures["teacher"], figures["rows"], figures["rejected"]) == ("endpoint", 30, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "dataset" / "train.jsonl").read_text().splitlines()]
    closed = [line for line in lines if line["metadata"]["question_type"] == "likert"]
    assert {line["metadata"]["rationale"] for line in closed} == {"It has served me well."}
    # What the teacher was told about the form of its answer is no part of what a model is taught.
    asked = {body["messages"][1]["content"] for body in server.bodies}
    assert all(any(text.startswith(line["messages"][1]["content"] + "\n") for text in asked) for line in lines)
    assert files_with(KEY, tmp_path) == []
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["dataset"]["content"]
    assert (stored["teacher.model"], stored["teacher.closed"]) == ("toy", "text")
    assert dataset.run(build_recipe(base))["skipped"]
    other = {**base["generate"], "endpoint": {**base["generate"]["endpoint"], "model": "other"}}
    with pytest.raises(RecipeChangedError, match=r"teacher\.model: toy → other"):
        dataset.run(build_recipe({**base, "generate": other}))
    with pytest.raises(EngineError, match=r"generate\.endpoint\.url is missing"):
        dataset.run(build_recipe({**base, "name": "none", "generate": {}}))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"endpoint": {}}, r"generate\.endpoint\.url is missing"),
        ({"endpoint": {"url": ENDPOINT["url"]}}, r"generate\.endpoint\.model is missing"),
        ({"closed": "score"}, r"generate\.closed: score .*show_options is labels"),
        ({"top_k": 4}, r"generate\.top_k"),
        ({"context": "previous"}, r"generate\.context: 'previous'"),
        ({"calibration": "permute"}, r"generate\.calibration: 'permute'"),
        ({"slots": 4}, r"generate\.slots: 4 has no meaning"),
        ({"actors": 2}, r"generate\.actors: 2 has no meaning"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_anything_starts(options, named):
    recipe = build_recipe(content("runs", ENDPOINT["url"], **options))
    with pytest.raises(EngineError, match=named) as caught:
        refuse_unsupported(recipe)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("key_variable", "sk-proj-0123", "name of an environment variable"),
        ("key_variable", "gsk_0123", "name of an environment variable"),
        ("url", "https://me:sk-0123@host/v1", "no user, password, query"),
        ("url", "https://host/v1?key=sk-0123", "no user, password, query"),
        ("url", "host/v1", "no address"),
        ("url", "https://host:x/v1", "no address"),
        ("url", "https://host/v1/chat/completions", "leave out '/chat/completions'"),
        ("key", "sk-0123", "'generate.endpoint.key' is no key of a recipe"),
    ],
)
def test_a_key_in_the_recipe_is_refused_and_not_repeated(key, value, named):
    with pytest.raises(RecipeError, match=named) as caught:
        build_recipe(content("runs", ENDPOINT["url"], endpoint={**ENDPOINT, key: value}))
    assert "0123" not in str(caught.value)


def test_url_and_model_decide_content_and_patience_does_not():
    def parts(**endpoint):
        recipe = build_recipe(content("runs", "x", endpoint={**ENDPOINT, **endpoint}))
        return content_parts(recipe, {"shard_personas": 2}, Weights(), Population((), (), None))

    assert parts() == parts(concurrency=3, timeout_s=9, max_retries=1, requests_per_minute=5, key_variable=None)
    assert parts() != parts(model="other")
    assert parts() != parts(url="http://127.0.0.1:8/v1")
    assert parts() != parts(instruct=False)
    fake = build_recipe(content("runs", ENDPOINT["url"], engine="fake"))
    named = content_parts(fake, {"shard_personas": 2}, Weights(), Population((), (), None))
    assert not any(key.startswith("generate.endpoint") for key in named)


def test_the_plan_of_an_endpoint_is_one_actor_without_a_gpu():
    recipe = build_recipe(content("runs", "x", endpoint={**ENDPOINT, "concurrency": 24, "requests_per_minute": 500}))
    machine = Inventory((Node(16, 64 * GIB, (Gpu("A100", 80 * GIB, 8.0),)),))
    plan = build_plan(recipe, machine, num_shards=100).generate
    assert (plan.actors.value, plan.gpus_per_actor, plan.slots.value) == (1, 0, 24)
    for words in ("toy at http://127.0.0.1:9/v1", "24 requests in flight", "500 a minute at most"):
        assert words in plan.actors.reason
