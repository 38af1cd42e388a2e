"""pytest tests/engines/test_refusals.py: every engine honours an option of generation or refuses it by name."""

from __future__ import annotations

from typing import Any

import pytest
from endpoint_server import KEY

from polypersona.engines.registry import ENGINES, load_engine
from polypersona.engines.settings import Weights, build_settings, refuse_unsupported
from polypersona.errors import EngineError
from polypersona.recipe import Recipe, build_recipe

SCORED = {"packed", "vllm", "endpoint"}
# option → (value, who honours it)
OPTIONS: dict[str, tuple[Any, set[str]]] = {
    "context": ("previous", {"packed"}),
    "calibration": ("permute", {"packed"}),
    "length_norm": (True, {"packed"}),
    "repetition_penalty": (1.2, {"packed", "vllm"}),
    "stop": (["END"], {"packed", "vllm", "endpoint"}),
    "top_k": (20, {"packed", "vllm"}),
    "top_p": (0.9, {"packed", "vllm", "endpoint"}),
    "min_p": (0.05, {"packed", "vllm"}),
    "max_hours": (2.0, set(ENGINES)),
    "order": ("random", set(ENGINES)),
    "rationale": (True, set(ENGINES)),
    "draws": (2, set(ENGINES)),
    "waves": (2, set(ENGINES)),
    "temperature": (0.5, set(ENGINES)),
    "max_new_tokens": (12, set(ENGINES)),
}


def recipe_of(engine: str, shown: str = "labels", **options: Any) -> Recipe:
    generate: dict[str, Any] = {"engine": engine, **options}
    if engine == "endpoint":
        generate = {"closed": "text", "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "toy"}, **generate}
    instrument = {"show_options": shown}
    model = {"adapter": "none"}
    panel = {"source": "sampled", "size": 2}
    return build_recipe({"name": "toy", "panel": panel, "instrument": instrument, "model": model, "generate": generate})


def start(recipe: Recipe) -> None:
    """Do what a run does before its first cell, but load no model."""
    refuse_unsupported(recipe)
    frozen = {"dtype": "fp32", "quantization": "none", "slots": 1, "threads": 1}
    if recipe.generate.engine not in ("packed", "vllm"):
        load_engine(build_settings(recipe, frozen, Weights())).close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_engine_honours_an_option_or_refuses_it_by_name(
    monkeypatch: pytest.MonkeyPatch, engine: str, option: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    value, honoured_by = OPTIONS[option]
    recipe = recipe_of(engine, **{option: value})
    if engine in honoured_by:
        start(recipe)
        return
    with pytest.raises(EngineError, match=option) as refused:
        start(recipe)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("engine", "shown", "options", "named"),
    [
        ("packed", "labels", {"closed": "text", "calibration": "permute"}, "generate.calibration weighs"),
        ("packed", "labels", {"closed": "text", "calibration": "content_free"}, "generate.calibration weighs"),
        ("packed", "labels", {"closed": "text", "length_norm": True}, "generate.length_norm weighs"),
        ("packed", "labels", {"context": "previous", "calibration": "permute"}, "which an interview cannot"),
        ("packed", "labels", {"context": "previous", "calibration": "content_free"}, "which an interview cannot"),
        ("packed", "none", {"calibration": "permute"}, "show_options is none"),
        ("packed", "letters", {"length_norm": True}, "every option is one token"),
        ("packed", "none", {"order": "random"}, "order: random changes nothing"),
        ("fake", "none", {"order": "random"}, "order: random changes nothing"),
        ("endpoint", "labels", {"closed": "score"}, "show_options is labels"),
        ("endpoint", "labels", {"slots": 8}, "generate.slots: 8 has no meaning"),
        ("endpoint", "labels", {"actors": 2}, "generate.actors: 2 has no meaning"),
        ("vllm", "labels", {"temperature": 2.5}, "generate.temperature: 2.5"),
    ],
)
def test_combinations_that_would_change_nothing_are_refused_by_name(
    engine: str, shown: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(EngineError, match=named) as refused:
        refuse_unsupported(recipe_of(engine, shown, **options))
    assert refused.value.hint


@pytest.mark.parametrize(
    ("shown", "options"),
    [
        ("labels", {"calibration": "permute", "length_norm": True, "rationale": True, "order": "random"}),
        ("letters", {"calibration": "permute", "rationale": True}),
        ("none", {"calibration": "content_free", "length_norm": True}),
        ("letters", {"closed": "text", "context": "previous", "stop": ["\n"], "repetition_penalty": 1.1, "min_p": 0.1}),
        ("letters", {"context": "previous", "order": "random", "rationale": True, "draws": 2, "waves": 2}),
        ("labels", {"context": "previous", "length_norm": True}),
    ],
)
def test_what_the_packed_engine_combines(shown: str, options: dict[str, Any]) -> None:
    refuse_unsupported(recipe_of("packed", shown, **options))
