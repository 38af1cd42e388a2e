"""What is to happen in a chaos run: at which moment, to whom. A pure function of the seed and the run's number."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

GENERATION, TEMPORARY, COMMIT, RECORD = "generation", "temporary write", "commit", "run.json update"
FAILING, RANDOM = "failing writes", "random time"
# The moments that a full series must hit, each at least twice.
EXACT = (GENERATION, TEMPORARY, COMMIT, RECORD)
POINTS = {
    GENERATION: ("while the engine answers",),
    TEMPORARY: ("open", "write", "fsync"),
    COMMIT: ("before rename", "after rename"),
    RECORD: ("open", "write", "fsync", "before rename", "after rename"),
    FAILING: ("half of them",),
    RANDOM: ("",),
}
VICTIMS = {
    GENERATION: ("actor", "node", "driver", "actor"),
    TEMPORARY: ("node", "actor", "driver", "actor"),
    COMMIT: ("driver", "actor", "node", "actor"),
    RECORD: ("driver",) * 4,
    FAILING: ("writes",) * 4,
    RANDOM: ("actor", "node", "driver", "head", "head"),
}


@dataclass(frozen=True, slots=True)
class Order:
    """One strike. `skip` moments of a process go by first; `delay_s` is the wait within the moment, or before it."""

    moment: str
    victim: str
    point: str
    skip: int = 0
    delay_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.victim} at {self.moment}{f' ({self.point})' if self.point else ''}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A chaos run: its recipe, and the strikes in their order."""

    number: int
    variant: str
    orders: tuple[Order, ...]


def build_plans(runs: int, seed: int, *, with_model: bool) -> list[Plan]:
    """Return the plans of a series: every kind of moment in turn, one victim after another, some struck twice."""
    kinds = (*EXACT, FAILING, RANDOM)
    turns = [(turn, kind) for turn in range(max(map(len, VICTIMS.values()))) for kind in kinds]
    deck = [(kind, VICTIMS[kind][turn], turn) for turn, kind in turns if turn < len(VICTIMS[kind])]
    plans = []
    for number in range(runs):
        chance = random.Random(f"{seed}-{number}")
        moment, victim, turn = deck[number % len(deck)]
        orders = [_order(moment, victim, turn + number // len(deck), chance)]
        if chance.random() < 0.4:
            orders.append(_order(RANDOM, chance.choice(("actor", "node", "driver")), 0, chance))
        # Two of a full series: an actor that is killed with a model in its memory, and one that commits.
        variant = (
            "model"
            if with_model and (moment, victim, turn) in ((GENERATION, "actor", 0), (COMMIT, "node", 2))
            else "fake"
        )
        plans.append(Plan(number, variant, tuple(orders)))
    return plans


def _order(moment: str, victim: str, turn: int, chance: random.Random) -> Order:
    points = POINTS[moment]
    skip = {RECORD: turn % 2, RANDOM: 0, FAILING: 0}.get(moment, chance.randrange(3))
    delay_s = {GENERATION: chance.uniform(0.02, 0.4), RANDOM: chance.uniform(0.5, 8), FAILING: chance.uniform(3, 8)}
    return Order(
        moment, victim, points[(turn + chance.randrange(len(points))) % len(points)], skip, delay_s.get(moment, 0.0)
    )
