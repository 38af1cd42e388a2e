"""What decides the content of a run's responses, in parts, and the refusal to change any of them under way.

A part is a value of the recipe with `auto` resolved, or the hash of something outside it: weights, adapter, test split.
Items and personas are guarded apart, because they may grow: those the run has must stay what they were. Paths are
no part, so a moved file changes nothing. Takes values, gives values or an error; writes nothing, and reads only the
panel of a recipe that asks fewer personas than the run has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polypersona.chatml import RENDERER_VERSION
from polypersona.engines.settings import ENGINE_VERSIONS, Weights
from polypersona.errors import RecipeChangedError
from polypersona.fingerprint import diff, digest_of
from polypersona.ledger import Box, Ledger
from polypersona.population import Population, item_hashes, panel_digests, with_next_personas
from polypersona.recipe import Recipe, change_of, flatten
from polypersona.records import digest
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.simulator.traits import SEMANTICS_VERSION
from polypersona.storage import SCHEMA_VERSION

# Values of these keys are resolved once and frozen; the recipe may say `auto`.
_FROZEN = {
    "model.dtype": "dtype",
    "model.quantization": "quantization",
    "generate.slots": "slots",
    "generate.shard_personas": "shard_personas",
}
# Keys that runs of earlier versions do not have, with the values by which those were made.
_LATER_KEYS = {
    "generate.repetition_penalty": 1.0,
    "generate.stop": [],
    "generate.length_norm": False,
    "generate.persona": "shown",
}
# Where a run has several adapters: what answers a domain.
ADAPTER_KEY = "adapter for "
_TEST_CELLS = "cells of the test split"
_MODEL_KEYS = ("model.dtype", "model.quantization", "model.trust_remote_code", "generate.slots")


def content_parts(
    recipe: Recipe, frozen: Mapping[str, Any], weights: Weights, population: Population
) -> dict[str, Any]:
    """Return the parts that may not change during a run, except items and personas."""
    flat = flatten(recipe)
    uses_model = recipe.generate.engine in MODEL_ENGINES
    keys = ["seed", "instrument.show_options"]
    keys += [key for key in flat if key.startswith("generate.") and change_of(key) == "content"]
    if recipe.generate.engine != "endpoint":
        keys = [key for key in keys if not key.startswith("generate.endpoint.")]
    keys += ["model.dtype", "model.quantization", "model.trust_remote_code"] if uses_model else []
    parts = {key: _resolved(key, flat[key], frozen) for key in keys if uses_model or key not in _MODEL_KEYS}
    if uses_model:
        parts |= {"model.base": weights.model_hash, "model.adapter": weights.adapter_hash or "none"}
        parts["threads"] = frozen["threads"]
    if weights.table is not None:
        parts["model.adapter"] = "several"
        parts |= {f"{ADAPTER_KEY}{domain}": weights.table.describe(domain) for domain in weights.table.by_domain}
    if population.asked is not None:
        parts[_TEST_CELLS] = _test_cells(population)
    parts["engine version"] = ENGINE_VERSIONS[recipe.generate.engine]
    if recipe.generate.engine == "rules":
        parts["simulator version"] = SEMANTICS_VERSION
    parts["renderer version"] = RENDERER_VERSION
    parts["schema version"] = SCHEMA_VERSION
    return parts


def kept_parts(stored: Mapping[str, Any], *, is_first: bool) -> dict[str, str]:
    """Return the parts that stay in run.json where the recipe asks less than before: what answered those domains."""
    if is_first:
        return {}
    return {key: value for key, value in stored["content"]["parts"].items() if key.startswith(ADAPTER_KEY)}


def fingerprint_of(parts: Mapping[str, Any], items: Mapping[str, str], panel: str) -> str:
    """Return the run's fingerprint: its parts, items and panel as they were at the first start."""
    return digest_of({**parts, "items": items, "panel": panel})


def extend_ledger(ledger: Ledger, recipe: Recipe, population: Population) -> Ledger:
    """Return the ledger with what the recipe asks for beyond it.

    Raises:
        RecipeChangedError: other items for a run of interviews, whose earlier answers would lie in other shards.
    """
    box = Box(len(population.personas), population.item_keys, recipe.generate.waves, recipe.generate.draws)
    extended = ledger.extend(box, asked=population.asked)
    if extended is ledger:
        return ledger
    if recipe.generate.context == "previous" and ledger.layers:
        _refuse_other_items(ledger.layers[0].box.items, box.items)
    panel = panel_digests(population.personas, [box.personas])[box.personas]
    return Ledger(ledger.shard_personas, (*extended.layers[:-1], replace(extended.layers[-1], digest=panel)))


