"""Tokenizers and models, from the name in a recipe to objects that answer or train.

Weights come from safetensors only; code of a model repository runs only where the recipe asks for it. Knows no recipe,
no engine and no Ray.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from polypersona.errors import ModelError
from polypersona.models.adapters import attach_adapter, merge_adapter
from polypersona.models.location import (
    check_hub_weights,
    check_tokenizer_files,
    hub_commit,
    hub_error,
    is_hub_id,
    locate_model,
    model_hash,
    refuse_hub_adapter,
)
from polypersona.models.quantization import (
    Quantization,
    prepare_for_answering,
    quantization_config,
    silence_bitsandbytes,
)

__all__ = [
    "DTYPES",
    "Dtype",
    "build_on_meta",
    "load_base_model",
    "load_model",
    "load_tokenizer",
    "model_hash",
    "num_parameters",
]

PreTrainedModel: TypeAlias = Any  # transformers ships no types
PreTrainedTokenizer: TypeAlias = Any
Loaded = TypeVar("Loaded")

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A tokenizer saved without a limit says 10**30, which overflows where it becomes a machine integer.
_NO_LIMIT = 10**9
_OPEN_THOUGHT = re.compile(r"<think>(?:\\n|\n)*(?=['\"])")


def load_tokenizer(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizer:
    """Load a model's tokenizer: padding on the left, a pad token, a finite length, no chain of thought opened.

    Raises:
        ModelError: no such model, no tokenizer in it, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    location = _reach(model, revision)
    check_tokenizer_files(location)
    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code, "padding_side": "left"}
    tokenizer = _loaded(location, "tokenizer", lambda: AutoTokenizer.from_pretrained(location, **options))
    if len(tokenizer) == 0:
        raise ModelError(f"The tokenizer of {model!r} has no vocabulary.", "Save the model's tokenizer again.")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        _choose_pad_token(tokenizer, model)
    if tokenizer.model_max_length > _NO_LIMIT:
        config = _load_config(location, revision, trust_remote_code)
        tokenizer.model_max_length = int(getattr(config, "max_position_embeddings", None) or 2048)
    _close_thought(tokenizer)
    return tokenizer


def load_base_model(
    model: str,
    *,
    dtype: Dtype | Literal["stored"],
    quantization: Quantization = "none",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> PreTrainedModel:
    """Load a base model without adapter, in eval mode; `stored` keeps the precision of its file.

    Raises:
        ModelError: no such model, weights missing or damaged, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    location = _reach(model, revision)
    if is_hub_id(location):
        check_hub_weights(location, revision)
    options: dict[str, Any] = {
        "dtype": "auto" if dtype == "stored" else DTYPES[dtype],
        "revision": revision or "main",
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        "weights_only": True,
        "output_loading_info": True,
    }
    if quantization != "none":
        silence_bitsandbytes()
        options.update(quantization_config=quantization_config(quantization), device_map={"": device})
    with _quiet():
        base, info = _loaded(location, "model", lambda: AutoModelForCausalLM.from_pretrained(location, **options))
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The weights of {model!r} lack {len(missing)} tensors of a {type(base).__name__}, first {missing[0]!r}.",
            "Restore the model's *.safetensors, or its config.json.",
        )
    return (base if quantization != "none" else base.to(device)).eval()


def load_model(
    model: str,
    *,
    dtype: Dtype,
    quantization: Quantization = "none",
    adapter: str = "",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> PreTrainedModel:
    """Load a model to answer with, in eval mode.

    An unquantised base takes its adapter into its weights: each layer is merged in fp32 and rounded to `dtype` once. A
    quantised base keeps the adapter beside it, because merging would requantise.

    Raises:
        ModelError: no such model or adapter, an adapter of another base, weights missing or damaged.
    """
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if quantization != "none":
        base = load_base_model(model, dtype=dtype, quantization=quantization, device=device, **source)
        answering = attach_adapter(base, adapter, model, revision) if adapter else base
        prepare_for_answering(answering)
        return answering.eval()
    if not adapter:
        return load_base_model(model, dtype=dtype, device=device, **source)
    base = load_base_model(model, dtype="stored", **source)
    merged = merge_adapter(attach_adapter(base, adapter, model, revision), DTYPES[dtype])
    return merged.to(device).eval()


def num_parameters(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Return the number of parameters, shared ones once, from the configuration alone: no weight is read.

    Raises:
        ModelError: no such model, or the hub cannot be reached.
    """
    shape = build_on_meta(model, revision=revision, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in shape.parameters())


def build_on_meta(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a model of the configuration's shape on the meta device: no weight is read or held.

    Raises:
        ModelError: no such model, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    location = _reach(model, revision)
    config = _load_config(location, revision, trust_remote_code)
    with torch.device("meta"):
        return _loaded(
            location,
            "model",
            lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code),
        )


def _reach(model: str, revision: str | None) -> str:
    """Locate a model, and ask the hub once: each of its libraries would wait through its own retries."""
    location = locate_model(model)
    if is_hub_id(location):
        hub_commit(location, revision)
        refuse_hub_adapter(location, revision)
    return location


def _load_config(location: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    return _loaded(location, "configuration", lambda: AutoConfig.from_pretrained(location, **options))


def _loaded(location: str, what: str, load: Callable[[], Loaded]) -> Loaded:
    """Call a loader; what libraries raise for a bad model becomes one sentence."""
    try:
        return load()
    except Exception as error:
        if is_hub_id(location) and isinstance(error, OSError):
            raise hub_error(location, error) from error
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        hint = "Check the folder's files."
        if "trust_remote_code" in str(error):
            hint = "Read the repository's code, and set model.trust_remote_code: true if you trust it."
        raise ModelError(f"The {what} of {location!r} cannot be loaded: {said}", hint) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bar of loaded tensors off the screen, which belongs to the stage's own bar."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _choose_pad_token(tokenizer: PreTrainedTokenizer, model: str) -> None:
    """Pad with the unknown or the end token; masks go by position, so neither is ever taken for padding."""
    pad = tokenizer.unk_token or tokenizer.eos_token
    if pad is None:
        raise ModelError(
            f"The tokenizer of {model!r} has no pad, unknown or end token.", "Set pad_token in tokenizer_config.json."
        )
    tokenizer.pad_token = pad


def _close_thought(tokenizer: PreTrainedTokenizer) -> None:
    """Take an opened chain of thought out of the template's generation prompt, so that answers begin at once."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "<think>" not in template:
        return
    asked = [{"role": "user", "content": "x"}]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    if str(tokenizer.apply_chat_template(asked, **options)).rstrip().endswith("<think>"):
        tokenizer.chat_template = _OPEN_THOUGHT.sub("", template)
