"""How long training and generation take: a plan and what was measured → expected rows, tokens, hours, cost.

Pure: no clock, no Ray, no file. What was not measured on the plan's hardware is not known, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.scheduling.calibration import Calibration
from polypersona.scheduling.generation_plan import GeneratePlan
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.training_pace import TrainingPace

# Trainings named in a reason.
MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """What generation is expected to take; every figure is None where it is not known, and `reason` says why.

    `rows_per_s` is that of all actors. Tokens, hours and cost are those of the cells still to answer; `cost` is None
    without prices too.
    """

    reason: str
    rows_per_s: float | None = None
    prompt_tokens: int | None = None
    reused_share: float | None = None
    new_tokens: int | None = None
    start_up_s: float | None = None
    hours: float | None = None
    cost: float | None = None
    cost_reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def devices_of(engine: str, plan: GeneratePlan, inventory: Inventory) -> tuple[str, ...]:
    """Return the kind of hardware of each place for an actor: a GPU, else a CPU; for vLLM on CPUs a whole node.

    A kind is empty where the inventory does not name a node's processor.
    """
    if plan.gpus_per_actor:
        unused = {kind.name for kind in plan.left_out}
        return tuple(gpu.name for node in inventory.nodes if node.accelerator not in unused for gpu in node.gpus)
    if engine == "vllm":
        return tuple(f"{node.cpus:g} × {node.processor}" if node.processor else "" for node in inventory.nodes)
    return tuple(node.processor for node in inventory.nodes for _ in range(int(node.cpus)))


def estimate_generation(
    plan: GeneratePlan,
    inventory: Inventory,
    devices: Sequence[str],
    measured: Mapping[str, Calibration],
    cells: int,
    prices: Mapping[str, float],
) -> Estimate:
    """Return what answering the cells is expected to take.

    Rows a second are the sum over the actors. Where some places stay free, each actor counts as one of the slowest
    kind, because which places are taken is not planned. Hours count one start-up.

    Args:
        plan: the actors.
        inventory: what is paid for: all CPUs and GPUs within the limits, whether an actor takes them or not.
        devices: the kind of hardware of each place for an actor.
        measured: what was measured for this workload, by kind of hardware.
        cells: how many are still to answer.
        prices: per hour, by Ray resource name.
    """
    kinds = tuple(dict.fromkeys(devices))
    if not all(kinds):
        return Estimate("the inventory does not name the processor of every node")
    if missing := [kind for kind in kinds if kind not in measured]:
        return Estimate(f"run polypersona bench on {' and on '.join(missing)}")
    found = [measured[kind] for kind in kinds]
    paces = [measured[device].figures.rows_per_s for device in devices]
    actors = plan.actors.value
    rows_per_s = sum(paces) if actors == len(paces) else actors * min(paces)
    rows = sum(one.figures.rows for one in found)
    prompt_tokens = sum(one.figures.prompt_tokens for one in found)
    reused = sum(one.figures.reused_prompt_tokens for one in found)
    new_tokens = sum(one.figures.new_tokens for one in found)
    start_up_s = max(one.figures.start_up_s for one in found)
    hours = (cells / rows_per_s + start_up_s) / 3600 if cells else 0.0
    cost, cost_reason = _cost(hours, inventory, prices)
    return Estimate(
        reason=_reason(found),
        rows_per_s=rows_per_s,
        prompt_tokens=round(cells * prompt_tokens / rows),
        reused_share=reused / prompt_tokens if prompt_tokens else None,
        new_tokens=round(cells * new_tokens / rows),
        start_up_s=start_up_s,
        hours=hours,
        cost=cost,
        cost_reason=cost_reason,
    )


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """What tuning an adapter is expected to take; every figure is None where it is not known, and `reason` says why.

    Of several adapters the rows and tokens are those of all, and `tokens_per_s` is None. Where nothing is left to tune
    `hours` is 0.
    """

    reason: str
    rows: int | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    hours: float | None = None
    cost: float | None = None
    cost_reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def estimate_training(
    pace: TrainingPace | None, rows: float, inventory: Inventory, prices: Mapping[str, float]
) -> TrainingEstimate:
    """Return what tuning is expected to take: tokens over the pace, which counts validation; start-up comes on top.

    Args:
        pace: as an earlier training of the same kind had it; None where there was none.
        rows: to train on, those of all epochs.
        inventory: what is paid for.
        prices: per hour, by Ray resource name.
    """
    if pace is None:
        return TrainingEstimate(
            "no training of this kind has ended on this hardware yet; polypersona finetune keeps its pace, and a tenth "
            "of an epoch will do: --set finetune.epochs=0.1 --set name=trial"
        )
    tokens = rows * pace.tokens_per_row
    hours = tokens / pace.tokens_per_s / 3600
    cost, cost_reason = _cost(hours, inventory, prices, "training")
    return TrainingEstimate(
        reason=f"measured by a training on {pace.date} on this hardware, validation counted; start-up comes on top",
        rows=round(rows),
        tokens=round(tokens),
        tokens_per_s=pace.tokens_per_s,
        hours=hours,
        cost=cost,
        cost_reason=cost_reason,
    )


def estimate_together(
    estimates: Mapping[str, TrainingEstimate], hours: float | None, inventory: Inventory, prices: Mapping[str, float]
) -> TrainingEstimate:
    """Return what several trainings are expected to take, side by side as far as they fit.

    Args:
        estimates: of those that are still to run, by name.
        hours: from the begin of the first to the end of the last; None where one of them is not known.
        inventory: what is paid for, busy or not.
        prices: per hour, by Ray resource name.
    """
    if hours is None:
        lost = [name for name, one in estimates.items() if one.hours is None]
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        return TrainingEstimate(f"of {', '.join(lost[:MAX_NAMED])}{more}: {estimates[lost[0]].reason}")
    cost, cost_reason = _cost(hours, inventory, prices, "training")
    reasons = "; ".join(dict.fromkeys(one.reason for one in estimates.values()))
    return TrainingEstimate(
        reason=f"from the begin of the first to the end of the last of {len(estimates)}; {reasons}",
        rows=sum(one.rows or 0 for one in estimates.values()),
        tokens=sum(one.tokens or 0 for one in estimates.values()),
        hours=hours,
        cost=cost,
        cost_reason=cost_reason,
    )


def _reason(found: Sequence[Calibration]) -> str:
    dates = " and ".join(dict.fromkeys(one.date for one in found))
    hardware = ", ".join(one.hardware for one in found)
    together = " and ".join(dict.fromkeys(str(one.figures.actors) for one in found))
    notes = "".join(f"; {note}" for note in dict.fromkeys(note for one in found for note in one.notes))
    return f"measured by polypersona bench on {dates} on this hardware: {hardware}, {together} at once{notes}"


def _cost(
    hours: float, inventory: Inventory, prices: Mapping[str, float], stage: str = "generation"
) -> tuple[float | None, str]:
    if not prices:
        return None, ""
    amounts = {"CPU": inventory.cpus, "GPU": float(len(inventory.gpus))}
    per_hour = sum(amounts[name] * price for name, price in prices.items())
    terms = " + ".join(f"{amounts[name]:g} {name} × {price:g}" for name, price in sorted(prices.items()))
    return hours * per_hour, f"hours × ({terms}) from cluster.prices; {stage} only"
