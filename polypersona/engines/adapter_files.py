"""The adapters of a run that has several: which of them are there, what identifies them, how they did.

Reads the run directory; loads no weights into memory and decides nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from polypersona.engines.adapter_table import NO_ADAPTER, AdapterEntry
from polypersona.recipe import Recipe
from polypersona.roster import Member, build_roster
from polypersona.scopes import Scope
from polypersona.storage import RunDirectory


def locate_adapters(recipe: Recipe, run: RunDirectory) -> tuple[dict[str, AdapterEntry], tuple[str, ...]]:
    """Return the recipe's adapters by name, with empty hashes where they are not trained yet, and warnings.

    Raises:
        ModelError: no such base model, or an adapter that is damaged or of another base.
        RecipeError: two adapters have one name.
    """
    entries: dict[str, AdapterEntry] = {}
    warnings: list[str] = []
    for member in build_roster(recipe):
        entries[member.name], warning = _locate(member, run)
        warnings += [warning] if warning else []
    return entries, tuple(warnings)


def base_alone(recipe: Recipe) -> AdapterEntry:
    """Return the base model without an adapter.

    Raises:
        ModelError: no such model.
    """
    return AdapterEntry(NO_ADAPTER, **_base(recipe))


def copy_folder(run: RunDirectory, folder: str, target: Path) -> Path:
    """Copy the files of a folder of the run to a local folder and return that."""
    for name in run.names(folder):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(run.read(name))
    return target / folder


def _locate(member: Member, run: RunDirectory) -> tuple[AdapterEntry, str]:
    from polypersona.models.adapters import CONFIG, TRAINING, adapter_hash, check_adapter, rendering_warning

    recipe, base = member.recipe, _base(member.recipe)
    scope = Scope(personas=member.scope.personas)
    if not all(run.exists(f"{member.folder}/{name}") for name in (CONFIG, TRAINING)):
        return AdapterEntry(member.name, scope, member.folder, **base), ""
    training = run.read_json(f"{member.folder}/{TRAINING}")
    with tempfile.TemporaryDirectory() as scratch:
        local = run.local_path(member.folder) if run.is_local else copy_folder(run, member.folder, Path(scratch))
        folder = check_adapter(str(local), base["model"], recipe.model.revision)
        entry = AdapterEntry(
            member.name,
            scope,
            member.folder,
            adapter_hash(folder),
            eval_loss=training.get("eval_loss"),
            validation=str(training.get("content", {}).get("dataset.validation", "")),
            **base,
        )
        return entry, rendering_warning(folder, recipe.instrument.show_options)


def _base(recipe: Recipe) -> dict[str, Any]:
    from polypersona.models.location import locate_model, model_hash, weight_bytes

    return {
        "model": locate_model(recipe.model.base),
        "model_hash": model_hash(recipe.model.base, recipe.model.revision),
        "revision": recipe.model.revision,
        "model_bytes": weight_bytes(recipe.model.base),
    }
