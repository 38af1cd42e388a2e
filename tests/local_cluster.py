"""A real Ray cluster of one node, started by cluster/local.sh with ports, folder and token of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """

    address: str
    home: Path
    folder: Path
    metrics_port: int

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a user of the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", **more}


def free_ports(count: int) -> list[int]:
    """Return free ports, outside those that Ray gives its workers."""
    ports: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 32000):
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
    cluster = LocalCluster(f"http://127.0.0.1:{dashboard}", home, folder / "ray", metrics)
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
