"""What `plan` says of several adapters: each one's share of the inventory, which are trained together, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.cli.plan_training import (
    count_rows,
    estimate_adapter,
    find_shape,
    hours_rows,
    known_rows,
    nothing_left,
    row_sizes,
)
from polypersona.models.location import weight_bytes
from polypersona.planned_training import demand_of, frozen_plan, is_trained, plan_beside, settled_precision, work_of
from polypersona.progress import render_seconds
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.records import Example
from polypersona.roster import Member, build_roster
from polypersona.scheduling.estimate import TrainingEstimate, estimate_together
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.packing import Stretch, pack
from polypersona.scheduling.training_plan import FROZEN, TrainPlan, plan_training
from polypersona.storage import RunDirectory, load_run
from polypersona.training.sampling import num_steps


@dataclass(frozen=True, slots=True)
class AdapterTurn:
    """One of several adapters: what it is for, what its training takes, when it begins among the others.

    `turn` counts from 1: trainings of one turn begin together, those of the next when there is room again; it is 0 for
    an adapter that is trained already, which has no plan. `begins_s` is after the first one begins, None where it is
    not known.
    """

    name: str
    scope: str
    base: str
    rank: int
    turn: int
    beside: int
    plan: TrainPlan | None
    precision: Mapping[str, str] | None
    estimate: TrainingEstimate
    begins_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AdapterPlans:
    """What `plan` says of several adapters, in the order in which they begin, and of all of them together."""

    turns: tuple[AdapterTurn, ...]
    together: TrainingEstimate
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A training that is still to run; `examples` are those of all its epochs, or epochs where no rows are known."""

    member: Member
    plan: TrainPlan
    estimate: TrainingEstimate
    examples: float


def plan_adapters(
    recipe: Recipe, inventory: Inventory, run: RunDirectory, rows: Sequence[Example] | None
) -> AdapterPlans:
    """Return the plan of a recipe's several adapters, as a start of finetune would make it now.

    Args:
        recipe: the run's.
        inventory: what there is.
        run: the run's directory, which may have adapters already.
        rows: of the training split. Until the dataset is there, how long a training takes is by epochs and the size of
            its base: which rows are whose is the dataset's to say.

    Raises:
        InfeasiblePlanError: one of them does not fit.
        RecipeError: two adapters have one name.
    """
    roster, stored = build_roster(recipe), load_run(run)
    trained = [member for member in roster if is_trained(run, member)]
    left = [member for member in roster if member not in trained]
    notes: dict[str, None] = {}
    waiting = {
        member.name: _plan(member, inventory, len(left), rows, frozen_plan(stored, member), notes) for member in left
    }
    stretches = _pack(waiting, inventory)
    is_known = all(one.estimate.hours is not None for one in waiting.values())
    together = nothing_left("every adapter is there")
    if waiting:
        end = max(one.end for one in stretches) if is_known else None
        estimates = {name: one.estimate for name, one in waiting.items()}
        together = estimate_together(estimates, end, inventory, recipe.cluster.prices)
    begins = sorted({one.begin for one in stretches})
    turns = [
        _turn(
            waiting[one.name].member,
            stored,
            waiting[one.name].estimate,
            plan=waiting[one.name].plan,
            turn=begins.index(one.begin) + 1,
            beside=sum(other.begin <= one.begin < other.end for other in stretches) - 1,
            begins_s=3600 * one.begin if is_known else None,
        )
        for one in sorted(stretches, key=lambda one: (one.begin, one.name))
    ]
    done = [_turn(member, stored, nothing_left(f"{member.folder}/ is there")) for member in trained]
    return AdapterPlans((*done, *turns), together, tuple(notes))


def adapter_rows(turns: Sequence[AdapterTurn], together: TrainingEstimate) -> list[tuple[str, str, str]]:
    """Return the adapters as rows of the plan's table, and what all of them are expected to take."""
    return [(f"adapter {one.name}", *_worded(one)) for one in turns] + hours_rows(together)


def _turn(
    member: Member,
    stored: Mapping[str, Any],
    estimate: TrainingEstimate,
    *,
    plan: TrainPlan | None = None,
    turn: int = 0,
    beside: int = 0,
    begins_s: float | None = None,
) -> AdapterTurn:
    return AdapterTurn(
        name=member.name,
        scope=member.scope.text,
        base=member.recipe.model.base,
        rank=finetune_settings(member.recipe.finetune).rank,
        turn=turn,
        beside=beside,
        plan=plan,
        precision=settled_precision(member.recipe, frozen_plan(stored, member)),
        estimate=estimate,
        begins_s=begins_s,
    )


def _worded(one: AdapterTurn) -> tuple[str, str]:
    """Return value and reason of an adapter's row."""
    what = f"{one.scope}; rank {one.rank} on {one.base}"
    plan = one.plan
    if plan is None:
        return ", ".join(["finished", *(one.precision or {}).values()]), what
    each = f"{plan.gpus_per_worker} GPU" if plan.gpus_per_worker else f"{plan.cpus_per_worker:g} CPU"
    value = f"turn {one.turn}, {plan.workers.value} × {each}, {plan.dtype.value}, {plan.quantization.value}"
    parts = [what, f"{one.beside} more at the same time" if one.beside else "alone"]
    if FROZEN in (plan.dtype.reason, plan.quantization.reason):
        parts.append(f"precision {FROZEN}")
    if one.estimate.hours is not None:
        value += f", {one.estimate.hours:.3g} h"
    if one.begins_s:
        parts.append(f"begins after {render_seconds(one.begins_s)}")
    return value, "; ".join(parts)


def _plan(
    member: Member,
    inventory: Inventory,
    count: int,
    rows: Sequence[Example] | None,
    frozen: Mapping[str, Any],
    notes: dict[str, None],
) -> _Waiting:
    """Plan a training as one of `count`, as its own start would; what is to be said beside it goes into `notes`."""
    examples = None if rows is None else member.scope.examples(rows)
    shape, told = find_shape(member.recipe)
    notes.update(dict.fromkeys(told))
    num_rows = count_rows(member.recipe, member.scope, examples)
    settings = finetune_settings(member.recipe.finetune)

    def plan(recipe: Recipe, share: Inventory) -> _Waiting:
        most, told = known_rows(recipe, share, shape)
        notes.update(dict.fromkeys(told))
        made = plan_training(
            recipe,
            share,
            shape=shape,
            rows=row_sizes(recipe, examples),
            most_micro_batch=most,
            frozen=settled_precision(recipe, frozen),
        )
        # What is paid for is paid for all of them together.
        estimate = estimate_adapter(recipe, made, share, num_rows, inventory, {})
        seen = settings.epochs
        if examples and num_rows:
            steps = num_steps(num_rows, settings.global_batch, settings.epochs)
            seen = float(steps * settings.global_batch)
        return _Waiting(member, made, estimate, seen)

    return plan_beside(member.recipe, inventory, count, plan)


def _pack(waiting: Mapping[str, _Waiting], inventory: Inventory) -> tuple[Stretch, ...]:
    """Return when each training runs, in hours where all are known."""
    sizes = {name: weight_bytes(one.member.recipe.model.base) for name, one in waiting.items()}
    work = work_of({name: one.examples for name, one in waiting.items()}, sizes)
    demands = [demand_of(name, one.plan, work[name]) for name, one in waiting.items()]
    hours = {name: one.estimate.hours for name, one in waiting.items()}
    known = {name: value for name, value in hours.items() if value is not None}
    return pack(demands, inventory, known if len(known) == len(hours) else None)
