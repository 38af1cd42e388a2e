"""The files in cluster/ as values, for the tests of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def ray_up_file() -> dict[str, Any]:
    """Return ray-up.yaml."""
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    return content


def documents(name: str) -> list[dict[str, Any]]:
    """Return the documents of a Kubernetes file."""
    return [document for document in yaml.safe_load_all((CLUSTER / name).read_text()) if document]


def document(name: str, kind: str) -> dict[str, Any]:
    """Return the one document of a kind."""
    (found,) = [one for one in documents(name) if one["kind"] == kind]
    return found


def groups() -> list[dict[str, Any]]:
    """Return the groups of the RayCluster, its head's first."""
    spec = document("raycluster.yaml", "RayCluster")["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def submitter() -> dict[str, Any]:
    """Return the container of the Job that submits."""
    (container,) = document("submit-job.yaml", "Job")["spec"]["template"]["spec"]["containers"]
    return container
