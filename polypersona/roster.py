"""The adapters that a recipe asks for: one for the whole dataset, or several, each for its own part of it.

`finetune.adapters` names them one by one, `finetune.sweep` as a cross product. Gives values, each with the recipe by
which that adapter alone would be tuned; trains and looks up nothing.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.errors import RecipeError
from polypersona.recipe import Recipe
from polypersona.recipe_sections import AdapterRecipe, Bounds, SweepRecipe, TunedRecipe
from polypersona.scopes import EVERYTHING, Scope, Wanted

ALONE = "run"
# Names that `model.adapter` and the responses' column `adapter` give another meaning.
_RESERVED = (ALONE, "none")
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class Member:
    """One of a run's adapters.

    Attributes:
        name: what the responses' column `adapter` says.
        scope: its part of the dataset.
        recipe: as if it were the run's only adapter.
        folder: where it lies in the run directory.
        checkpoints: where Ray Train keeps its own until it is finished.
    """

    name: str
    scope: Scope
    recipe: Recipe
    folder: str
    checkpoints: str


def has_several(recipe: Recipe) -> bool:
    """Return whether the run has several adapters, in `adapters/`, and none in `adapter/`."""
    return bool(recipe.finetune.adapters) or recipe.finetune.sweep is not None


def build_roster(recipe: Recipe) -> tuple[Member, ...]:
    """Return the run's adapters, in the recipe's order; the only one is named `run`.

    Raises:
        RecipeError: a name is taken twice or reserved, or a sweep has no values.
    """
    if not has_several(recipe):
        return (Member(ALONE, EVERYTHING, recipe, "adapter", "train"),)
    sections = [*recipe.finetune.adapters, *_expand(recipe.finetune.sweep)]
    _refuse_names([section.name for section in sections])
    return tuple(_member(recipe, section) for section in sections)


def _member(recipe: Recipe, section: AdapterRecipe) -> Member:
    own = {key: value for key in TunedRecipe.model_fields if (value := getattr(section, key)) is not None}
    finetune = recipe.finetune.model_copy(update={**own, "adapters": [], "sweep": None, "choose": None})
    base = {} if section.base is None else {"base": section.base, "revision": section.revision}
    model = recipe.model.model_copy(update=base)
    scope = Scope(tuple(section.domains), {name: _wanted(value) for name, value in sorted(section.personas.items())})
    alone = recipe.model_copy(update={"finetune": finetune, "model": model})
    return Member(section.name, scope, alone, f"adapters/{section.name}", f"train/{section.name}")


def _wanted(value: Sequence[str] | Bounds) -> Wanted:
    if isinstance(value, Bounds):
        low = float("-inf") if value.min is None else value.min
        return low, float("inf") if value.max is None else value.max
    return tuple(value)


def _expand(sweep: SweepRecipe | None) -> Iterator[AdapterRecipe]:
    """Yield an adapter for each combination, the last key changing fastest, named by its values."""
    if sweep is None:
        return
    axes = {key: values for key in SweepRecipe.model_fields if (values := getattr(sweep, key))}
    if not axes:
        raise RecipeError(
            "finetune.sweep names no values.", "Give it lists, such as `sweep: {domains: [[healthcare], [finance]]}`."
        )
    for values in itertools.product(*axes.values()):
        own: Mapping[str, Any] = dict(zip(axes, values, strict=True))
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(_label(key, value) for key, value in own.items()))
        yield AdapterRecipe.model_validate({**own, "name": name.strip("-._")[:_MAX_NAME]})


def _label(key: str, value: Any) -> str:
    if key == "base":
        return str(value).rstrip("/").rpartition("/")[2]
    if key == "domains":
        return "-".join(value) or "all"
    if key == "personas":
        return "-".join(f"{name}-{_worded(wanted)}" for name, wanted in value.items()) or "everyone"
    return f"{key}{value:g}"


def _worded(wanted: Sequence[str] | Bounds) -> str:
    if isinstance(wanted, Bounds):
        return "-".join(f"{bound:g}" for bound in (wanted.min, wanted.max) if bound is not None)
    return "-".join(wanted)


def _refuse_names(names: Sequence[str]) -> None:
    for name in names:
        if name.lower() in _RESERVED:
            raise RecipeError(
                f"finetune.adapters: the name {name!r} is taken by model.adapter.", "Give the adapter another name."
            )
    # A file system may not tell capitals apart.
    name, count = Counter(name.lower() for name in names).most_common(1)[0]
    if count > 1:
        raise RecipeError(
            f"finetune: {count} adapters are named {name!r}, and each has a folder of its name.",
            "Name them one by one in finetune.adapters.",
        )
