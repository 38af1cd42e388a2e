"""How responses are scored: inventory → tasks side by side. Pure: no clock, no Ray, no file."""

from __future__ import annotations

from dataclasses import dataclass

from polypersona.scheduling.machines import Decision, Inventory


@dataclass(frozen=True, slots=True)
class EvaluatePlan:
    """How many tasks score at once; each reserves `cpus_per_task`."""

    tasks: Decision[int]
    cpus_per_task: float


def plan_evaluation(inventory: Inventory) -> EvaluatePlan:
    """Return one task a CPU: the metrics compute in one thread, and a task holds one part's sums alone."""
    cpus = max(1, int(inventory.cpus))
    return EvaluatePlan(Decision(cpus, f"{cpus} CPUs, one task each"), 1.0)
