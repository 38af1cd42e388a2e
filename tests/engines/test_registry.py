"""pytest tests/engines/test_registry.py"""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from polypersona.engines.base import EngineSettings
from polypersona.engines.registry import ENGINES, load_engine
from polypersona.engines.settings import ENGINE_VERSIONS
from polypersona.errors import EngineError, ModelError
from polypersona.recipe_sections import GenerateRecipe


def test_the_engines_are_those_the_recipe_may_name() -> None:
    assert get_args(GenerateRecipe.model_fields["engine"].annotation) == ENGINES


@pytest.mark.parametrize("name", ["rules", "fake"])
def test_an_engine_is_found_by_its_name(name: str) -> None:
    engine = load_engine(EngineSettings(engine=name, seed=7))
    assert engine.name == name
    assert engine.answer([]) == []
    engine.close()


def test_every_engine_has_a_version_of_its_meaning() -> None:
    assert set(ENGINES) == set(ENGINE_VERSIONS)


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(EngineError, match="Did you mean 'rules'") as caught:
        load_engine(EngineSettings(engine="rule", seed=7))
    assert "packed" in caught.value.hint
    with pytest.raises(EngineError, match="Did you mean 'vllm'"):
        load_engine(EngineSettings(engine="vlm", seed=7))


def test_a_missing_model_is_a_users_mistake(tmp_path) -> None:
    with pytest.raises(ModelError):
        load_engine(EngineSettings(engine="packed", seed=7, model=str(tmp_path / "none")))


def test_light_engines_load_no_torch() -> None:
    code = (
        "import sys; from polypersona.engines.registry import *;"
        "load_engine(EngineSettings('rules', 7)); load_engine(EngineSettings('fake', 7));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
