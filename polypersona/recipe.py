"""The recipe: one YAML file that says what a run is. Unknown keys are refused with the nearest name.

Every field is one of *content* (a change makes other responses, so a run directory refuses it), *extension* (only
what is missing is computed) or *speed* (free to change); `change_of` answers which. Knows no stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from polypersona.errors import RecipeError, nearest
from polypersona.location import check_api_root, join_location, mask_all
from polypersona.recipe_text import expand_variables, read_mapping
from polypersona.records import ResponseType
from polypersona.resources import find_resource

Change = Literal["content", "extension", "speed"]
STAGES = ("dataset", "finetune", "generate", "evaluate", "report")
AutoCount = Literal["auto"] | Annotated[int, Field(ge=1)]


def _kind(change: Change) -> Any:
    return Field(json_schema_extra={"change": change})


type_ = type  # the builtin, kept reachable beside fields of that name


class Section(BaseModel):
    """A part of the recipe. Frozen, and closed against unknown keys. As JSON, secrets in URLs are masked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap", when_used="json")
    def _without_secrets(self, serialize: Callable[[Any], Any]) -> Any:
        return mask_all(serialize(self))


class AttributeMapping(Section):
    """How one attribute of a persona is read from a column of the source. Numbers in `values` are read as text."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    column: str
    values: dict[str, str] = Field(default_factory=dict)


class PanelRecipe(Section):
    """Who is asked. Each of several `text` columns is its own persona; `distinct` keeps the first of equal ones."""

    source: str = "sampled"
    size: Annotated[int | None, _kind("extension")] = Field(default=None, ge=1)
    mapping: dict[str, str | AttributeMapping] = Field(default_factory=dict)
    id: str | None = None
    text: str | list[str] | None = None
    weight: str | None = None
    distinct: bool = False
    accept_license: str | None = None


class InstrumentRecipe(Section):
    """What is asked, and how the options are shown."""

    bank: str = "questionbank"
    domains: Annotated[list[str], _kind("extension")] = Field(default_factory=list)
    items: Annotated[list[str], _kind("extension")] = Field(default_factory=list)
    response_types: Annotated[list[ResponseType], _kind("extension")] = Field(default_factory=list)
    max_items: Annotated[int | None, _kind("extension")] = Field(default=None, ge=1)
    show_options: Literal["labels", "letters", "none"] = "labels"


class DatasetRecipe(Section):
    """The examples an adapter is tuned on and scored against."""

    source: str | None = None
    teacher: str = "rules"
    records: int = Field(default=3568, ge=10)
    split_by: Literal["persona", "item", "both", "neither"] = "persona"
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, splits: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(splits) - 1) > 1e-9 or min(splits) < 0:
            raise ValueError("the three shares must not be negative and must sum to 1")
        return splits


class ModelRecipe(Section):
    """Which weights answer."""

    base: str = "tiny"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    quantization: Literal["auto", "none", "int8", "nf4"] = "auto"
    adapter: str = "run"
    revision: str | None = None
    trust_remote_code: bool = False


class FinetuneRecipe(Section):
    """How the adapter is tuned. A field left out has its preset's value (`finetune_settings`)."""

    preset: Literal["paper", "tiny"] = "paper"
    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    rank: int | None = Field(default=None, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    batch_size: int | None = Field(default=None, ge=1)
    accumulation: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=32)
    workers: Annotated[AutoCount, _kind("speed")] = "auto"
    max_failures: Annotated[int, _kind("speed")] = Field(default=2, ge=0)


class EndpointRecipe(Section):
    """An OpenAI-compatible server that answers. `key_variable` names the environment variable with the key, or is null.

    `limit_parameter` is what the server calls the limit of an answer's tokens. `instruct` ends each question with a
    line on the answer's form; false suits a served model that was tuned on this project's prompts.
    """

    url: str | None = None
    model: str | None = Field(default=None, min_length=1)
    instruct: bool = True
    key_variable: Annotated[str | None, _kind("speed")] = "OPENAI_API_KEY"
    limit_parameter: Annotated[Literal["max_tokens", "max_completion_tokens"], _kind("speed")] = "max_tokens"
    concurrency: Annotated[int, _kind("speed")] = Field(default=8, ge=1, le=1024)
    timeout_s: Annotated[float, _kind("speed")] = Field(default=60.0, gt=0)
    max_retries: Annotated[int, _kind("speed")] = Field(default=5, ge=0, le=20)
    requests_per_minute: Annotated[float | None, _kind("speed")] = Field(default=None, gt=0)

    @field_validator("url")
    @classmethod
    def _is_the_root_of_an_api(cls, url: str | None) -> str | None:
        return None if url is None else check_api_root(url)

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("this is the name of an environment variable in capitals, never the key itself")
        return name


