"""The contract of an engine: groups of cells in, one answer per cell out.

An engine knows personas, items and messages. It knows no Ray, no shard, no metric and no file of the run. A cell's
sampling depends on the cell's own seed alone, so neither the pool nor the order of cells can change an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from polypersona.chatml import ShowOptions
from polypersona.records import Disposition, Item, Persona

Reproduces = Literal["bytes", "codes", "none"]


class Cell(NamedTuple):
    """An assignment inside an engine. `order` are indices into the item's options as the prompt shows them."""

    assignment_id: str
    item: Item
    seed: int
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A persona and its cells, in the order they are asked."""

    persona: Persona
    cells: tuple[Cell, ...]


class Answer(NamedTuple):
    """What an engine says to one cell.

    `text` is the whole answer (a closed one: the chosen option's sentence and the rationale); `rationale` the part
    after the choice. `option_probs` are in the item's own order and sum to one; None where no probability was
    computed. `code` is a survey code or None. `error` is empty unless the disposition is `error`.
    """

    assignment_id: str
    text: str
    disposition: Disposition
    rationale: str = ""
    code: int | None = None
    label: str = ""
    option_probs: tuple[float, ...] | None = None
    error: str = ""
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Which OpenAI-compatible server answers, and how it may be asked; the fields of `generate.endpoint`.

    The key is not here: an engine reads it from the environment of its own process.
    """

    url: str
    model: str
    instruct: bool = True
    key_variable: str | None = "OPENAI_API_KEY"
    limit_parameter: str = "max_tokens"
    concurrency: int = 8
    timeout_s: float = 60.0
    max_retries: int = 5
    requests_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything an engine is built from, resolved: no `auto` is left, paths are absolute. Picklable.

    `model` is a folder or a hub id, `adapter` a folder or empty. `slots` is how many cells are in flight at once.
    `length_norm` divides an option's log-probability by its number of tokens; `cache_bytes` bounds keys and values, 0
    does not.
    """

    engine: str
    seed: int
    model: str = ""
    revision: str | None = None
    adapter: str = ""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    quantization: Literal["none", "int8", "nf4"] = "none"
    trust_remote_code: bool = False
    show_options: ShowOptions = "labels"
    closed: Literal["score", "text"] = "score"
    rationale: bool = False
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 96
    slots: int = 64
    threads: int = 1
    context: Literal["none", "previous"] = "none"
    calibration: Literal["none", "permute", "content_free"] = "none"
    length_norm: bool = False
    persona: Literal["shown", "hidden"] = "shown"
    cache_bytes: int = 0
    endpoint: EndpointSettings | None = None


class Engine(Protocol):
    """Answers groups of cells. Built once per actor from `EngineSettings`."""

    name: str
    reproduces: Reproduces

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in the order of the groups and of their cells.

        A cell that cannot be answered comes back with disposition `error` and its message; it never raises for
        one cell.
        """

    def close(self) -> None:
        """Free what the engine holds."""
