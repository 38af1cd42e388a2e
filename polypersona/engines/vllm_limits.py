"""What vLLM 0.29 cannot do of what a recipe may ask for, refused by name. Needs no vLLM to say so."""

from __future__ import annotations

import json
from pathlib import Path

from polypersona.engines.base import EngineSettings
from polypersona.errors import EngineError

# SamplingParams: below the lower bound vLLM would raise a temperature silently, above the upper it refuses.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
# How many tokens a request may name to get their log probabilities.
MAX_TOKEN_IDS = 128
# The ranks vLLM makes room for; an adapter fits the next larger one.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ADAPTER_CONFIG = "adapter_config.json"
# Keys of an adapter's configuration that vLLM refuses or, worse, does not read: the ranks and alphas of single modules.
UNREAD_KEYS = (
    "alpha_pattern", "layer_replication", "lora_bias", "modules_to_save", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora",
)  # fmt: skip


def check_settings(settings: EngineSettings) -> None:
    """Refuse what vLLM does not support.

    Raises:
        EngineError: names the option and what is allowed.
    """
    if settings.quantization != "none":
        raise EngineError(
            f"model.quantization: {settings.quantization} is not part of the vllm engine: vLLM 0.29 quantises nothing "
            "with bitsandbytes.",
            "Set model.quantization: none with a model.base that is stored quantised (AWQ, GPTQ), or choose "
            "generate.engine: packed.",
        )
    if settings.temperature and not MIN_TEMPERATURE <= settings.temperature <= MAX_TEMPERATURE:
        raise EngineError(
            f"generate.temperature: {settings.temperature:g} is not part of the vllm engine, which takes 0 and "
            f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}.",
            "Choose a temperature in that range, or generate.engine: packed.",
        )
    if settings.adapter:
        lora_rank(Path(settings.adapter))


def lora_rank(adapter: Path) -> int:
    """Return the rank vLLM has to make room for.

    Raises:
        EngineError: the adapter has what vLLM does not read, or too large a rank.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is no configuration of a LoRA adapter: {type(error).__name__} {error}.",
            "Name an adapter's folder, or set model.adapter: none.",
        ) from error
    unread = [key for key in UNREAD_KEYS if config.get(key)]
    if config.get("bias", "none") != "none":
        unread.append("bias")
    if unread:
        raise EngineError(
            f"The adapter {adapter} has {', '.join(unread)}, which vLLM does not read.",
            "Choose generate.engine: packed.",
        )
    fitting = [allowed for allowed in LORA_RANKS if allowed >= rank]
    if not fitting:
        raise EngineError(
            f"The adapter {adapter} has rank {rank}; vLLM takes at most {LORA_RANKS[-1]}.",
            "Choose generate.engine: packed.",
        )
    return fitting[0]
