"""Loading: what is refused, in one sentence, and what every tokenizer comes out with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from toy_models import CHATML, make_toy_model, make_toy_tokenizer

from polypersona.chatml import encode_example, encode_prompt
from polypersona.errors import ModelError
from polypersona.models.adapters import check_adapter
from polypersona.models.loading import load_base_model, load_model, load_tokenizer, model_hash
from polypersona.models.lora import attach_lora

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "Yes."}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def broken(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "broken"))


def test_a_tokenizer_pads_on_the_left_whatever_was_saved(base: Path) -> None:
    assert json.loads((base / "tokenizer_config.json").read_text()).get("padding_side", "right") == "right"
    tokenizer = load_tokenizer(str(base))
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None
    assert tokenizer.model_max_length == 512


def test_a_tokenizer_without_pad_token_or_limit_gets_both(broken: Path) -> None:
    tokenizer = make_toy_tokenizer()
    tokenizer.pad_token = None
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(broken)
    loaded = load_tokenizer(str(broken))
    assert loaded.pad_token == "<|im_end|>"
    assert loaded.model_max_length == 512


def test_a_template_that_opens_a_thought_is_made_to_answer_at_once(broken: Path) -> None:
    opened = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\\n' }}{% endif")
    assert opened != CHATML
    make_toy_tokenizer(opened).save_pretrained(broken)
    tokenizer = load_tokenizer(str(broken))
    prompt, answer = encode_example(tokenizer, ASKED)
    assert prompt == encode_prompt(tokenizer, ASKED[:-1])
    assert "think" not in tokenizer.decode(prompt)
    assert tokenizer.decode(answer) == "Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "Did you mean 'tiny'?"),
        ("/no/such/folder", "neither a folder nor a Hugging Face id"),
        ("a b", "neither a folder nor a Hugging Face id"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name, dtype="fp32")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no *.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(broken: Path, damage: object, message: str) -> None:
    damage(broken)  # type: ignore[operator]
    with pytest.raises(ModelError) as caught:
        load_model(str(broken), dtype="fp32")
    assert message in caught.value.message
    assert str(broken) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_folder_without_tokenizer_is_refused(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(str(broken))


def test_missing_tensors_are_never_drawn_at_random(broken: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .* 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_base_model(str(broken), dtype="fp32")


def test_the_hash_follows_weights_tokenizer_and_config_only(base: Path, broken: Path) -> None:
    assert model_hash(str(broken)) == model_hash(str(base))
    (broken / "README.md").write_text("other")
    assert model_hash(str(broken)) == model_hash(str(base))
    make_toy_tokenizer("{{ 'other' }}").save_pretrained(broken)
    assert model_hash(str(broken)) != model_hash(str(base))


def save_adapter(base: Path, folder: Path, base_name: str) -> Path:
    model = load_base_model(str(base), dtype="fp32")
    attach_lora(model, rank=4, alpha=8, dropout=0.0).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base_name}))
    return folder


def test_an_adapter_of_another_base_is_refused_by_hash(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", str(base))
    other = make_toy_model("llama", tmp_path / "other", seed=1)
    (adapter / "training.json").write_text(json.dumps({"base": {"name": "x", "hash": model_hash(str(base))}}))
    assert check_adapter(str(adapter), str(base)) == adapter
    with pytest.raises(ModelError, match="its weights or tokenizer differ"):
        load_model(str(other), dtype="fp32", adapter=str(adapter))


def test_an_adapter_of_another_base_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", "someone/else")
    with pytest.raises(ModelError, match="was made for 'someone/else'"):
        load_model(str(base), dtype="fp32", adapter=str(adapter))


def test_an_adapter_with_a_tensor_too_few_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(base, tmp_path / "adapter", str(base))
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 tensors differ"):
        load_model(str(base), dtype="fp32", adapter=str(adapter))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", str(base))
    (adapter / name).unlink()
    with pytest.raises(ModelError):
        load_model(str(base), dtype="fp32", adapter=str(adapter))
    with pytest.raises(ModelError, match="There is no adapter folder"):
        load_model(str(base), dtype="fp32", adapter=str(tmp_path / "none"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot be loaded from the Hugging Face hub") as caught:
        load_tokenizer("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_dtype_is_what_was_asked(base: Path) -> None:
    model = load_model(str(base), dtype="bf16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not model.training
