"""Recipe → engine settings: weights located and identified, options no engine of this version has refused.

Gives `EngineSettings` without any `auto` left. Loads no weights, starts no Ray.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypersona.engines.adapter_files import copy_folder, locate_adapters
from polypersona.engines.adapter_table import AdapterEntry, AdapterTable
from polypersona.engines.base import EndpointSettings, EngineSettings
from polypersona.engines.registry import ENGINES
from polypersona.errors import EngineError, ModelError
from polypersona.recipe import Recipe
from polypersona.roster import has_several
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.storage import RunDirectory

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter/adapter_config.json"
# What an engine's answers mean. A change that makes other answers from the same settings raises its number.
ENGINE_VERSIONS = {"packed": 4, "vllm": 3, "endpoint": 3, "rules": 1, "fake": 2}

# Which engines do what the others would have to ignore.
_HONOURED_BY = {
    "context": ("packed",),
    "calibration": ("packed",),
    "length_norm": ("packed",),
    "repetition_penalty": ("packed", "vllm"),
    "stop": ("packed", "vllm", "endpoint"),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that answer: where they are, and what identifies them. Empty for an engine without a model.

    `adapter_run` is the run directory that the adapter is copied from where that is not on a local file system.
    `warnings` name what the adapter was not trained for. Of a run with several adapters all are `candidates`, by name,
    until `table` says which of them answers what.
    """

    model: str = ""
    model_hash: str = ""
    model_bytes: int | None = None
    adapter: str = ""
    adapter_hash: str = ""
    adapter_name: str = "none"
    adapter_run: RunDirectory | None = None
    warnings: tuple[str, ...] = ()
    candidates: Mapping[str, AdapterEntry] = field(default_factory=dict)
    table: AdapterTable | None = None


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
    for key, value, idle in (
        ("context", generate.context, "none"),
        ("calibration", generate.calibration, "none"),
        ("length_norm", generate.length_norm, False),
        ("repetition_penalty", generate.repetition_penalty, 1.0),
        ("stop", generate.stop, []),
    ):
        if value != idle and generate.engine not in _HONOURED_BY[key]:
            raise EngineError(
                f"generate.{key}: {value!r} is not part of the {generate.engine} engine.",
                f"Set generate.{key}: {json.dumps(idle)}, or choose generate.engine: packed.",
            )
    _refuse_idle_adapters(recipe)
    if generate.engine == "packed":
        _refuse_for_packed(recipe)
    if generate.order == "random" and recipe.instrument.show_options == "none":
        raise EngineError(
            "generate.order: random changes nothing where instrument.show_options is none.",
            "Set generate.order: fixed, or show the options.",
        )
    if generate.engine == "endpoint":
        _refuse_for_endpoint(recipe)
    if generate.engine == "vllm":
        _refuse_for_vllm(recipe)


def base_bytes(recipe: Recipe) -> int | None:
    """Return the size of the base model's weights: of a folder its files', of a known hub id 16 bits a parameter.

    None for an engine without a model, and where it is not known.

    Raises:
        ModelError: no such model.
    """
    from polypersona.models.location import weight_bytes

    return weight_bytes(recipe.model.base) if recipe.generate.engine in MODEL_ENGINES else None


def base_shape(recipe: Recipe) -> ModelShape | None:
    """Return the shape of the base model; None for an engine without a model, and for a hub that cannot be reached.

    Raises:
        ModelError: no such model.
    """
    from polypersona.models.location import is_hub_id, locate_model
    from polypersona.models.shapes import load_shape

    model = recipe.model
    if recipe.generate.engine not in MODEL_ENGINES:
        return None
    try:
        return load_shape(model.base, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except ModelError:
        if not is_hub_id(locate_model(model.base)):
            raise
        return None


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
    from polypersona.models.adapters import adapter_hash, check_adapter, rendering_warning

    is_own = recipe.model.adapter == "run"
    if is_own and has_several(recipe):
        candidates, warnings = locate_adapters(recipe, run)
        away = None if run.is_local else run
        return Weights(model, identity, size, adapter_run=away, warnings=warnings, candidates=candidates)
    if is_own and not run.exists(ADAPTER_CONFIG):
        raise ModelError(f"There is no {run.path(ADAPTER)}.", "Run the finetune stage, or set model.adapter: none.")
    is_remote = is_own and not run.is_local
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_folder(run, ADAPTER, Path(scratch)) if is_remote else _adapter_folder(recipe, run)
        folder = check_adapter(str(folder), model, recipe.model.revision)
        warning = rendering_warning(folder, recipe.instrument.show_options)
        return Weights(
            model=model,
            model_hash=identity,
            model_bytes=size,
            adapter="" if is_remote else str(folder),
            adapter_hash=adapter_hash(folder),
            adapter_name="run" if is_own else folder.name,
            adapter_run=run if is_remote else None,
            warnings=(warning,) if warning else (),
        )


def build_settings(recipe: Recipe, frozen: Mapping[str, Any], weights: Weights) -> EngineSettings:
    """Return the engine's settings; `frozen` are the values that `auto` was resolved to at the run's first start.

    Raises:
        EngineError: the endpoint is to answer, and the recipe does not say which.
    """
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
        repetition_penalty=generate.repetition_penalty,
        stop=tuple(generate.stop),
        length_norm=generate.length_norm,
        context=generate.context,
        persona=generate.persona,
        calibration=generate.calibration,
        max_new_tokens=generate.max_new_tokens,
        slots=frozen["slots"],
        cache_bytes=frozen.get("cache_bytes", 0),
        threads=frozen["threads"],
        endpoint=_endpoint_settings(recipe) if generate.engine == "endpoint" else None,
    )


