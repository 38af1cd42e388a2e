"""The policy: inventory + recipe → plan. Pure: no clock, no Ray, no file; every decision carries its reason.

`auto` values of the recipe are decided here and nowhere else: `training_plan` decides how adapters are tuned,
`generation_plan` how cells are answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from polypersona.recipe import Recipe
from polypersona.scheduling.evaluation_plan import EvaluatePlan, plan_evaluation
from polypersona.scheduling.generation_plan import GeneratePlan, plan_generation
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.training_plan import RowSizes, TrainPlan, plan_training


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run where."""

    inventory: Inventory
    train: TrainPlan
    generate: GeneratePlan
    evaluate: EvaluatePlan
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def build_plan(
    recipe: Recipe,
    inventory: Inventory,
    num_shards: int | None = None,
    weight_bytes: int | None = None,
    *,
    shape: ModelShape | None = None,
    rows: RowSizes | None = None,
    most_micro_batch: int | None = None,
    trained_in: Mapping[str, str] | None = None,
    frozen: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide everything the recipe leaves to `auto`, except what the run has decided already.

    Args:
        recipe: what is asked for.
        inventory: what there is, limits already applied.
        num_shards: how many shards are left to answer; None where that is not known yet.
        weight_bytes: size of the base model's weights in 16 bits; None where it is not known.
        shape: the base model's; None where it is not known.
        rows: how long the rows of the dataset are; None for as long as finetune.max_length allows.
        most_micro_batch: the largest micro-batch that this hardware is known to hold; None where nothing is known.
        trained_in: the precision that the run's first training has settled, by `model.dtype` and `model.quantization`;
            None before that.
        frozen: what the run's first start of generation has decided and run.json holds; None before that.

    Raises:
        InfeasiblePlanError: not even one actor or worker fits; the message names the shortest resource.
    """
    return Plan(
        inventory=inventory,
        train=plan_training(
            recipe, inventory, shape=shape, rows=rows, most_micro_batch=most_micro_batch, frozen=trained_in
        ),
        generate=plan_generation(recipe, inventory, num_shards, weight_bytes, frozen, shape),
        evaluate=plan_evaluation(inventory),
    )
