"""A real Ray cluster, started by cluster/local.sh with ports, folder and token of its own; more nodes may join."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_S = 90.0


@dataclass(frozen=True)
class LocalCluster:
    """Where a running cluster is.

    Args:
        address: of its job server.
        home: the home folder that holds its token.
        folder: Ray's own folder, with all logs.
        metrics_port: of the node's metrics.
        gcs_port: where other nodes join.
    """

    address: str
    home: Path
    folder: Path
    metrics_port: int
    gcs_port: int

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a user of the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", **more}


_PORTS = iter(range(21000 + os.getpid() % 5000, 32000))


def free_ports(count: int) -> list[int]:
    """Return free ports, outside those that Ray gives its workers; none twice, because a server binds late."""
    ports: list[int] = []
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def local_cluster(cpus: int = 2, variables: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """Start a cluster whose nodes have `variables` in their environment, and stop it with all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="pp", dir="/tmp"))  # a path to a socket must be short
    home = folder / "home"
    home.mkdir()
    gcs, dashboard, agent, client, metrics = free_ports(5)
    cluster = LocalCluster(f"http://127.0.0.1:{dashboard}", home, folder / "ray", metrics, gcs)
    ports = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client,
        "--metrics-export-port": metrics,
    }
    command = [str(ROOT / "cluster" / "local.sh"), "start", str(cpus), "--temp-dir", str(cluster.folder), "--block"]
    for option, port in ports.items():
        command += [option, str(port)]
    environment = cluster.environment(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0", **(variables or {}))
    log = folder / "head.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=folder)
    try:
        _await(cluster.address, head, log)
        yield cluster
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=60)
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def joined_node(cluster: LocalCluster, cpus: int) -> Iterator[Callable[[], None]]:
    """Have one more node join; the value kills it with all its processes, as the end of the context does."""
    agent, metrics = free_ports(2)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", f"--address=127.0.0.1:{cluster.gcs_port}",
        f"--num-cpus={cpus}", f"--object-store-memory={80 << 20}", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}", "--disable-usage-stats", "--block",
        # Nodes of one folder would unpack what a job brings along over each other.
        f"--temp-dir={cluster.folder.parent / 'node'}",
    ]  # fmt: skip
    node = subprocess.Popen(
        command,
        env=cluster.environment(RAY_AUTH_MODE="token"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def kill() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(node.pid)
            for process in [whole, *whole.children(recursive=True)]:  # each in a process group of its own
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    try:
        end = time.monotonic() + START_S
        while _num_nodes(cluster) < 2:
            assert time.monotonic() < end, "the node did not join"
            time.sleep(0.5)
        yield kill
    finally:
        kill()


def _num_nodes(cluster: LocalCluster) -> int:
    token = (cluster.home / ".ray" / "auth_token").read_text().strip()
    asked = urllib.request.Request(
        f"{cluster.address}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE",
        headers={"Authorization": f"Bearer {token}"},
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=10) as page:
        return int(json.load(page)["data"]["result"]["total"])
    return 0


def _await(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and head.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
        except urllib.error.HTTPError:  # it is there, and asks for a token
            return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the cluster did not start: {log.read_text(errors='replace')[-2000:]}")
