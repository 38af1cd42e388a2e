"""A Ray cluster on this machine: a head without CPUs, and nodes with a raylet and an object store each."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from ray.cluster_utils import Cluster

MIB = 1 << 20


class Nodes:
    """The cluster of a chaos series. What was killed is replaced by `repair`.

    Args:
        folder: of Ray's own files; a short path, because sockets lie in it.
        count: how many nodes with one CPU.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._cluster: Cluster | None = None
        logging.getLogger("ray").setLevel(logging.ERROR)  # a new head tells that it has another address
        self.repair()

    @property
    def address(self) -> str:
        """Where a driver joins."""
        assert self._cluster is not None
        return str(self._cluster.address)

    def raylets(self) -> list[int]:
        """Return the process numbers of the raylets that live, without the head's."""
        assert self._cluster is not None
        return [pid for node in self._cluster.worker_nodes if (pid := _raylet(node)) is not None]

    def kill_head(self) -> None:
        """Kill everything on the head node, as when its machine is lost; what lives elsewhere is left alone."""
        assert self._cluster is not None
        for processes in self._cluster.head_node.all_processes.values():
            for one in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.process.pid, signal.SIGKILL)

    def repair(self) -> None:
        """Bring the cluster to its size again, anew where its head is gone."""
        if self._cluster is not None and _raylet(self._cluster.head_node) is None:
            self.stop()
        if self._cluster is None:
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0, "object_store_memory": 80 * MIB, "include_dashboard": False,
                    "temp_dir": str(self._folder),
                },
            )  # fmt: skip
        self.replace_lost()

    def replace_lost(self) -> None:
        """Replace the nodes whose raylet is gone, if the head is there."""
        assert self._cluster is not None
        if _raylet(self._cluster.head_node) is None:
            return
        for node in list(self._cluster.worker_nodes):
            if _raylet(node) is None:
                self._cluster.remove_node(node, allow_graceful=False)
        while len(self._cluster.worker_nodes) < self._count:
            self._cluster.add_node(num_cpus=1, object_store_memory=80 * MIB)

    def stop(self) -> None:
        """End every process of the cluster."""
        if self._cluster is None:
            return
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)
        self._cluster = None
        time.sleep(1)  # workers end when they miss their raylet


def _raylet(node: object) -> int | None:
    """Return the process number of a node's raylet if it lives."""
    for one in node.all_processes.get("raylet", []):
        if one.process.poll() is None:
            return int(one.process.pid)
    return None
