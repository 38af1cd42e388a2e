"""Fixtures: a local Ray for the whole session, and the folder of shared test data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Toy models gain nothing from a second thread, and its barriers wait for whatever else runs. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A token in the home folder would turn authentication on in this process alone.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Other tests may have a cluster on this machine, which Ray would join.
os.environ["RAY_ADDRESS"] = "local"
# A loaded machine is no defect.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


def find_test_data() -> Path | None:
    """Return the folder that POLYPERSONA_TEST_DATA names, or ../shared/data beside the checkout."""
    for folder in (os.environ.get("POLYPERSONA_TEST_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def test_data() -> Path:
    folder = find_test_data()
    if folder is None:
        if os.environ.get("CI"):
            pytest.fail("the shared test data is missing: set POLYPERSONA_TEST_DATA")
        pytest.skip("the shared test data is missing: set POLYPERSONA_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real local Ray with two CPUs, shared by the session."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    yield
    ray.shutdown()
