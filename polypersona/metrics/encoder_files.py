"""What an encoder's files say of it before its weights are loaded: layers, identity, and how it makes sentence vectors.

A folder or a hub id. No code that an encoder brings along is run, and pickled weights are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypersona.errors import ModelError
from polypersona.models.location import check_hub_weights, hub_file, locate_model, model_hash, refuse_hub_adapter

# Of the modules of sentence-transformers beside pooling, those that change no cosine.
_MODULES = ("Transformer", "Normalize")


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """How many hidden layers an encoder has, and what identifies its weights."""

    num_layers: int
    identity: str


def describe_encoder(model: str, key: str) -> EncoderFacts:
    """Return the facts of an encoder that the recipe names under a key.

    Raises:
        ModelError: its configuration cannot be read, it runs code of its own, or its weights are pickled.
    """
    from transformers import AutoConfig

    try:
        # False, not the default: that asks on a terminal whether to run the code that the encoder brings along.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        num_layers = int(config.num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{key}: {model!r} is no encoder that can be loaded.",
            "Name a folder or hub id of an encoder, or leave the key out.",
        ) from error
    if Path(model).is_dir():
        locate_model(model)
        return EncoderFacts(num_layers, model_hash(model))
    check_hub_weights(model, None)
    refuse_hub_adapter(model, None)
    return EncoderFacts(num_layers, f"{model}@{getattr(config, '_commit_hash', None)}")


def most_tokens(model: str, key: str) -> int | None:
    """Return how many tokens a sentence encoder takes by its own files, None where they do not say.

    Files of sentence-transformers are read; an encoder without them is taken as it is.

    Raises:
        ModelError: by those files a sentence's vector is no mean of its tokens' vectors.
    """
    try:
        for module in _read(model, "modules.json") or ():
            _refuse_other_vectors(model, key, module)
        limit = (_read(model, "sentence_bert_config.json") or {}).get("max_seq_length")
        return None if limit is None else int(limit)
    except ModelError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{key}: the files that say how {model!r} makes sentence vectors are none of sentence-transformers.",
            "Restore modules.json, sentence_bert_config.json and the folder of the pooling module.",
        ) from error


def _refuse_other_vectors(model: str, key: str, module: Mapping[str, Any]) -> None:
    kind = str(module["type"]).rpartition(".")[2]
    if kind == "Pooling":
        ways = _pooling(_read(model, f"{module['path']}/config.json"))
        if ways != ["mean"]:
            raise _not_a_mean(model, key, f"pools by {', '.join(ways) or 'nothing known'}")
    elif kind not in _MODULES:
        raise _not_a_mean(model, key, f"has a module {kind}")


def _pooling(config: Mapping[str, Any]) -> list[str]:
    """Return the ways of a pooling module: one key names them, or, in older files, is true for each."""
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    prefix = "pooling_mode_"
    ways = [name.removeprefix(prefix) for name, is_on in config.items() if name.startswith(prefix) and is_on]
    return ["mean" if way == "mean_tokens" else way for way in ways]


def _read(model: str, name: str) -> Any:
    """Return a JSON file of an encoder, None where there is none.

    Raises:
        ModelError: it is no JSON.
    """
    path = Path(model) / name if Path(model).is_dir() else hub_file(model, name, None)
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}.", "Restore the file.") from error


def _not_a_mean(model: str, key: str, what: str) -> ModelError:
    return ModelError(
        f"{key}: the sentence encoder {model!r} {what}, so its vectors are no mean of its tokens'.",
        "Name an encoder with mean pooling, such as sentence-transformers/all-MiniLM-L6-v2.",
    )
