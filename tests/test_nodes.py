"""pytest -m slow tests/test_nodes.py

Several raylets on this machine, each a node of its own to Ray, with CPUs, GPUs that only Ray counts, and labels.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_jobs import events_of, hashes
from ray.cluster_utils import Cluster

from polypersona.storage import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
STORE = 80 << 20
ACCELERATOR = "ray.io/accelerator-type"


@pytest.fixture
def cluster():
    """A head without CPUs, so that a test decides where actors may run."""
    with head() as found:
        yield found


@contextlib.contextmanager
def head(**more):
    settings = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, **more}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add(cluster, **more):
    return cluster.add_node(**{"num_cpus": 1, "object_store_memory": STORE, **more})


@contextlib.contextmanager
def driver(cluster, folder, shards, delay_s, *pools):
    settings = {"folder": str(folder), "shards": shards, "delay_s": delay_s, "pools": pools}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "pool_driver.py"), cluster.address, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rows_of(process, count=None):
    """Return the next rows that a driver prints, or all that are left once it has ended well."""
    if count is not None:
        return [json.loads(process.stdout.readline()) for _ in range(count)]
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    # Ray itself tells the driver's stdout about a raylet that was killed.
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def rows_until_all_are_busy(process, run, actors):
    """Return the next rows, until each of so many actors has committed one and has begun another."""
    rows = []
    while len(rows) < 4 or _count_committers(run) < actors:
        rows += rows_of(process, 1)
    time.sleep(0.5)
    return rows


def _count_committers(run):
    return sum('"event": "commit"' in path.read_text() for path in run.local_path("events").glob("actor-*.jsonl"))


def undisturbed(cluster, folder, shards):
    """Return the bytes of the same shards, answered without haste or trouble by one actor."""
    (folder / "calm").mkdir()
    with driver(cluster, folder / "calm", shards, 0.0, ["CPU", 1, 1]) as process:
        rows_of(process)
    return hashes(RunDirectory.at(folder / "calm" / "run"))


def test_a_node_that_joins_is_used(cluster, tmp_path):
    add(cluster)
    with driver(cluster, tmp_path, 240, 0.25, ["CPU", 1, None]) as process:
        rows_of(process, 2)
        add(cluster, num_cpus=2)
        assert len(rows_of(process)) == 238
    run = RunDirectory.at(tmp_path / "run")
    told = [(event["asked"], event["actors"], event["reason"]) for event in events_of(run, "pool")]
    assert told[-1] == (3, 3, "nodes have joined")
    assert len(events_of(run, "start")) == 3


def test_a_node_that_is_killed_loses_no_committed_shard_and_its_death_is_no_attempt(cluster, tmp_path):
    add(cluster)
    doomed = add(cluster)
    run = RunDirectory.at(tmp_path / "run")
    with driver(cluster, tmp_path, 24, 2.0, ["CPU", 2, 2]) as process:
        first = rows_until_all_are_busy(process, run, 2)
        before = hashes(run)
        cluster.remove_node(doomed, allow_graceful=False)
        rest = rows_of(process)
    assert sorted(row["shard"] for row in first + rest) == list(range(24))
    after = hashes(run)
    assert before.items() <= after.items()
    assert after == undisturbed(cluster, tmp_path, 24)
    assert sum(row["quarantined"] for row in first + rest) == 0
    assert events_of(run, "failure") == events_of(run, "give up") == []
    assert any("start again because" in event["reason"] for event in events_of(run, "pool"))
    assert [row["rows"] for row in first + rest] == [3] * 24


def test_a_node_that_is_told_to_leave_is_no_longer_alive(cluster):
    leaving, staying = add(cluster), add(cluster)
    asked = [sys.executable, "-c", _ASK_ALIVE, cluster.address, leaving.node_id, staying.node_id]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True", "True", "False", "True"], done.stderr


_ASK_ALIVE = """
import subprocess, sys, time
from pathlib import Path
import ray
from polypersona.scheduling.inventory import is_alive
address, leaving, staying = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
print(is_alive(leaving), is_alive(staying))
subprocess.run(
    [
        Path(sys.executable).with_name("ray"), "drain-node", "--address", address, "--node-id", leaving,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the market wants it back",
        "--deadline-remaining-seconds", "600",
    ],
    check=True, capture_output=True,
)
end = time.monotonic() + 30
while is_alive(leaving) and time.monotonic() < end:
    time.sleep(0.2)
