"""Fixtures: a toy base model for the training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_models import make_toy_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")