def _adapter_folder(recipe: Recipe, run: RunDirectory) -> Path:
    return run.local_path(ADAPTER) if recipe.model.adapter == "run" else Path(recipe.model.adapter).expanduser()


def _endpoint_settings(recipe: Recipe) -> EndpointSettings:
    endpoint = recipe.generate.endpoint
    for key in ("url", "model"):
        if getattr(endpoint, key) is None:
            raise EngineError(
                f"generate.endpoint.{key} is missing: the endpoint engine asks a model of an OpenAI-compatible server.",
                "Set generate.endpoint: {url: https://api.openai.com/v1, model: NAME}, with your own values.",
            )
    return EndpointSettings(**endpoint.model_dump())


def _refuse_idle_adapters(recipe: Recipe) -> None:
    """Refuse keys about several adapters where there is one, and several where the engine holds one."""
    generate = recipe.generate
    if has_several(recipe):
        if generate.engine == "vllm" and recipe.model.adapter == "run":
            raise EngineError(
                "generate.engine: vllm answers with one adapter, and the recipe's finetune section has several.",
                "Choose generate.engine: packed, or set model.adapter to the folder of one of them.",
            )
        return
    for key, is_set in (
        ("generate.adapters", bool(generate.adapters)),
        ("generate.without_adapter", generate.without_adapter != "error"),
        ("finetune.choose", recipe.finetune.choose is not None),
    ):
        if is_set:
            raise EngineError(
                f"{key} is for a run with several adapters, and this recipe has one.",
                f"Leave out {key}, or list several in finetune.adapters.",
            )


def _refuse_for_packed(recipe: Recipe) -> None:
    """Refuse combinations that would change nothing."""
    generate, shown = recipe.generate, recipe.instrument.show_options
    if generate.closed != "score":
        for key, value in (("calibration", generate.calibration != "none"), ("length_norm", generate.length_norm)):
            if value:
                raise EngineError(
                    f"generate.{key} weighs the options' probabilities, and generate.closed: text computes none.",
                    f"Leave out generate.{key}, or set generate.closed: score.",
                )
    if generate.calibration != "none" and generate.context == "previous":
        raise EngineError(
            "generate.calibration asks every question several times, which an interview cannot.",
            "Set generate.context: none or generate.calibration: none.",
        )
    if generate.calibration == "permute" and shown == "none":
        raise EngineError(
            "generate.calibration: permute turns the options as they are shown, and instrument.show_options is none.",
            "Set generate.calibration: content_free, or show the options.",
        )
    if generate.length_norm and shown == "letters":
        raise EngineError(
            "generate.length_norm divides by an option's tokens, and with letters every option is one token.",
            "Leave out generate.length_norm, or set instrument.show_options: labels.",
        )


def _refuse_for_endpoint(recipe: Recipe) -> None:
    from polypersona.engines.endpoint import check_settings

    generate = recipe.generate
    nothing = {"dtype": "fp32", "quantization": "none", "slots": 1, "threads": 1}
    check_settings(build_settings(recipe, nothing, Weights()))
    if generate.slots != "auto" or generate.actors not in ("auto", 1):
        key = "slots" if generate.slots != "auto" else "actors"
        raise EngineError(
            f"generate.{key}: {getattr(generate, key)} has no meaning for the endpoint engine: one actor keeps "
            "generate.endpoint.concurrency requests in flight.",
            f"Leave out generate.{key} and set generate.endpoint.concurrency.",
        )


def _refuse_for_vllm(recipe: Recipe) -> None:
    from polypersona.engines.vllm_limits import check_settings

    quantization = recipe.model.quantization
    chosen = {"dtype": "fp32", "quantization": "none" if quantization == "auto" else quantization}
    check_settings(build_settings(recipe, {**chosen, "slots": 1, "threads": 1}, Weights()))
