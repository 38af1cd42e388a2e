"""The sections of a recipe, key by key, each with what a change of it means for a run that has begun.

A field is *content* unless it says otherwise (`change`); see `recipe`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from polypersona.location import check_api_root, mask_all
from polypersona.records import ResponseType

Change = Literal["content", "extension", "speed"]
AutoCount = Literal["auto"] | Annotated[int, Field(ge=1)]
WorkerCount = AutoCount | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
# What an adapter's answers to validation rows are scored by while it is trained; `metrics.catalogue` defines each.
VALIDATION_METRICS = (
    "exact_agreement", "near_agreement", "quadratic_kappa", "stance_agreement", "validity", "bleu", "rouge1", "rougeL",
)  # fmt: skip
BestMetric = Literal[
    "loss", "exact_agreement", "near_agreement", "quadratic_kappa", "stance_agreement", "validity", "bleu", "rouge1",
    "rougeL",
]  # fmt: skip


def change(kind: Change) -> Any:
    """Return the field information that says what a change of it means."""
    return Field(json_schema_extra={"change": kind})


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
    size: Annotated[int | None, change("extension")] = Field(default=None, ge=1)
    mapping: dict[str, str | AttributeMapping] = Field(default_factory=dict)
    id: str | None = None
    text: str | list[str] | None = None
    weight: str | None = None
    distinct: bool = False
    accept_license: str | None = None


class InstrumentRecipe(Section):
    """What is asked, and how the options are shown."""

    bank: str = "questionbank"
    domains: Annotated[list[str], change("extension")] = Field(default_factory=list)
    items: Annotated[list[str], change("extension")] = Field(default_factory=list)
    response_types: Annotated[list[ResponseType], change("extension")] = Field(default_factory=list)
    max_items: Annotated[int | None, change("extension")] = Field(default=None, ge=1)
    show_options: Literal["labels", "letters", "none"] = "labels"


class SurveyRecipe(Section):
    """How coded answers of people become examples: `dataset.source` is their file, `codebook` says what it means.

    `items` are tuned on, all closed ones where none is named; `withheld` ones are asked of the held-out respondents
    only. `attributes` are the demographics a card shows, by column or by name on the card, all where none is named;
    `bands` has, by attribute, where the bands begin in which a card shows a number (`age: [18, 30, 45, 60]`).
    """

    codebook: str | None = None
    items: list[str] = Field(default_factory=list)
    withheld: list[str] = Field(default_factory=list)
    attributes: list[str] = Field(default_factory=list)
    bands: dict[str, list[int]] = Field(default_factory=dict)

    @field_validator("bands")
    @classmethod
    def _rises(cls, bands: dict[str, list[int]]) -> dict[str, list[int]]:
        for name, starts in bands.items():
            if not starts or starts != sorted(set(starts)):
                raise ValueError(f"the bands of {name!r} are a rising list of whole numbers, where each begins")
        return bands


class DatasetRecipe(Section):
    """The examples an adapter is tuned on and scored against."""

    source: str | None = None
    survey: SurveyRecipe = SurveyRecipe()
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


class Bounds(Section):
    """A number from `min` to `max`, both included; one of them may be left out."""

    min: float | None = None
    max: float | None = None

    @field_validator("max")
    @classmethod
    def _is_not_below_the_min(cls, most: float | None, info: ValidationInfo) -> float | None:
        least = info.data.get("min")
        if most is not None and least is not None and most < least:
            raise ValueError(f"the max is below the min of {least:g}")
        return most


class TunedRecipe(Section):
    """The hyper-parameters of an adapter. A step's gradient is scaled down to `max_grad_norm` where it is longer."""

    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    rank: int | None = Field(default=None, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    batch_size: int | None = Field(default=None, ge=1)
    accumulation: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=32)
    max_grad_norm: float | None = Field(default=None, gt=0)


class AdapterRecipe(TunedRecipe):
    """One of several adapters: its part of the dataset, its base, its own hyper-parameters; the rest is the run's."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    domains: list[str] = Field(default_factory=list)
    personas: dict[str, list[str] | Bounds] = Field(default_factory=dict)
    base: str | None = None
    revision: str | None = None


class SweepRecipe(Section):
    """Adapters as a cross product: one for each combination of the values that are named."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    base: list[str] = Field(default_factory=list)
    domains: list[list[str]] = Field(default_factory=list)
    personas: list[dict[str, list[str] | Bounds]] = Field(default_factory=list)
    epochs: list[float] = Field(default_factory=list)
    learning_rate: list[float] = Field(default_factory=list)
    rank: list[int] = Field(default_factory=list)
    alpha: list[int] = Field(default_factory=list)
    dropout: list[float] = Field(default_factory=list)


