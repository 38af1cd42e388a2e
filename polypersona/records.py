"""The values that pass between stages: persona, item, assignment, example.

Frozen and without behaviour beyond what follows from their own fields. Ids are derived from content, never
counted. Knows no file, no model, no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

AttributeValue: TypeAlias = str | int | float | bool | tuple[str, ...]
ResponseType = Literal["likert", "agreement", "yesno", "open", "single", "multiple", "numeric"]
RESPONSE_TYPES: tuple[ResponseType, ...] = (
    "likert", "agreement", "yesno", "open", "single", "multiple", "numeric",
)  # fmt: skip
Disposition = Literal["complete", "refusal", "item_nonresponse", "truncated", "invalid", "error", "not_asked"]
DISPOSITIONS: tuple[Disposition, ...] = (
    "complete", "refusal", "item_nonresponse", "truncated", "invalid", "error", "not_asked",
)  # fmt: skip


def encode_parts(*parts: object) -> bytes:
    """Return the parts as bytes from which they could be told apart; those of more parts follow those of fewer."""
    encoded = [str(part).encode() for part in parts]
    return b"".join(len(data).to_bytes(8, "little") + data for data in encoded)


def digest(*parts: object, size: int = 8) -> str:
    """Return the hex BLAKE2b digest of `encode_parts`; `size` is in bytes."""
    return hashlib.blake2b(encode_parts(*parts), digest_size=size).hexdigest()


def seed_from(*parts: object) -> int:
    """Return a seed in [0, 2**63) derived from the parts."""
    return int(digest(*parts, size=8), 16) >> 1


@dataclass(frozen=True, slots=True)
class Persona:
    """A respondent's profile: typed attributes, optional free text, survey weight."""

    persona_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    text: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition of routing: an earlier closed item, and those of its codes that let a later item be asked."""

    item_id: str
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of an instrument.

    `options` are the labels in scale order, low to high on what the stem says; `codes` are their survey
    codes (1…K unless the instrument says otherwise). `reverse` is true where agreeing with the stem means
    less of the construct. `missing` maps a missing code to its label. `asked_if` are gates that must all
    hold; an item without any is always asked. `shown` is the order in which prompts show the options, as indices; empty
    is their own.
    """

    item_id: str
    domain: str
    stem: str
    response_type: ResponseType
    options: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    scale: Literal["ordered", "nominal"] = "ordered"
    reverse: bool = False
    construct: str = ""
    source: str = ""
    missing: Mapping[int, str] = field(default_factory=dict)
    variant: str = ""
    asked_if: tuple[Gate, ...] = ()
    shown: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.codes:
            object.__setattr__(self, "codes", tuple(range(1, len(self.options) + 1)))

    @property
    def is_closed(self) -> bool:
        """Whether an answer is one of the options."""
        return bool(self.options)

    @property
    def options_as_shown(self) -> tuple[str, ...]:
        """The labels in the order in which prompts show them."""
        return tuple(self.options[index] for index in self.shown) if self.shown else self.options


@dataclass(frozen=True, slots=True)
class Assignment:
    """Persona × item × variant × wave × draw: the unit of work. Its id follows from those five."""

    persona_id: str
    item_id: str
    variant: str = ""
    wave: int = 1
    draw: int = 1

    @property
    def assignment_id(self) -> str:
        """Sixteen hex digits, equal wherever the five parts are equal."""
        return digest(self.persona_id, self.item_id, self.variant, self.wave, self.draw)

    def seed(self, run_seed: int) -> int:
        """Return the seed of the cell's sampling, in [0, 2**63): a function of the run's seed and the id."""
        return seed_from(run_seed, self.assignment_id)


@dataclass(frozen=True, slots=True)
class Example:
    """A training row: ChatML messages and what they were built from.

    `messages` are system, user, assistant. `metadata` has at least persona_id, persona (attributes and
    text), domain, item_id, question (the stem), question_type and reference (the assistant's text); rows
    of a closed item also have `code` and `label`.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    metadata: Mapping[str, Any]
