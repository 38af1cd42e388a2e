"""The recipe: one YAML file that says what a run is. Unknown keys are refused with the nearest name.

Every field is one of *content* (a change makes other responses, so a run directory refuses it), *extension* (only
what is missing is computed) or *speed* (free to change); `change_of` answers which. Knows no stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError, model_validator

from polypersona.errors import RecipeError, nearest
from polypersona.location import join_location
from polypersona.recipe_sections import (
    AttributeMapping,
    Bounds,
    Change,
    ClusterRecipe,
    DatasetRecipe,
    EvaluateRecipe,
    FinetuneRecipe,
    GenerateRecipe,
    InstrumentRecipe,
    ModelRecipe,
    PanelRecipe,
    Section,
    change,
)
from polypersona.recipe_text import expand_variables, read_mapping
from polypersona.resources import find_resource

STAGES = ("dataset", "finetune", "generate", "evaluate", "report")


class Recipe(Section):
    """The whole run."""

    name: Annotated[str, change("speed")] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Annotated[str, change("speed")] = Field(default="runs", min_length=1)
    seed: int = Field(default=7, ge=0)
    panel: PanelRecipe = PanelRecipe()
    instrument: InstrumentRecipe = InstrumentRecipe()
    dataset: DatasetRecipe = DatasetRecipe()
    model: ModelRecipe = ModelRecipe()
    finetune: FinetuneRecipe = FinetuneRecipe()
    generate: GenerateRecipe = GenerateRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    cluster: ClusterRecipe = ClusterRecipe()

    @model_validator(mode="after")
    def _sampled_panel_has_a_size(self) -> Recipe:
        has_own_rows = self.dataset.source is not None or self.dataset.survey.codebook is not None
        is_idle = has_own_rows and self.generate.on == "test"
        if self.panel.source == "sampled" and self.panel.size is None and not is_idle:
            raise ValueError("panel.size is missing: a sampled panel needs one, 433 in the paper")
        return self

    @property
    def location(self) -> str:
        """The run directory: `<out>/<name>`, a path or a URL."""
        return join_location(self.out, self.name)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.key=value` with YAML values.

    A shipped recipe is found by its name, such as `jobs/demo.yaml`, wherever the process stands.

    Raises:
        RecipeError: unreadable file, broken YAML, unknown key, a value that is not allowed.
    """
    path = Path(path)
    if path.parent == Path("jobs") and not path.exists():
        path = find_resource(str(path)) or path
    return build_recipe(read_mapping(path, overrides), where=str(path))


def build_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe; `where` names it in errors.

    Raises:
        RecipeError: an unknown key, a value that is not allowed, an environment variable that is not set.
    """
    try:
        return Recipe.model_validate(expand_variables(dict(data), where))
    except ValidationError as error:
        raise _recipe_error(error, where) from error


def change_of(key: str) -> Change:
    """Return what a change of `section.key` means for an existing run; content unless the field says otherwise."""
    model: Any = Recipe
    field: Any = None
    for part in key.split("."):
        field = model.model_fields.get(part) if _is_section(model) else None
        if field is None:
            return "content"
        model = field.annotation
    extra: Any = field.json_schema_extra
    kind: Change = extra["change"] if isinstance(extra, dict) and "change" in extra else "content"
    return kind


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as `section.key → value`; a section within a section as `section.section.key`."""
    return dict(_flat_items("", Recipe, recipe.model_dump(mode="json")))


def _flat_items(prefix: str, model: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        annotation = model.model_fields[name].annotation
        if _is_section(annotation):
            yield from _flat_items(f"{prefix}{name}.", annotation, value)
        else:
            yield f"{prefix}{name}", value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


# What pydantic adds to the path of a value where several types are allowed.
_BRANCH = re.compile(r"AttributeMapping|Bounds|str|list\[str\]|constrained-int|literal\['auto'\]|\[key\]")


def _recipe_error(error: ValidationError, where: str) -> RecipeError:
    errors = error.errors()
    near = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    # Of several allowed types, the one that the value came closest to; a misspelt key before the one it leaves missing.
    first = max(near, key=lambda one: (len(one["loc"]), one["type"] == "extra_forbidden"))
    location = [str(part) for part in first["loc"]]
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return RecipeError(
            f"{where}: {key!r} is no key of a recipe.{nearest(location[-1], known)}",
            f"Allowed here: {', '.join(known)}." if known else "",
        )
    if first["type"] == "missing":
        return RecipeError(f"{where}: {key!r} is missing.", f"Add `{key}: …`.")
    got = first.get("input")
    wanted = [_lowered(one["msg"]) for one in near if _key(one["loc"]) == key]
    message = " or ".join([wanted[0], *(one.removeprefix("input should be ") for one in wanted[1:])])
    if first["type"] == "model_type":
        message = "this is a section, which has keys and values"
    # A key pasted where its variable's name or the address belongs is not shown.
    shown = "" if isinstance(got, dict) or location[-1:] in (["key_variable"], ["url"]) else f" (got {got!r})"
    close = nearest(got, re.findall("'([^']*)'", message)) if isinstance(got, str) else ""
    named = f"{where}: {key}: " if key else f"{where}: "
    return RecipeError(f"{named}{message}{shown}.{close}", "Mend the recipe, or the value given by --set.")


def _key(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location if not _BRANCH.fullmatch(str(part)))


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _known_keys(location: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if part.isdigit():  # a place in a list of sections
            continue
        field = model.model_fields.get(part) if _is_section(model) else None
        named = {"AttributeMapping": AttributeMapping, "Bounds": Bounds}.get(part)
        model = named if field is None else _section_of(field.annotation)
    return list(model.model_fields) if _is_section(model) else []


def _section_of(annotation: Any) -> Any:
    """Return the section in an annotation such as `list[Section]` or `Section | None`, else the annotation."""
    parts = [annotation, *get_args(annotation)]
    return next((part for part in parts if _is_section(part)), annotation)
