"""vLLM itself: imported, started with a model and an adapter, ended. Nothing of it is loaded before `load_library`."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from polypersona.engines.base import EngineSettings
from polypersona.engines.vllm_limits import lora_rank
from polypersona.errors import EngineError, MissingExtraError, ModelError
from polypersona.extras import load_extra
from polypersona.scheduling.generation_plan import VLLM_CPU_CACHE_BYTES

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# vLLM's CPU build would share prefixes in blocks of 128 tokens, all of many a persona; it prefers multiples of 32.
CPU_BLOCK_TOKENS = 32
_MODULES = ("lora.request", "v1.engine.exceptions", "exceptions", "platforms")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Library:
    """What is used of vLLM: three of its classes, and the modules `_MODULES`."""

    model: Any
    sampling_params: Any
    tokens_prompt: Any
    lora: Any
    dead: Any
    exceptions: Any
    platforms: Any


def load_library() -> Library:
    """Import vLLM, told first to report nothing to anybody.

    Raises:
        MissingExtraError: it is not installed, or not for this machine.
        EngineError: it finds nothing to compute on.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    top = load_extra("vllm", "generate.engine: vllm answers")
    try:
        parts = [importlib.import_module(f"vllm.{name}") for name in _MODULES]
        library = Library(top.LLM, top.SamplingParams, top.TokensPrompt, *parts)
    except ImportError as error:
        raise MissingExtraError(
            f"vLLM is installed and cannot be imported: {first_line(error)}.",
            "Run `pip install 'polypersona[vllm]'` in a fresh environment, on a machine that vLLM has a build for.",
        ) from error
    if library.platforms.current_platform.is_unspecified():
        raise EngineError(
            "vLLM finds no GPU on this machine, and is not its CPU build.",
            "Run on a GPU, install vLLM's CPU build, or choose generate.engine: packed.",
        )
    return library


def llm_options(settings: EngineSettings, *, is_cpu: bool) -> dict[str, Any]:
    """Return what vLLM's `LLM` is started with, besides the model's name."""
    options: dict[str, Any] = {
        "revision": settings.revision,
        "tokenizer_revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "load_format": "safetensors",  # never pickled weights
        "dtype": DTYPES[settings.dtype],
        "max_num_seqs": settings.slots,
        "max_model_len": -1,  # the model's own, or as much as the memory holds
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",  # before temperature, penalties and the choice among allowed tokens
        "generation_config": "vllm",  # no default comes from a file beside the weights
    }
    if settings.adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(Path(settings.adapter))}
    if is_cpu:
        options |= {"block_size": CPU_BLOCK_TOKENS, "kv_cache_memory_bytes": VLLM_CPU_CACHE_BYTES}
    return options


def load_llm(library: Library, settings: EngineSettings) -> Any:
    """Start vLLM with the model.

    Raises:
        ModelError: vLLM does not know such a model, or an option contradicts it. What fails while it starts, such as
            memory that another process has not freed yet, comes as vLLM raises it, and may be tried again.
    """
    options = llm_options(settings, is_cpu=library.platforms.current_platform.is_cpu())
    try:
        return library.model(settings.model, **options)
    except ValueError as error:
        raise ModelError(
            f"vLLM cannot run {settings.model!r}: {first_line(error)}.", "Choose generate.engine: packed."
        ) from error


def load_adapter(library: Library, llm: Any, adapter: str) -> Any:
    """Load the adapter and return the request that names it; None without one.

    Raises:
        ModelError: vLLM cannot load it.
    """
    if not adapter:
        return None
    request = library.lora.LoRARequest("adapter", 1, adapter)
    try:
        llm.llm_engine.add_lora(request)
    except Exception as error:
        if isinstance(error, library.dead.EngineDeadError):
            end_process(error)
        shut_down(llm)
        raise ModelError(
            f"vLLM cannot load the adapter {adapter}: {first_line(error)}.", "Choose generate.engine: packed."
        ) from error
    return request


def shut_down(llm: Any) -> None:
    """End vLLM's process, which frees its memory."""
    llm.llm_engine.engine_core.shutdown()


def end_process(error: Exception) -> NoReturn:
    """End this process: vLLM's own has died, and nothing is known of its GPU's state."""
    _log.critical("vLLM's engine died (%s); this process ends, to be started anew.", first_line(error))
    os._exit(1)


def first_line(error: Exception) -> str:
    """Return what an error says, in one line without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
