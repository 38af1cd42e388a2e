"""Whether all nodes of a cluster see one local run directory: a marker file, looked for on each of them.

A path that only looks the same on two machines would scatter a run's shards over their disks.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polypersona.errors import StorageError
from polypersona.scheduling.inventory import here, is_alive
from polypersona.storage import RunDirectory

FOLDER = "probes"
PROBE_TIMEOUT_S = 60.0
# A network file system may show a new file late.
PATIENCE_S = 5.0


@contextlib.contextmanager
def held_marker(run: RunDirectory, nodes: Sequence[str]) -> Iterator[Path | None]:
    """Hold a marker file in a local run directory, after every other node has shown that it sees the directory.

    Args:
        run: where the run's files are; None is given for a URL, which every node can reach.
        nodes: ids of the nodes that are to write there; this one may be among them.

    Raises:
        StorageError: a node does not see the directory, or this one does not see what the node wrote.
    """
    if not run.is_local:
        yield None
        return
    folder = run.local_path(FOLDER)
    with contextlib.suppress(FileNotFoundError):  # what a driver left that was killed
        _clear(folder)
    marker = folder / uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise StorageError(
            f"{marker} cannot be written: {error.strerror or error}.", "Free space or choose a folder you may write to."
        ) from error
    try:
        _ask_nodes(run, marker, [node for node in nodes if node != here()])
        yield marker
    finally:
        with contextlib.suppress(OSError):
            _clear(folder)


def refuse_unseen(run: RunDirectory, marker: Path | None) -> None:
    """Refuse to work on a node that does not see the run directory; for actors, on nodes that joined later.

    Raises:
        StorageError: it does not.
    """
    if marker is not None and not _is_there(marker):
        raise _not_shared(run, here())


def answer_probe(marker: str, node: str) -> bool:
    """Return whether this node sees the marker; if so, write one beside it for the driver to see."""
    path = Path(marker)
    if not _is_there(path):
        return False
    path.with_name(f"{path.name}.{node}").touch()
    return True


def _ask_nodes(run: RunDirectory, marker: Path, nodes: Sequence[str]) -> None:
    probe = ray.remote(num_cpus=0, max_retries=0)(answer_probe)
    asked = {
        node: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            str(marker), node
        )
        for node in nodes
    }
    for node, answer in asked.items():
        try:
            is_seen = ray.get(answer, timeout=PROBE_TIMEOUT_S)
        except GetTimeoutError as error:
            raise StorageError(
                f"Node {node} did not say within {PROBE_TIMEOUT_S:.0f} s whether it sees {run.location}.",
                "Look at that node, or take it out of the cluster.",
            ) from error
        except RayError as error:
            if not is_alive(node):
                continue  # it left the cluster meanwhile
            raise StorageError(
                f"Node {node} cannot write to {run.location}: {str(error).strip().splitlines()[-1]}.",
                "Give `out` as a path that all nodes share and may write to, or as a URL such as s3://bucket/runs.",
            ) from error
        if not is_seen or not _is_there(marker.with_name(f"{marker.name}.{node}")):
            raise _not_shared(run, node)


def _is_there(path: Path) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
    return True


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()


def _not_shared(run: RunDirectory, node: str) -> StorageError:
    return StorageError(
        f"{run.location} is not shared with node {node}: a file written on one node is not there on the other.",
        "Give `out` as a path that all nodes share, or as a URL such as s3://bucket/runs.",
    )
