"""Recipe → engine settings: weights located and identified, options no engine of this version has refused.

Gives `EngineSettings` without any `auto` left. Loads no weights, starts no Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypersona.engines.base import EngineSettings
from polypersona.engines.registry import ENGINES
from polypersona.errors import EngineError, ModelError
from polypersona.recipe import Recipe
from polypersona.scheduling.policy import MODEL_ENGINES
from polypersona.storage import RunDirectory

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter/adapter_config.json"
# What an engine's answers mean. A change that makes other answers from the same settings raises its number.
ENGINE_VERSIONS = {"packed": 1, "rules": 1, "fake": 1}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that answer: where they are, and what identifies them. Empty for an engine without a model.

    `adapter_run` is the run directory that the adapter is copied from where that is not on a local file system.
    """

    model: str = ""
    model_hash: str = ""
    model_bytes: int | None = None
    adapter: str = ""
    adapter_hash: str = ""
    adapter_name: str = "none"
    adapter_run: RunDirectory | None = None


def refuse_unsupported(recipe: Recipe) -> None:
    """Refuse what this version's engines cannot do.

    Raises:
        EngineError: names the option and what is allowed.
    """
    generate = recipe.generate
    if generate.engine not in ENGINES:
        raise EngineError(
            f"generate.engine: {generate.engine!r} is not part of this version.", f"Choose {', '.join(ENGINES)}."
        )
    for key, value, allowed in (
        ("context", generate.context, "none"),
        ("calibration", generate.calibration, "none"),
        ("max_hours", generate.max_hours, None),
    ):
        if value != allowed:
            shown = "null" if allowed is None else allowed
            raise EngineError(
                f"generate.{key}: {value!r} is not part of this version.", f"Set generate.{key}: {shown}."
            )
    if generate.order == "random" and recipe.instrument.show_options == "none":
        raise EngineError(
            "generate.order: random changes nothing where instrument.show_options is none.",
            "Set generate.order: fixed, or show the options.",
        )


def base_bytes(recipe: Recipe) -> int | None:
    """Return the size of the base model's weights; None for a model of the hub and for an engine without a model.

    Raises:
        ModelError: no such model.
    """
    from polypersona.models.location import is_hub_id, locate_model

    if recipe.generate.engine not in MODEL_ENGINES or is_hub_id(model := locate_model(recipe.model.base)):
        return None
    return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))


def locate_weights(recipe: Recipe, run: RunDirectory) -> Weights:
    """Return the weights the recipe names, checked and hashed.

    Raises:
        ModelError: no such model or adapter, or an adapter of another base.
    """
    if recipe.generate.engine not in MODEL_ENGINES:
        return Weights()
    from polypersona.models.location import locate_model, model_hash

    model, size = locate_model(recipe.model.base), base_bytes(recipe)
    identity = model_hash(recipe.model.base, recipe.model.revision)
    if recipe.model.adapter == "none":
        return Weights(model, identity, size)
    from polypersona.models.adapters import adapter_hash, check_adapter

    is_own = recipe.model.adapter == "run"
    if is_own and not run.exists(ADAPTER_CONFIG):
        raise ModelError(f"There is no {run.path(ADAPTER)}.", "Run the finetune stage, or set model.adapter: none.")
    is_remote = is_own and not run.is_local
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_folder(run, ADAPTER, Path(scratch)) if is_remote else _adapter_folder(recipe, run)
        folder = check_adapter(str(folder), model, recipe.model.revision)
        return Weights(
            model=model,
            model_hash=identity,
            model_bytes=size,
            adapter="" if is_remote else str(folder),
            adapter_hash=adapter_hash(folder),
            adapter_name="run" if is_own else folder.name,
            adapter_run=run if is_remote else None,
        )


def build_settings(recipe: Recipe, frozen: Mapping[str, Any], weights: Weights) -> EngineSettings:
    """Return the engine's settings; `frozen` are the values that `auto` was resolved to at the run's first start."""
    generate = recipe.generate
    return EngineSettings(
        engine=generate.engine,
        seed=recipe.seed,
        model=weights.model,
        revision=recipe.model.revision,
        adapter=weights.adapter,
        dtype=frozen["dtype"],
        quantization=frozen["quantization"],
        trust_remote_code=recipe.model.trust_remote_code,
        show_options=recipe.instrument.show_options,
        closed=generate.closed,
        rationale=generate.rationale,
        temperature=generate.temperature,
        top_k=generate.top_k,
        top_p=generate.top_p,
        min_p=generate.min_p,
        max_new_tokens=generate.max_new_tokens,
        slots=frozen["slots"],
        threads=frozen["threads"],
    )


def copy_folder(run: RunDirectory, folder: str, target: Path) -> Path:
    """Copy the files of a folder of the run to a local folder and return that."""
    for name in run.names(folder):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(run.read(name))
    return target / folder


def _adapter_folder(recipe: Recipe, run: RunDirectory) -> Path:
    return run.local_path(ADAPTER) if recipe.model.adapter == "run" else Path(recipe.model.adapter).expanduser()
