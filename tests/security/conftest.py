"""A canary, and a base model that anything may be added to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from canary import Canary
from toy_models import make_toy_model


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "it-was-run")


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(toy_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_base, tmp_path / "model"))
