"""A training before it begins: what a start finds of an adapter, and what it settles about making it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polypersona.fingerprint import digest_of
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.roster import Member
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.training_plan import TrainPlan
from polypersona.training.job import TrainingJob
from polypersona.training.sampling import num_steps


def memory_parts(recipe: Recipe, base_hash: str, inventory: Inventory) -> dict[str, Any]:
    """Return what the rows that memory holds at once depend on, by which a known micro-batch is found again."""
    settings = finetune_settings(recipe.finetune)
    return {
        "hardware": hardware_of(inventory),
        "base": base_hash,
        "dtype": recipe.model.dtype,
        "quantization": recipe.model.quantization,
        "rank": settings.rank,
        "max_length": settings.max_length,
        "loss": settings.loss,
    }


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter as a start finds it: what it follows from, its precision where that is settled, and its training.json.

    `training` is None where it is still to be trained.
    """

    member: Member
    content: Mapping[str, Any]
    precision: Mapping[str, str] | None
    training: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Planned:
    """A training that can begin."""

    member: Member
    content: Mapping[str, Any]
    plan: TrainPlan
    precision: Mapping[str, str]
    job: TrainingJob
    num_examples: int
    num_rows: int
    memory_parts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What identifies the adapter before it is there."""
        return digest_of(self.content)

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return num_steps(self.num_rows, self.job.settings.global_batch, self.job.settings.epochs)

    @property
    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values, with the precision that the run is frozen to."""
        return {**self.plan.as_json(), **self.precision}
