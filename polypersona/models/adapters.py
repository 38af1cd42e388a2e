"""LoRA adapters on disk: read with their base checked, attached, merged.

An adapter is a PEFT folder; one made by this project has a training.json that records the hash of its base. Knows no
recipe and no training.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from polypersona.chatml import RENDERER_VERSION
from polypersona.errors import ModelError
from polypersona.models.location import files_hash, is_hub_id, locate_model, model_hash, read_config
from polypersona.models.quantization import refuse_4bit_merge

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TRAINING = "training.json"


def check_adapter(adapter: str, model: str, revision: str | None = None) -> Path:
    """Return the adapter's folder if it is whole and was made for this base model.

    Raises:
        ModelError: no adapter there, no LoRA, pickled weights, or another base.
    """
    folder = Path(adapter).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"There is no adapter folder {folder}.", "Run finetune first, or set model.adapter: none.")
    config = read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {folder} holds no {WEIGHTS}; pickled weights are not loaded.", "Save it with safetensors."
        )
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"The adapter {folder} is of the type {config.get('peft_type')!r}; only LORA is loaded.",
            "Name a LoRA adapter, or set model.adapter: none.",
        )
    recorded = _training(folder).get("base")
    if isinstance(recorded, dict) and recorded.get("hash"):
        if recorded["hash"] != model_hash(model, revision):
            raise _other_base(folder, str(recorded.get("name")), model, "its weights or tokenizer differ")
    elif not _same_name(str(config.get("base_model_name_or_path") or ""), model):
        raise _other_base(folder, str(config.get("base_model_name_or_path")), model, "the names differ")
    return folder


def adapter_hash(adapter: str | Path) -> str:
    """Return what identifies an adapter: the hex digest of its configuration and weights."""
    folder = Path(adapter)
    return files_hash([folder / CONFIG, folder / WEIGHTS])


def rendering_warning(adapter: str | Path, show_options: str) -> str:
    """Return why an adapter may answer worse to prompts written this way; empty where it was trained on such.

    Args:
        adapter: its folder, whose training.json says how its training prompts were written.
        show_options: how the prompts it shall answer show the options.
    """
    folder = Path(adapter)
    trained = _training(folder).get("rendering")
    now = f"this recipe has instrument.show_options: {show_options}"
    if not isinstance(trained, dict):
        return f"The adapter {folder.name} does not say how its training prompts showed the options; {now}."
    if trained.get("show_options") != show_options:
        return (
            f"The adapter {folder.name} was trained on prompts with instrument.show_options: "
            f"{trained.get('show_options')}; {now}, which it has not learnt."
        )
    if trained.get("renderer_version") != RENDERER_VERSION:
        return (
            f"The adapter {folder.name} was trained on prompts of renderer version {trained.get('renderer_version')}; "
            f"this version of polypersona writes those of version {RENDERER_VERSION}."
        )
    return ""


def attach_adapter(base: Any, adapter: str, model: str, revision: str | None = None) -> Any:
    """Return the base with the adapter beside its layers; every tensor of the file must find its place.

    Raises:
        ModelError: the adapter is missing, damaged, of another base or of other shapes.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = check_adapter(adapter, model, revision)
    try:
        with quiet_peft():
            attached = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
        with safe_open(folder / WEIGHTS, framework="pt") as stream:
            stored = set(stream.keys())
    except Exception as error:
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"The adapter {folder} cannot be attached to {model!r}: {said}", "Fine-tune again.") from error
    # Without the keyword peft asks the hub whether the base's vocabulary has changed.
    expected = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
    if wrong := sorted(stored ^ expected):
        raise ModelError(
            f"The adapter {folder} does not fit {model!r}: {len(wrong)} tensors differ, first {wrong[0]!r}.",
            "Name the base model it was made for.",
        )
    return attached


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep peft's warnings off the screen: on a name deprecated in transformers, and on keys that are checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"Found missing adapter keys")
        yield


def merge_adapter(attached: Any, dtype: torch.dtype) -> Any:
    """Return the base model with the adapter in its weights, added in fp32 and rounded to `dtype` once per layer.

    Raises:
        ModelError: the base is quantised.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    refuse_4bit_merge(attached)
    for layer in [module for module in attached.modules() if isinstance(module, BaseTunerLayer)]:
        layer.get_base_layer().to(torch.float32)
        layer.to(torch.float32)
        layer.merge(safe_merge=False)
        layer.get_base_layer().to(dtype)
    merged = attached.get_base_model() if not hasattr(attached.base_model, "unload") else attached.base_model.unload()
    # Parameters only: buffers such as the rotary frequencies stay in fp32, as from_pretrained leaves them.
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    merged.config.dtype = dtype
    return merged


def _training(folder: Path) -> dict[str, Any]:
    """Return what an adapter of this project records of its training; empty for one made elsewhere."""
    return read_config(folder / TRAINING) if (folder / TRAINING).is_file() else {}


def _same_name(recorded: str, model: str) -> bool:
    if recorded == model:
        return True
    location = locate_model(model)
    if recorded == location:
        return True
    # A copy in a local folder is commonly named as the last part of the hub id.
    return not (is_hub_id(location) and "/" in recorded) and Path(recorded).name == Path(location).name


def _other_base(folder: Path, recorded: str, model: str, why: str) -> ModelError:
    return ModelError(
        f"The adapter {folder} was made for {recorded!r}, not for {model!r}: {why}.",
        f"Set model.base to {recorded}, or fine-tune an adapter for {model}.",
    )
