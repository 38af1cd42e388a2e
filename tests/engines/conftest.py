"""Fixtures of the engines' tests: toy models with a will, and the vLLM engine before a stand-in for vLLM."""

from __future__ import annotations

import sys

import pytest
import vllm_double
from packed_toys import make_lively_model
from toy_models import FAMILIES, VOCABULARY, make_toy_model

from polypersona.engines.base import EngineSettings
from polypersona.engines.registry import load_engine
from polypersona.models.loading import load_tokenizer

END = 2  # the toy tokenizer's end of turn


@pytest.fixture(scope="session")
def lively_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lively")
    return {family: make_lively_model(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory):
    return make_toy_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def vllm_tokenizer(vllm_folder):
    return load_tokenizer(str(vllm_folder))


@pytest.fixture
def vllm(vllm_tokenizer, monkeypatch):
    double = vllm_double.Double(VOCABULARY, END, vllm_tokenizer.decode)
    for name, module in double.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return double


@pytest.fixture
def build_vllm(vllm_folder, vllm):
    def engine(**options):
        return load_engine(EngineSettings("vllm", 7, model=str(vllm_folder), **{"max_new_tokens": 12, **options}))

    return engine