class FinetuneRecipe(TunedRecipe):
    """How the adapter is tuned. A field left out has its preset's value (`finetune_settings`).

    With `adapters` or `sweep` the run has several, each for its own part of the dataset; `choose` picks among those
    that are for the same domains and personas.

    An adapter is validated every `validate_steps`, at each epoch's end where that is null: its loss on all rows, and
    scores of its answers to `validation_rows` of them. `best_metric` decides which step's adapter is kept, the last
    one's where it is null; after `patience` validations without a better one training stops. `workers` may be a pair
    [least, most]: training then goes on with fewer where nodes leave, and with more where they come.
    """

    preset: Literal["paper", "tiny"] = "paper"
    loss: Literal["tokens", "options"] | None = None
    adapters: Annotated[list[AdapterRecipe], change("extension")] = Field(default_factory=list)
    sweep: Annotated[SweepRecipe | None, change("extension")] = None
    choose: Annotated[Literal["eval_loss"] | None, change("extension")] = None
    validation_rows: int | None = Field(default=None, ge=0)
    validate_steps: int | None = Field(default=None, ge=1)
    best_metric: BestMetric | None = None
    patience: int | None = Field(default=None, ge=1)
    workers: Annotated[WorkerCount, change("speed")] = "auto"
    max_failures: Annotated[int, change("speed")] = Field(default=2, ge=0)

    @field_validator("workers")
    @classmethod
    def _is_a_range(cls, workers: WorkerCount) -> WorkerCount:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError("a range of workers is [least, most], the least first")
        return workers

    @model_validator(mode="after")
    def _patience_has_a_metric(self) -> FinetuneRecipe:
        if self.patience is not None and self.best_metric is None:
            raise ValueError("patience needs best_metric: name what is to improve")
        return self


class EndpointRecipe(Section):
    """An OpenAI-compatible server that answers. `key_variable` names the environment variable with the key, or is null.

    `limit_parameter` is what the server calls the limit of an answer's tokens. `instruct` ends each question with a
    line on the answer's form; false suits a served model that was tuned on this project's prompts.
    """

    url: str | None = None
    model: str | None = Field(default=None, min_length=1)
    instruct: bool = True
    key_variable: Annotated[str | None, change("speed")] = "OPENAI_API_KEY"
    limit_parameter: Annotated[Literal["max_tokens", "max_completion_tokens"], change("speed")] = "max_tokens"
    concurrency: Annotated[int, change("speed")] = Field(default=8, ge=1, le=1024)
    timeout_s: Annotated[float, change("speed")] = Field(default=60.0, gt=0)
    max_retries: Annotated[int, change("speed")] = Field(default=5, ge=0, le=20)
    requests_per_minute: Annotated[float | None, change("speed")] = Field(default=None, gt=0)

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
    """How the cells are answered. `persona: hidden` leaves the card out of every prompt: the control run of a score."""

    on: Literal["panel", "test"] = "panel"
    persona: Literal["shown", "hidden"] = "shown"
    engine: Literal["packed", "vllm", "endpoint", "rules", "fake"] = "packed"
    closed: Literal["score", "text"] = "score"
    rationale: bool = False
    context: Literal["none", "previous"] = "none"
    adapters: Annotated[dict[str, str | list[str]], change("extension")] = Field(default_factory=dict)
    without_adapter: Annotated[Literal["error", "base"], change("extension")] = "error"
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
    draws: Annotated[int, change("extension")] = Field(default=1, ge=1)
    waves: Annotated[int, change("extension")] = Field(default=1, ge=1)
    actors: Annotated[AutoCount, change("speed")] = "auto"
    slots: AutoCount = "auto"
    shard_personas: int = Field(default=64, ge=1)
    max_attempts: Annotated[int, change("speed")] = Field(default=3, ge=1)
    max_quarantined: Annotated[float, change("speed")] = Field(default=0.01, ge=0, le=1)
    max_hours: Annotated[float | None, change("speed")] = Field(default=None, gt=0)
    endpoint: EndpointRecipe = EndpointRecipe()


class EvaluateRecipe(Section):
    """What the responses are scored against. Evaluation makes no response, so all of it may change freely.

    `bertscore_model` and `embedding_model` are encoders, by folder or hub id: for BERTScore, and for the similarity of
    answers to cards. Neither is measured without its encoder.
    """

    metrics: Annotated[list[str], change("speed")] = Field(default_factory=list)
    reference: Annotated[Literal["auto", "dataset", "teacher", "none"], change("speed")] = "auto"
    bertscore_model: Annotated[str | None, change("speed")] = None
    embedding_model: Annotated[str | None, change("speed")] = None
    bootstrap: Annotated[int, change("speed")] = Field(default=1000, ge=0)


class ClusterRecipe(Section):
    """What of the cluster a run may use. Limits are totals by Ray resource name; prices are per hour.

    `policy` says what planning may change where memory is short or to spare: `adaptive` all that is no content, `fixed`
    nothing that the recipe says, `fit` as adaptive within `memory_gb` (2³⁰ bytes) of each worker's and actor's memory.
    """

    limits: Annotated[dict[str, float], change("speed")] = Field(default_factory=dict)
    prices: Annotated[dict[str, float], change("speed")] = Field(default_factory=dict)
    policy: Annotated[Literal["adaptive", "fixed", "fit"], change("speed")] = "adaptive"
    memory_gb: Annotated[float | None, change("speed")] = Field(default=None, gt=0)

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

    @model_validator(mode="after")
    def _fits_into_something(self) -> ClusterRecipe:
        if (self.policy == "fit") != (self.memory_gb is not None):
            raise ValueError("policy: fit and memory_gb belong together: set both or neither")
        return self


# Questions of one card that share a row of `loss: options`: more save tokens of the card, and cost attention.
QUESTIONS_PER_ROW = 4


class FinetuneSettings(Section):
    """The hyper-parameters a preset and the recipe's own values resolve to.

    `batch_size` × `accumulation` is the global batch, whatever the number of workers. `loss` is on the answer's tokens,
    or on the choice among a closed item's options as generation scores it.
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
    loss: Literal["tokens", "options"] = "tokens"
    scheduler: Literal["cosine"] = "cosine"
    validation_rows: int = 64
    validate_steps: int | None = None
    best_metric: BestMetric | None = None
    patience: int | None = None

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