class GenerateRecipe(Section):
    """How the cells are answered."""

    on: Literal["panel", "test"] = "panel"
    engine: Literal["packed", "vllm", "endpoint", "rules", "fake"] = "packed"
    closed: Literal["score", "text"] = "score"
    rationale: bool = False
    context: Literal["none", "previous"] = "none"
    order: Literal["fixed", "random"] = "fixed"
    calibration: Literal["none", "permute", "content_free"] = "none"
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    length_norm: bool = False
    max_new_tokens: int = Field(default=96, ge=1)
    draws: Annotated[int, _kind("extension")] = Field(default=1, ge=1)
    waves: Annotated[int, _kind("extension")] = Field(default=1, ge=1)
    actors: Annotated[AutoCount, _kind("speed")] = "auto"
    slots: AutoCount = "auto"
    shard_personas: int = Field(default=64, ge=1)
    max_attempts: Annotated[int, _kind("speed")] = Field(default=3, ge=1)
    max_quarantined: Annotated[float, _kind("speed")] = Field(default=0.01, ge=0, le=1)
    max_hours: Annotated[float | None, _kind("speed")] = Field(default=None, gt=0)
    endpoint: EndpointRecipe = EndpointRecipe()


class EvaluateRecipe(Section):
    """What the responses are scored against. Evaluation makes no response, so all of it may change freely."""

    metrics: Annotated[list[str], _kind("speed")] = Field(default_factory=list)
    reference: Annotated[Literal["auto", "dataset", "teacher", "none"], _kind("speed")] = "auto"
    bertscore_model: Annotated[str | None, _kind("speed")] = None
    bootstrap: Annotated[int, _kind("speed")] = Field(default=1000, ge=0)


class ClusterRecipe(Section):
    """What of the cluster a run may use. Limits are totals by Ray resource name; prices are per hour."""

    limits: Annotated[dict[str, float], _kind("speed")] = Field(default_factory=dict)
    prices: Annotated[dict[str, float], _kind("speed")] = Field(default_factory=dict)

    @field_validator("limits")
    @classmethod
    def _limits_what_is_counted(cls, limits: dict[str, float]) -> dict[str, float]:
        if other := sorted(set(limits) - {"CPU", "GPU"}):
            raise ValueError(f"{other[0]!r} cannot be limited, only 'CPU' and 'GPU' can")
        return limits

    @field_validator("prices")
    @classmethod
    def _prices_what_is_counted(cls, prices: dict[str, float]) -> dict[str, float]:
        if other := sorted(set(prices) - {"CPU", "GPU"}):
            raise ValueError(f"{other[0]!r} cannot be priced, only 'CPU' and 'GPU' can, per hour")
        if any(not 0 <= price < float("inf") for price in prices.values()):
            raise ValueError("a price per hour is a number from 0")
        return prices


class Recipe(Section):
    """The whole run."""

    name: Annotated[str, _kind("speed")] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Annotated[str, _kind("speed")] = Field(default="runs", min_length=1)
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
        if self.panel.source == "sampled" and self.panel.size is None:
            raise ValueError("panel.size is missing: a sampled panel needs one, 433 in the paper")
        return self

    @property
    def location(self) -> str:
        """The run directory: `<out>/<name>`, a path or a URL."""
        return join_location(self.out, self.name)


class FinetuneSettings(Section):
    """The hyper-parameters a preset and the recipe's own values resolve to.

    `batch_size` × `accumulation` is the global batch, whatever the number of workers.
    """

    epochs: float
    learning_rate: float
    rank: int
    alpha: int
    dropout: float
    batch_size: int
    accumulation: int
    max_length: int
    weight_decay: float = 1e-3
    warmup_ratio: float = 0.03
    max_grad_norm: float = 0.3
    scheduler: Literal["cosine"] = "cosine"

    @property
    def global_batch(self) -> int:
        """Examples per optimiser step."""
        return self.batch_size * self.accumulation


# "paper": section IV-C and V-A of the PolyPersona paper. "tiny": chosen on the validation split of the default dataset.
PRESETS: Mapping[str, FinetuneSettings] = {
    "paper": FinetuneSettings(
        epochs=3, learning_rate=2e-4, rank=16, alpha=32, dropout=0.05, batch_size=4, accumulation=4, max_length=1024
    ),
    "tiny": FinetuneSettings(
        epochs=3, learning_rate=3e-3, rank=16, alpha=32, dropout=0.0, batch_size=16, accumulation=1, max_length=512
    ),
}


def finetune_settings(recipe: FinetuneRecipe) -> FinetuneSettings:
    """Return the preset's settings with the recipe's own values in place."""
    own = {name: value for name in FinetuneSettings.model_fields if (value := getattr(recipe, name, None)) is not None}
    return PRESETS[recipe.preset].model_copy(update=own)


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
    change: Change = extra["change"] if isinstance(extra, dict) and "change" in extra else "content"
    return change


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
    return isinstance(annotation, type_) and issubclass(annotation, Section)


# What pydantic adds to the path of a value where several types are allowed.
_BRANCH = re.compile(r"AttributeMapping|str|list\[str\]|constrained-int|literal\['auto'\]|\[key\]")


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
        field = model.model_fields.get(part) if _is_section(model) else None
        model = field.annotation if field is not None else AttributeMapping if part == "AttributeMapping" else None
    return list(model.model_fields) if _is_section(model) else []