def refuse_changes(
    where: str, stored: Mapping[str, Any], parts: Mapping[str, Any], recipe: Recipe, population: Population
) -> None:
    """Refuse a recipe that would make other responses than those the run has.

    Args:
        where: the run directory, for the message.
        stored: the run's run.json.
        parts: what `content_parts` says now.
        recipe: the recipe now.
        population: who is asked what now.

    Raises:
        RecipeChangedError: with one line `key: old → new` for each change.
    """
    before = _LATER_KEYS | stored["content"]["parts"]
    # A domain that is new is no change, and one that is no longer asked is none either.
    apart = {key for key in before.keys() ^ parts.keys() if key.startswith(ADAPTER_KEY)}
    held, now = ({key: one[key] for key in one.keys() - apart} for one in (before, parts))
    lines = diff(held, now) + _population_changes(stored, recipe, population)
    if lines:
        raise RecipeChangedError(
            f"{where} holds responses of another content; the recipe would change\n  " + "\n  ".join(lines),
            "Set that back, or give the run another name.",
        )


def refuse_another_recipe(where: str, stored: Mapping[str, Any], recipe: Recipe, population: Population) -> None:
    """Refuse to judge responses by a recipe they were not made with: other cards, items, seed or way of asking.

    Weights are not looked at, because a machine that only judges need not have them. Arguments as in
    `refuse_changes`.

    Raises:
        RecipeChangedError: with one line `key: old → new` for each change.
    """
    flat, parts = flatten(recipe), _LATER_KEYS | stored["content"]["parts"]
    keys = [key for key in parts if key in flat and not key.startswith("model.") and flat[key] != "auto"]
    now = {key: flat[key] for key in keys}
    if _TEST_CELLS in parts and population.asked is not None:
        keys, now = [*keys, _TEST_CELLS], {**now, _TEST_CELLS: _test_cells(population)}
    lines = diff({key: parts[key] for key in keys}, now) + _population_changes(stored, recipe, population)
    if lines:
        raise RecipeChangedError(
            f"{where} holds responses that were made with another recipe:\n  " + "\n  ".join(lines),
            "Use the recipe that the responses were made with.",
        )


def _refuse_other_items(held: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse another sequence of items than that of the run's interviews; personas, waves and draws may grow."""
    if held == asked:
        return
    added, lost = [key for key in asked if key not in held], [key for key in held if key not in asked]
    change = f"item {added[0]!r} is new" if added else f"item {lost[0]!r} is gone" if lost else "their order is another"
    raise RecipeChangedError(
        f"generate.context: previous makes every answer depend on the items before it; of the {len(held):,} items that "
        f"the run's interviews have, {change}.",
        "Set the instrument back (more personas, waves and draws are fine), or give the run another name.",
    )


def _resolved(key: str, value: Any, frozen: Mapping[str, Any]) -> Any:
    return frozen[_FROZEN[key]] if value == "auto" else value


def _test_cells(population: Population) -> str:
    return digest(population.asked, population.item_keys)


def _population_changes(stored: Mapping[str, Any], recipe: Recipe, population: Population) -> list[str]:
    lines = _item_changes(stored["content"]["items"], population)
    if panel_lines := _panel_changes(stored, recipe, population):
        lines += panel_lines + diff(_panel_fields(stored["recipe"]), _panel_fields(recipe.model_dump(mode="json")))
    return lines


def _item_changes(stored: Mapping[str, str], population: Population) -> list[str]:
    now = item_hashes(population)
    shared = [key for key in stored if key in now]
    return diff({f"item {key}": stored[key] for key in shared}, {f"item {key}": now[key] for key in shared})


def _panel_changes(stored: Mapping[str, Any], recipe: Recipe, population: Population) -> list[str]:
    layers = {layer["box"]["personas"]: layer["digest"] for layer in stored["ledger"]["layers"]}
    personas = with_next_personas(recipe, population, max(layers, default=0))
    now = panel_digests(personas, layers)
    # A digest covers all of its personas, so a panel that ends before the last one is known only where another ends.
    sizes = now if len(personas) in now else layers
    lines = []
    for size in sorted(sizes):
        label = f"the first {size:,} personas"
        lines += diff({label: layers[size]}, {label: now[size]} if size in now else {})
    return lines


def _panel_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {f"panel.{key}": value for key, value in recipe["panel"].items() if change_of(f"panel.{key}") == "content"}