print(is_alive(leaving), is_alive(staying))
"""


def test_two_kinds_of_gpu_share_one_list_of_shards(cluster, tmp_path):
    for kind, gpus in (("T4", 1), ("H100", 2)):
        add(cluster, num_gpus=gpus, labels={ACCELERATOR: kind})
    with driver(cluster, tmp_path, 60, 0.2, ["H100", 2, None], ["T4", 1, None]) as process:
        rows = rows_of(process)
    assert sorted(row["shard"] for row in rows) == list(range(60))
    run = RunDirectory.at(tmp_path / "run")
    assert len(hashes(run)) == 60
    told = {(event["pool"], event["actors"]) for event in events_of(run, "pool") if event["reason"] == "all run"}
    assert told == {("H100", 2), ("T4", 1)}
    assert [event["declared"] for event in events_of(run, "reproducibility")] == ["codes"]
    assert len(events_of(run, "commit")) == 60  # nobody answered what another had


def test_a_node_that_joins_serves_its_own_kind(cluster, tmp_path):
    for kind in ("T4", "H100"):
        add(cluster, num_gpus=1, labels={ACCELERATOR: kind})
    with driver(cluster, tmp_path, 260, 0.3, ["H100", 1, None], ["T4", 1, None]) as process:
        rows_of(process, 2)
        add(cluster, num_gpus=2, labels={ACCELERATOR: "H100"})
        assert len(rows_of(process)) == 258
    told = events_of(RunDirectory.at(tmp_path / "run"), "pool")
    assert max(event["actors"] for event in told if event["pool"] == "H100") == 3
    assert max(event["asked"] for event in told if event["pool"] == "T4") == 1


def test_what_a_kind_without_nodes_had_begun_is_answered_by_the_others(cluster, tmp_path):
    add(cluster, num_gpus=1, labels={ACCELERATOR: "H100"})
    doomed = add(cluster, num_gpus=1, labels={ACCELERATOR: "T4"})
    run = RunDirectory.at(tmp_path / "run")
    # A shard takes longer than a process needs to notice that its raylet is gone.
    with driver(cluster, tmp_path, 12, 4.0, ["H100", 1, 1], ["T4", 1, 1]) as process:
        first = rows_until_all_are_busy(process, run, 2)
        cluster.remove_node(doomed, allow_graceful=False)
        rest = rows_of(process)
    assert sorted(row["shard"] for row in first + rest) == list(range(12))
    assert [(event["pool"], event["shards"]) for event in events_of(run, "release")] == [("T4", 1)]
    assert events_of(run, "failure") == []


def test_a_head_that_starts_again_means_resume(tmp_path):
    run = RunDirectory.at(tmp_path / "run")
    with head(num_cpus=2) as cluster, driver(cluster, tmp_path, 20, 0.5, ["CPU", 2, 2]) as process:
        rows_of(process, 4)
        for started in cluster.head_node.all_processes.values():
            for info in started:
                info.process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
        assert process.returncode != 0
    before = hashes(run)
    assert 4 <= len(before) < 20
    with head(num_cpus=2) as cluster:
        with driver(cluster, tmp_path, 20, 0.0, ["CPU", 2, 2]) as process:
            assert len(rows_of(process)) == 20
        assert before.items() <= hashes(run).items()
        assert hashes(run) == undisturbed(cluster, tmp_path, 20)


@pytest.fixture
def stranger(cluster, tmp_path):
    """Return a function that adds a node with a run directory of its own, as on a machine that shares no disk."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    nodes = []

    def start():
        ray = Path(sys.executable).with_name("ray")
        command = (
            f"mount -t tmpfs none {tmp_path} && exec {ray} start --address={cluster.address} --num-cpus=1 "
            f"--object-store-memory={STORE} --block"
        )
        nodes.append(subprocess.Popen(
            [unshare, "-m", "sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ))  # fmt: skip
        return nodes[-1]

    yield start
    for node in nodes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def await_nodes(cluster, count):
    end = time.monotonic() + 150
    while len([node for node in cluster.global_state.node_table() if node["Alive"]]) < count:
        assert time.monotonic() < end, "the node did not join"
        time.sleep(0.5)


def test_a_local_path_that_a_node_does_not_share_is_refused_before_anything_is_answered(cluster, stranger, tmp_path):
    add(cluster)
    stranger()
    await_nodes(cluster, 3)
    with driver(cluster, tmp_path, 4, 0.0, ["CPU", 2, 2]) as process:
        out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert "is not shared with node" in error
    assert "s3://" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "responses").exists()


def test_a_node_that_joins_without_the_path_ends_the_run_by_name(cluster, stranger, tmp_path):
    add(cluster)
    with driver(cluster, tmp_path, 400, 0.25, ["CPU", 1, None]) as process:
        rows_of(process, 1)
        stranger()
        _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "is not shared with node" in error


def test_nodes_that_share_the_path_are_told_nothing(cluster, tmp_path):
    add(cluster)
    add(cluster)
    with driver(cluster, tmp_path, 4, 0.0, ["CPU", 2, 2]) as process:
        assert len(rows_of(process)) == 4
    assert not (tmp_path / "run" / "probes").exists()
