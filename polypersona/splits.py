"""Train, validation and test: rows are divided by persona, by item, by both or by neither.

Takes rows as ids and labels, gives row numbers. A pure function of the seed and the rows, and of a unit's id rather
than its place. Knows no message and no file.

Units (personas or items) are dealt to the splits, the largest first, each to the split that lacks most of what it
brings: rows, domains and response types at once. Seeded moves and exchanges of units then lower what error is left.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from polypersona.errors import DatasetError
from polypersona.records import seed_from

SPLITS_VERSION = 1
SplitBy = Literal["persona", "item", "both", "neither"]
NUM_SPLITS = 3
MAX_PROPOSALS = 20_000
# How much an error in a split's number of rows weighs against one in a domain's or a response type's.
SIZE_WEIGHT = 4.0

_Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """What a split depends on."""

    persona_id: str
    item_id: str
    domain: str
    response_type: str


@dataclass(frozen=True, slots=True)
class Division:
    """Row numbers of each split in the order given, and those of no split."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    dropped: tuple[int, ...] = ()


def divide(rows: Sequence[Row], shares: tuple[float, float, float], by: SplitBy, seed: int) -> Division:
    """Divide rows so that the splits share no persona, no item, neither (`both`), or may share either (`neither`).

    With `both`, a row whose persona and item fall into different splits is dropped; personas and items are then
    divided by the square roots of the shares, so that the rows that are kept have the shares asked for.

    Raises:
        DatasetError: a split that should have rows gets none.
    """
    rng = random.Random(seed_from("splits", by, seed))
    if by == "neither":
        homes = _deal_rows(rows, shares, rng)
    elif by == "both":
        roots = [share**0.5 for share in shares]
        parts = (roots[0] / sum(roots), roots[1] / sum(roots), roots[2] / sum(roots))
        of_persona = _deal_units(rows, [row.persona_id for row in rows], parts, rng)
        of_item = _deal_units(rows, [row.item_id for row in rows], parts, rng)
        pairs = [(of_persona[row.persona_id], of_item[row.item_id]) for row in rows]
        homes = [split if split == other else NUM_SPLITS for split, other in pairs]
    else:
        units = [row.persona_id if by == "persona" else row.item_id for row in rows]
        home_of = _deal_units(rows, units, shares, rng)
        homes = [home_of[unit] for unit in units]
    places = [tuple(n for n, home in enumerate(homes) if home == split) for split in range(NUM_SPLITS + 1)]
    if any(share > 0 and not place for share, place in zip(shares, places, strict=False)):
        raise DatasetError(
            f"{len(rows)} rows of {len({r.persona_id for r in rows})} personas and {len({r.item_id for r in rows})} "
            f"items cannot be divided by {by} into {', '.join(f'{share:.0%}' for share in shares)}.",
            "Raise dataset.records, or choose another dataset.split_by or dataset.splits.",
        )
    return Division(*places)


def _deal_rows(rows: Sequence[Row], shares: Sequence[float], rng: random.Random) -> list[int]:
    """Return each row's split: a random order, cut at the shares."""
    order = sorted(range(len(rows)), key=lambda n: (rows[n].persona_id, rows[n].item_id))
    rng.shuffle(order)
    cuts = [round(sum(shares[: split + 1]) * len(rows)) for split in range(NUM_SPLITS)]
    homes = [0] * len(rows)
    for place, number in enumerate(order):
        homes[number] = next(split for split, cut in enumerate(cuts) if place < cut)
    return homes


def _deal_units(
    rows: Sequence[Row], units: Sequence[str], shares: Sequence[float], rng: random.Random
) -> dict[str, int]:
    """Return unit → split, with rows, domains and response types as near the shares as the units allow."""
    names = sorted(set(units))
    counts = _count(rows, units, names)
    used = [split for split in range(NUM_SPLITS) if shares[split] > 0]
    if len(names) < len(used):
        return dict.fromkeys(names, used[0])
    targets = np.outer(np.array([shares[split] for split in used]), counts.sum(axis=0))
    weights = np.ones(counts.shape[1])
    weights[0] = SIZE_WEIGHT
    error = weights / np.array([shares[split] for split in used])[:, None]
    homes = _deal_greedily(counts, targets, error, rng)
    _improve(homes, counts, targets, error, rng)
    return {name: used[homes[number]] for number, name in enumerate(names)}


def _count(rows: Sequence[Row], units: Sequence[str], names: Sequence[str]) -> _Counts:
    """Return units × (rows, rows of each domain, rows of each response type)."""
    labels = [
        *(("domain", domain) for domain in sorted({row.domain for row in rows})),
        *(("type", response_type) for response_type in sorted({row.response_type for row in rows})),
    ]
    column: Mapping[tuple[str, str], int] = {label: number for number, label in enumerate(labels, start=1)}
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(labels) + 1))
    for row, unit in zip(rows, units, strict=True):
        at = place[unit]
        counts[at, 0] += 1
        counts[at, column["domain", row.domain]] += 1
        counts[at, column["type", row.response_type]] += 1
    return counts


def _deal_greedily(counts: _Counts, targets: _Counts, error: _Counts, rng: random.Random) -> list[int]:
    """Give each unit, the largest first, to the split whose squared error it lowers most; none stays empty."""
    order = list(range(len(counts)))
    rng.shuffle(order)
    order.sort(key=lambda unit: -counts[unit, 0])
    lacking = targets.copy()
    homes = [0] * len(counts)
    for unit in order:
        change = (error * (counts[unit] ** 2 - 2 * lacking * counts[unit])).sum(axis=1)
        homes[unit] = int(change.argmin())
        lacking[homes[unit]] -= counts[unit]
    for split in range(len(targets)):
        if split not in homes:
            smallest = min((unit for unit in order if homes.count(homes[unit]) > 1), key=lambda unit: counts[unit, 0])
            homes[smallest] = split
    return homes


def _improve(homes: list[int], counts: _Counts, targets: _Counts, error: _Counts, rng: random.Random) -> None:
    """Move a unit, or exchange two, wherever that lowers the squared error; no split is emptied."""
    surplus = -targets
    sizes = [homes.count(split) for split in range(len(targets))]
    for unit, home in enumerate(homes):
        surplus[home] += counts[unit]
    for _ in range(min(MAX_PROPOSALS, 60 * len(homes)) if len(targets) > 1 else 0):
        one, other = rng.randrange(len(homes)), rng.randrange(len(homes))
        source, goal = homes[one], homes[other]
        is_move = rng.random() < 0.5
        if source == goal or (is_move and sizes[source] == 1):
            continue
        moved = counts[one] if is_move else counts[one] - counts[other]
        before = error[source] * surplus[source] ** 2 + error[goal] * surplus[goal] ** 2
        after = error[source] * (surplus[source] - moved) ** 2 + error[goal] * (surplus[goal] + moved) ** 2
        if after.sum() < before.sum() - 1e-9:
            surplus[source] -= moved
            surplus[goal] += moved
            homes[one] = goal
            if is_move:
                sizes[source] -= 1
                sizes[goal] += 1
            else:
                homes[other] = source
