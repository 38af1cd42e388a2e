"""Where a base model's files are and what identifies them: the name `tiny`, a folder or a Hugging Face id.

Gives every failure to find a model as one sentence. Loads no weights and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from polypersona.errors import ModelError, nearest
from polypersona.models.catalogue import BASE_MODELS
from polypersona.resources import tiny_model

TINY = "tiny"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# What decides what a model says; a README or the optimiser's state beside it does not.
_IDENTITY = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_CHUNK_BYTES = 1 << 20


def locate_model(model: str) -> str:
    """Return what Hugging Face libraries load: a checked absolute folder, or the hub id as it is.

    Raises:
        ModelError: neither a model folder nor the form of a hub id.
    """
    if model == TINY:
        return str(tiny_model())
    folder = Path(model).expanduser()
    if folder.exists():
        return str(_checked_folder(folder.absolute()))
    if _HUB_ID.fullmatch(model):
        return model
    raise ModelError(
        f"{model!r} is neither a folder nor a Hugging Face id.{nearest(model, [TINY, *BASE_MODELS])}",
        "Set model.base to tiny, a folder with config.json and *.safetensors, or an id such as microsoft/phi-2.",
    )


def model_name(model: str) -> str:
    """Return how a model is named where its place means nothing: a folder's own name, or the hub id."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".")) else model


def is_hub_id(location: str) -> bool:
    """Return whether a location from `locate_model` is a hub id, not a folder."""
    return not Path(location).is_absolute()


def check_tokenizer_files(location: str) -> None:
    """Refuse a folder that holds no tokenizer; a hub id is not looked at.

    Raises:
        ModelError: none of the tokenizer files is there.
    """
    if is_hub_id(location) or any((Path(location) / name).is_file() for name in _TOKENIZER_FILES):
        return
    raise ModelError(
        f"The model folder {location} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}).",
        "Save the model's tokenizer into that folder.",
    )


def model_hash(model: str, revision: str | None = None) -> str:
    """Return what identifies the weights, configuration and tokenizer of a model.

    For a folder the hex BLAKE2b digest of those files' names and bytes; for a hub id `id@commit`.

    Raises:
        ModelError: no such model, or the hub cannot be asked.
    """
    location = locate_model(model)
    if is_hub_id(location):
        return f"{location}@{hub_commit(location, revision)}"
    folder = Path(location)
    names = [name for name in _IDENTITY if (folder / name).is_file()]
    return files_hash([folder / name for name in names] + sorted(folder.glob("*.safetensors")))


def weight_bytes(model: str) -> int | None:
    """Return the size of a model's weights: of a folder its files', of a known hub id 16 bits a parameter, else None.

    Raises:
        ModelError: neither a model folder nor the form of a hub id.
    """
    location = locate_model(model)
    if is_hub_id(location):
        known = BASE_MODELS.get(location)
        return known.num_parameters * 2 if known else None
    return sum(path.stat().st_size for path in Path(location).glob("*.safetensors"))


def files_hash(paths: list[Path]) -> str:
    """Return the hex digest of the files' names and bytes, in the order given."""
    state = hashlib.blake2b(digest_size=16)
    for path in paths:
        state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                state.update(chunk)
    return state.hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON file of a model folder.

    Raises:
        ModelError: it is missing or not a JSON mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"There is no {path}.", "Name a folder that holds the whole model or adapter.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}.", "Restore the file.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON mapping.", "Restore the file.")
    return content


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"The model {folder} is a file, not a folder.", "Name the folder that holds config.json.")
    if not (folder / "config.json").is_file():
        is_adapter = (folder / ADAPTER_CONFIG).is_file()
        hint = "Set model.adapter to it, and model.base to its base model." if is_adapter else "Name a model folder."
        raise ModelError(f"The model folder {folder} holds no config.json.", hint)
    read_config(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        raise _no_safetensors(f"The model folder {folder} holds no *.safetensors")
    if (folder / WEIGHTS_INDEX).is_file():
        check_weights_index(folder / WEIGHTS_INDEX)
    if (folder / ADAPTER_CONFIG).is_file():
        raise embedded_adapter(str(folder))
    return folder


def check_weights_index(index: Path) -> None:
    """Refuse a list of weight files that names anything but *.safetensors beside it.

    Raises:
        ModelError: it names another file, or is no such list.
    """
    weight_map = read_config(index).get("weight_map")
    files = set(weight_map.values()) if isinstance(weight_map, dict) else {None}
    for name in files:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise _no_safetensors(f"{index} names {name!r} as a file of weights, which is no *.safetensors beside it")


def check_hub_weights(hub_id: str, revision: str | None) -> None:
    """Refuse a hub model whose weights are not safetensors.

    Raises:
        ModelError: it has none, or the hub cannot be asked.
    """
    index = hub_file(hub_id, WEIGHTS_INDEX, revision)
    if index is not None:
        check_weights_index(index)
    elif hub_file(hub_id, "model.safetensors", revision) is None:
        raise _no_safetensors(f"The model {hub_id!r} has no model.safetensors")


def refuse_hub_adapter(hub_id: str, revision: str | None) -> None:
    """Refuse a hub model that brings an adapter along, with which the libraries would load another base.

    Raises:
        ModelError: it has an adapter, or the hub cannot be asked.
    """
    if hub_file(hub_id, ADAPTER_CONFIG, revision) is not None:
        raise embedded_adapter(hub_id)


def embedded_adapter(model: str) -> ModelError:
    """Return the refusal of a base model with an adapter among its files: what answers would not be what is named."""
    return ModelError(
        f"The base model {model} holds an {ADAPTER_CONFIG}, so an adapter would be put on it unasked.",
        "Move the adapter into a folder of its own, and set model.adapter to that.",
    )


def hub_file(hub_id: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a hub model in the cache, fetched where it is not there; None where the model has none."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(hub_id, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise hub_error(hub_id, error) from error
    return None if path is None else Path(path)


def _no_safetensors(what: str) -> ModelError:
    return ModelError(
        f"{what}; pickled weights are not loaded.", "Save the model with save_pretrained, which writes safetensors."
    )


def hub_commit(hub_id: str, revision: str | None) -> str:
    """Return the commit of a hub model, fetching its config.json where the cache lacks it.

    Raises:
        ModelError: there is no such model, it is gated, or the hub cannot be reached and the cache lacks it.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(hub_id, "config.json", revision=revision)
    except OSError as error:
        raise hub_error(hub_id, error) from error
    return extract_commit_hash(str(path), None) or (revision or "main")


def hub_error(hub_id: str, error: Exception) -> ModelError:
    """Return the named form of a failed download: the first line of what the hub's client said."""
    said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    known = BASE_MODELS.get(hub_id)
    gate = f" {hub_id} is gated: accept its licence on the hub and set HF_TOKEN." if known and known.is_gated else ""
    return ModelError(
        f"The model {hub_id!r} cannot be loaded from the Hugging Face hub or its cache: {said}",
        f"Check the id and the network, or set model.base to a folder that holds it, or to tiny.{gate}",
    )
