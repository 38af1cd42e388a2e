"""What `plan` says of several adapters: each one's share of the inventory, and which are trained at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.errors import InfeasiblePlanError, ModelError
from polypersona.models.location import is_hub_id, locate_model, weight_bytes
from polypersona.models.shapes import load_shape
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.roster import Member, build_roster, has_several
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.model_shape import ModelShape
from polypersona.scheduling.packing import Demand, pack, share_of
from polypersona.scheduling.places import fewest_workers, within
from polypersona.scheduling.training_plan import TrainPlan, plan_training


@dataclass(frozen=True, slots=True)
class AdapterTurn:
    """One of several adapters: what it is for, what its training takes, when it begins among the others.

    `turn` counts from 1: trainings of one turn begin together, those of the next when there is room again.
    """

    name: str
    scope: str
    base: str
    rank: int
    turn: int
    beside: int
    plan: TrainPlan

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def plan_adapters(recipe: Recipe, inventory: Inventory) -> tuple[AdapterTurn, ...]:
    """Return the adapters in the order in which they begin; empty where the recipe has one.

    How long a training takes is by epochs and the size of its base: which rows are whose is the dataset's to say.

    Raises:
        InfeasiblePlanError: one of them does not fit.
        RecipeError: two adapters have one name.
    """
    if not has_several(recipe):
        return ()
    roster = {member.name: member for member in build_roster(recipe)}
    plans = {name: _plan(member, inventory, len(roster)) for name, member in roster.items()}
    demands = [_demand(roster[name], plan) for name, plan in plans.items()]
    stretches = pack(demands, inventory)
    begins = sorted({one.begin for one in stretches})
    return tuple(
        AdapterTurn(
            name=one.name,
            scope=roster[one.name].scope.text,
            base=roster[one.name].recipe.model.base,
            rank=finetune_settings(roster[one.name].recipe.finetune).rank,
            turn=begins.index(one.begin) + 1,
            beside=sum(other.begin <= one.begin < other.end for other in stretches) - 1,
            plan=plans[one.name],
        )
        for one in sorted(stretches, key=lambda one: (one.begin, one.name))
    )


def adapter_rows(turns: Sequence[AdapterTurn]) -> list[tuple[str, str, str]]:
    """Return the adapters as rows of the plan's table."""
    rows = []
    for one in turns:
        plan = one.plan
        each = f"{plan.gpus_per_worker} GPU" if plan.gpus_per_worker else f"{plan.cpus_per_worker:g} CPU"
        value = f"turn {one.turn}, {plan.workers.value} × {each}, {plan.dtype.value}, {plan.quantization.value}"
        company = f"{one.beside} more at the same time" if one.beside else "alone"
        why = f"{one.scope}; rank {one.rank} on {one.base}; {company}"
        rows.append((f"adapter {one.name}", value, why))
    return rows


def _plan(member: Member, inventory: Inventory, count: int) -> TrainPlan:
    """Plan a training within the share of `count`, or within a larger one where it needs more than that has."""
    shape, refused = _shape(member), None
    for beside in range(count, 0, -1):
        share = share_of(inventory, beside, fewest_workers(member.recipe))
        try:
            return plan_training(within(member.recipe, share), share, shape=shape)
        except InfeasiblePlanError as error:
            refused = error
    assert refused is not None
    raise refused


def _shape(member: Member) -> ModelShape | None:
    model = member.recipe.model
    try:
        return load_shape(model.base, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except ModelError:
        if not is_hub_id(locate_model(model.base)):
            raise
        return None  # of the hub, and not in the cache: the stage will read it


def _demand(member: Member, plan: TrainPlan) -> Demand:
    epochs = finetune_settings(member.recipe.finetune).epochs
    return Demand(
        name=member.name,
        workers=plan.workers.value,
        cpus=plan.cpus_per_worker,
        gpus=plan.gpus_per_worker,
        memory_bytes=0 if plan.gpus_per_worker else plan.memory_bytes or 0,
        size=float(epochs * (weight_bytes(member.recipe.model.base) or 1)),
    )
