"""A training before it begins: what a start finds of an adapter, and what it settles about making it.

`plan` shows what a start would do, so both take it from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from polypersona.errors import InfeasiblePlanError
from polypersona.fingerprint import digest_of
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.roster import ALONE, Member
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.micro_batches import hardware_of
from polypersona.scheduling.packing import Demand, share_of
from polypersona.scheduling.places import fewest_workers, within
from polypersona.scheduling.training_plan import TrainPlan
from polypersona.storage import RunDirectory
from polypersona.training.card import TRAINING
from polypersona.training.job import TrainingJob, content_of
from polypersona.training.sampling import num_steps

Result = TypeVar("Result")


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


def frozen_plan(stored: Mapping[str, Any], member: Member) -> Mapping[str, Any]:
    """Return an adapter's plan as an earlier start wrote it into run.json; empty where none did."""
    plans: Mapping[str, Any] = stored.get("plan", {}).get("finetune", {})
    found: Mapping[str, Any] = plans if member.name == ALONE else plans.get("adapters", {}).get(member.name, {})
    return found


def settled_precision(recipe: Recipe, frozen: Mapping[str, Any]) -> dict[str, str] | None:
    """Return `model.dtype` and `model.quantization` where recipe and frozen plan say both; None where one is open."""
    asked = {"model.dtype": recipe.model.dtype, "model.quantization": recipe.model.quantization}
    resolved = {name: frozen.get(name) if value == "auto" else value for name, value in asked.items()}
    return {name: str(value) for name, value in resolved.items()} if all(resolved.values()) else None


def is_trained(run: RunDirectory, member: Member) -> bool:
    """Return whether an adapter of the recipe's own settings is there; data and weights are not compared."""
    name = f"{member.folder}/{TRAINING}"
    if not run.exists(name):
        return False
    made: Mapping[str, Any] = run.read_json(name).get("content", {})
    return all(made.get(key) == value for key, value in content_of(member.recipe).items())


def plan_beside(
    recipe: Recipe, inventory: Inventory, count: int, plan: Callable[[Recipe, Inventory], Result]
) -> Result:
    """Plan a training within the share of `count`, or within a larger one where it needs more memory than that has.

    Args:
        recipe: the adapter's.
        inventory: what there is for all of them.
        count: trainings that are to run.
        plan: settles it by the recipe, with no more workers than the share holds, and that share.

    Raises:
        InfeasiblePlanError: it does not fit the whole inventory either.
    """
    refused: InfeasiblePlanError | None = None
    tried: list[Inventory] = []
    for beside in range(count, 0, -1):
        share = share_of(inventory, beside, fewest_workers(recipe))
        if share in tried:
            continue
        tried.append(share)
        try:
            return plan(within(recipe, share), share)
        except InfeasiblePlanError as error:
            refused = error
    assert refused is not None
    raise refused


def demand_of(name: str, plan: TrainPlan, size: float) -> Demand:
    """Return what a training takes of the inventory; `size` says which of several is the largest."""
    return Demand(
        name=name,
        workers=plan.workers.value,
        cpus=plan.cpus_per_worker,
        gpus=plan.gpus_per_worker,
        memory_bytes=0 if plan.gpus_per_worker else plan.memory_bytes or 0,
        size=size,
    )


def work_of(examples: Mapping[str, float], base_bytes: Mapping[str, int | None]) -> dict[str, float]:
    """Return how much there is to compute for each training: its examples times the size of its base.

    Args:
        examples: that each sees, by name.
        base_bytes: the size of each one's base; None where that is not known, which counts as the largest.
    """
    largest = max((size for size in base_bytes.values() if size), default=1)
    return {name: count * (base_bytes[name] or largest) for name, count in examples.items()}


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
