"""pytest tests/models/test_shapes.py"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_models import FAMILIES, make_toy_model

from polypersona.errors import ModelError
from polypersona.models.catalogue import BASE_MODELS, FAMILY_TARGETS
from polypersona.models.shapes import CONFIGS, load_shape, measure_shape, shape_of


def test_the_shapes_of_the_catalogue_have_the_published_number_of_parameters() -> None:
    assert set(CONFIGS) | {"tiny"} == set(BASE_MODELS)
    for name in CONFIGS:
        known, shape = BASE_MODELS[name], load_shape(name)
        assert (shape.num_parameters, shape.family) == (known.num_parameters, known.family)
        assert shape.lora_targets == FAMILY_TARGETS[known.family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_read_from_a_config_is_that_of_the_built_model(family: str, tmp_path: Path) -> None:
    folder = make_toy_model(family, tmp_path)
    read, built = load_shape(str(folder)), measure_shape(str(folder))
    by_size = {(one.name, one.in_features, one.out_features, one.count, one.has_bias) for one in read.linears}
    assert by_size == {(one.name, one.in_features, one.out_features, one.count, one.has_bias) for one in built.linears}
    assert replace(read, linears=()) == replace(built, linears=())


def test_a_family_nobody_has_described_is_built_without_weights(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    shape = load_shape(str(tmp_path))
    assert (shape.num_layers, shape.num_heads, shape.head_dim, shape.hidden_size) == (2, 4, 16, 64)
    assert shape.num_parameters == sum(parameter.numel() for parameter in GPT2LMHeadModel(config).parameters())
    assert {"c_attn", "c_fc"} <= set(shape.lora_targets)
    assert {one.name: one.out_features for one in shape.linears}["c_fc"] == 256
    assert shape_of(GPT2LMHeadModel(config)) == shape


def test_a_config_that_describes_no_model_is_one_sentence(tmp_path: Path) -> None:
    folder = make_toy_model("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("hidden_size")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"does not describe a model: KeyError 'hidden_size'"):
        load_shape(str(folder))
