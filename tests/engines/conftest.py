"""Fixtures of the engines' tests: the vLLM engine before a stand-in for vLLM."""

from __future__ import annotations

import sys

import pytest
import vllm_double
from toy_models import VOCABULARY, make_toy_model

from polypersona.engines.base import EngineSettings
from polypersona.engines.registry import load_engine
from polypersona.models.loading import load_tokenizer

END = 2  # the toy tokenizer's end of turn


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
