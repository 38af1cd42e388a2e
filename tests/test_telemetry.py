"""Metrics reach Ray's endpoint under the names that the dashboard asks for."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from local_cluster import free_ports

from polypersona import telemetry
from polypersona.telemetry import MAX_REASONS, OTHER, NullRecorder, RayRecorder, reason_class

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "cluster" / "grafana-dashboard.json"
EMPTY = pa.table({"reason": pa.array([], pa.string())})


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("the prompt has 2,311 tokens, more than 1,024", "the prompt has # tokens, more than #"),
        ("ValueError: no 'x' in row 3", "ValueError"),
        ("HTTP 429: slow down (tried 6 times)", "HTTP 429"),
        ("item 'a.b.01' is quarantined", "item … is quarantined"),
        ("the answer is none of the options", "the answer is none of the options"),
        ("", OTHER),
        ("x" * 500, "x" * 60),
    ],
)
def test_reasons_of_one_kind_are_one_time_series(reason, kind):
    assert reason_class(reason) == kind


def test_the_null_recorder_takes_what_the_other_takes():
    public = [name for name in vars(telemetry.Recorder) if not name.startswith("_")]
    for recorder in (NullRecorder, RayRecorder):
        assert [name for name in vars(recorder) if not name.startswith("_")] == public
    with NullRecorder().busy():
        NullRecorder().record_commit(EMPTY, EMPTY, 1.0)


def test_what_opens_a_recorder_travels_to_the_actor():
    opened = pickle.loads(pickle.dumps(partial(RayRecorder, "toy", "fake")))
    assert opened.func is RayRecorder


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_reasons_without_end_do_not_make_time_series_without_end():
    recorder = RayRecorder("toy", "fake")
    kinds = {recorder._bounded(f"kind {chr(65 + number)}") for number in range(3 * MAX_REASONS)}
    assert len(kinds) == MAX_REASONS + 1
    assert OTHER in kinds


def queries():
    """Yield the title and the query of every panel, and those of the variables."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def metrics_of(query):
    """Return metric → labels that a query asks of it."""
    bare = re.sub(r'"[^"]*"', '""', query)
    grouped = {
        label for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", bare) for label in re.split(r",\s*", group)
    }
    wanted = {}
    for name, matchers in re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", bare):
        wanted.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", matchers), grouped)
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", bare):
        wanted[found[1]] = {found[2]}
    return wanted


@pytest.fixture(scope="module")
def exported():
    folder = tempfile.mkdtemp(prefix="pp", dir="/tmp")  # a path to a socket must be short
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "ray_metrics.py"), str(free_ports(1)[0]), folder],
            capture_output=True, text=True, timeout=240, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_what_is_recorded_is_what_the_endpoint_shows(exported):
    values = exported["values"]
    expected = {"responses": 80, "prompt_tokens": 800, "reused_prompt_tokens": 320, "new_tokens": 120, "shards": 40}
    assert {name: values[f"ray_polypersona_{name}_total"] for name in expected} == expected
    assert values["ray_polypersona_shard_failures_total"] == 40
    assert values["ray_polypersona_quarantined_total"] == 40
    assert values["ray_polypersona_shards_pending"] == 7
    assert values["ray_polypersona_shard_seconds_count"] == 40
    assert 0.1 < values["ray_polypersona_engine_busy_share"] <= 1
    for name in telemetry.COUNTERS:
        assert {"run", "engine"} <= set(exported["labels"][f"ray_{name}"])
    assert "reason" in exported["labels"]["ray_polypersona_quarantined_total"]


@pytest.mark.slow
def test_every_metric_and_label_of_every_panel_exists(exported):
    labels = {name: set(found) | {"le"} for name, found in exported["labels"].items()}
    asked = [(title, name, wanted) for title, query in queries() for name, wanted in metrics_of(query).items()]
    assert len(asked) > 20
    missing = [f"{title}: {name}" for title, name, _ in asked if name not in labels]
    assert not missing, "\n".join(missing)
    wrong = [
        f"{title}: {name} has no {wanted - labels[name]}" for title, name, wanted in asked if wanted - labels[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_metric_that_is_recorded_is_on_the_dashboard():
    shown = {name for _, query in queries() for name in metrics_of(query)}
    own = {*telemetry.COUNTERS, telemetry.QUARANTINED, telemetry.BUSY, telemetry.PENDING}
    assert {f"ray_{name}" for name in own} <= shown
    assert f"ray_{telemetry.SHARD_SECONDS}_bucket" in shown


def test_every_panel_has_a_query_a_place_of_its_own_and_a_known_kind():
    board = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert all(panel["targets"] and panel["type"] in ("timeseries", "stat") for panel in panels)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert all(query.count("(") == query.count(")") for _, query in queries())
