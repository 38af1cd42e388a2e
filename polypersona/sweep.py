"""Several adapters of one run: planned on their shares of the inventory, trained side by side, registered one by one.

One that fails is an event and an entry in run.json; the others go on, and the next start trains what is missing. How
one adapter is planned and trained is the stage's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from polypersona.errors import PolypersonaError, RunFailedError
from polypersona.events import EventLog
from polypersona.models.location import weight_bytes
from polypersona.planned_training import Found, Planned, demand_of, plan_beside, work_of
from polypersona.recipe import Recipe
from polypersona.scheduling.inventory import start_ray
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.packing import Demand
from polypersona.side_by_side import run_side_by_side
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.training.folder import summarise_training

Plan = Callable[[Found, RunDirectory, Inventory], Planned]
Train = Callable[[Planned, RunDirectory, Any], dict[str, Any]]


def train_several(
    recipe: Recipe, directory: RunDirectory, found: Sequence[Found], plan: Plan, train: Train
) -> dict[str, Any]:
    """Train those of several adapters that are not there, and return a summary.

    Args:
        recipe: the run's.
        directory: the run's.
        found: all of its adapters.
        plan: settles how one is trained within an inventory.
        train: trains and commits one, with a board to tell its steps; runs in a thread.

    Raises:
        InfeasiblePlanError: one does not fit the whole inventory.
        RunFailedError: one or more failed; the others are registered.
    """
    entries = {one.member.name: _entry(one.training) for one in found if one.training is not None}
    waiting = [one for one in found if one.training is None]
    if entries:  # the driver may have been killed between an adapter and its entry
        _register(directory, "stages", entries)
    failures: dict[str, Exception] = {}
    if waiting:
        inventory = start_ray(recipe.cluster.limits)
        plans = [_plan_beside(one, directory, inventory, len(waiting), plan) for one in waiting]
        by_name = {one.member.name: one for one in plans}
        _register(directory, "plan", {name: one.as_json for name, one in by_name.items()})
        log = EventLog(directory, "finetune")
        for name, result in run_side_by_side(
            _demands(plans),
            {name: one.steps for name, one in by_name.items()},
            inventory,
            lambda name, board: train(by_name[name], directory, board),
            lambda name, beside: log.write("training_began", adapter=name, beside=beside),
        ):
            if isinstance(result, Exception):
                failures[name] = result
                entry = {"state": "failed", "error": _said(result)}
                log.write("training_failed", adapter=name, error=entry["error"])
            else:
                entry = entries[name] = _entry(result)
            _register(directory, "stages", {name: entry})
    if failures:
        raise _named_failures(failures, len(found))
    counts = {"trained": len(waiting), "finished_before": len(found) - len(waiting)}
    return {"skipped": not waiting, **counts, "adapters": entries}


def _plan_beside(one: Found, directory: RunDirectory, inventory: Inventory, count: int, plan: Plan) -> Planned:
    """Plan a training as one of `count`.

    Raises:
        InfeasiblePlanError: it does not fit the whole inventory.
    """
    member = one.member
    return plan_beside(
        member.recipe,
        inventory,
        count,
        lambda recipe, share: plan(replace(one, member=replace(member, recipe=recipe)), directory, share),
    )


def _demands(plans: Iterable[Planned]) -> list[Demand]:
    """Return what each training takes; how long is by its examples and the size of its base."""
    by_name = {one.member.name: one for one in plans}
    work = work_of(
        {name: float(one.steps * one.job.settings.global_batch) for name, one in by_name.items()},
        {name: weight_bytes(one.member.recipe.model.base) for name, one in by_name.items()},
    )
    return [demand_of(name, one.plan, work[name]) for name, one in by_name.items()]


def _entry(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json says of an adapter: what it is, and how it did on so many validation rows."""
    facts = {"state": "finished", "scope": training["scope"], "base": training["base"]["name"]}
    told = summarise_training(training, is_skipped=False)
    del told["skipped"]
    return facts | told | {"num_validation": training["num_validation"]}


def _register(directory: RunDirectory, part: str, entries: Mapping[str, Any]) -> None:
    """Put entries by adapter into run.json, beside those that are there."""
    stage = load_run(directory).get(part, {}).get("finetune", {})
    adapters = {**stage.get("adapters", {}), **entries}
    update_run(directory, {part: {"finetune": {**stage, "adapters": adapters}}})


def _named_failures(failures: Mapping[str, Exception], total: int) -> PolypersonaError:
    told = "; ".join(f"{name} ({_said(error)})" for name, error in sorted(failures.items()))
    return RunFailedError(
        f"{len(failures)} of {total} adapters were not trained: {told}. The others are finished and registered.",
        "Mend the cause and run the same command again: only what is missing is trained.",
    )


def _said(error: Exception) -> str:
    if isinstance(error, PolypersonaError):
        return error.message
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
