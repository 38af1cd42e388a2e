"""The variants of a run that a comparison shows side by side, from its files.

As generated; with the people's composition; with temperatures, where its answers have probabilities; with both; and
other runs of the same items. Each is the moments by item, so every score follows from it. Reads the shards once or
twice more where there are probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polypersona.progress import Progress
from polypersona.storage import RunDirectory
from polypersona.survey.cells import Comparison, Row
from polypersona.survey.frame import FloatArray, Frame
from polypersona.survey.mitigation import (
    GENERATED,
    Variant,
    own_moments,
    rake_panel,
    rectified_rows,
    rectified_summary,
    variant_rows,
    weighted_variant,
)
from polypersona.survey.responses import feed, tally_responses
from polypersona.survey.temperature import TemperatureTally, basis_of, exponents_of, fit
from polypersona.survey.weighting import Raked

RAKED, TEMPERED, BOTH = "raked to the people", "temperature by type", "temperature, raked"


@dataclass(frozen=True)
class Mitigated:
    """Tables of before and after, and what was switched on."""

    rows: list[Row]
    rectified: list[Row]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Shards:
    """The committed shards of a run, in batches of whole personas."""

    directory: RunDirectory
    batches: Sequence[Sequence[str]]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.batches))


def build_mitigated(
    shards: Shards, comparison: Comparison, others: Sequence[tuple[str, Comparison]], sample: int
) -> Mitigated:
    """Return the tables of a run with mitigations.

    Args:
        shards: of the run.
        comparison: of the run with people.
        others: further runs and their comparisons with the same people.
        sample: of how many people the answers rectify the means; 0 is none.
    """
    generated = Variant(GENERATED, own_moments(comparison))
    raked, variants = rake_panel(comparison), [generated]
    has_groups = bool(comparison.humans.profiles.groupings)
    if has_groups:
        variants.append(weighted_variant(RAKED, generated, raked.factors))
    factors = raked.factors if has_groups else np.ones(comparison.humans.profiles.count)
    taus = fit_temperatures(shards, comparison, factors)
    if taus is not None and (taus != 1).any():
        tempered = Variant(TEMPERED, _tempered_moments(shards, comparison, taus))
        variants.append(tempered)
        if has_groups:
            variants.append(weighted_variant(BOTH, tempered, raked.factors))
    variants += [_other_variant(name, comparison, other) for name, other in others]
    moments = weighted_variant(RAKED, generated, raked.factors).moments if has_groups else generated.moments
    rectified = rectified_rows(comparison, moments, sample) if sample else []
    return Mitigated(variant_rows(comparison, variants), rectified, _facts(comparison, raked, taus, rectified, sample))


def fit_temperatures(shards: Shards, comparison: Comparison, factors: FloatArray) -> FloatArray | None:
    """Return the temperature of each item, None where no item has probabilities for all its answers.

    Args:
        shards: of the run.
        comparison: of the run with people.
        factors: by profile, that give the panel the people's composition.
    """
    items, frame = comparison.items, comparison.tally.frame
    bases = np.array([comparison.tally.basis(item) == "option_probs" for item in range(len(items))])
    if not bases.any():
        return None
    sums = TemperatureTally.empty(frame, factors)
    with Progress("temperatures", shards.count, "shards") as progress:
        feed(shards.directory, shards.batches, sums, progress.advance)
    sums.totals[:, ~bases] = 0
    people = np.zeros((len(items), frame.width))
    for item, one in enumerate(items):
        people[item, : one.num_options] = comparison.moments(item)[0].totals.sum(axis=0)
    return fit(sums.totals, people, _kinds(comparison))


def _tempered_moments(shards: Shards, comparison: Comparison, taus: FloatArray) -> dict[int, Any]:
    frame: Frame = replace(comparison.tally.frame, exponents=exponents_of(taus))
    with Progress("tempered", shards.count, "shards") as progress:
        tally = tally_responses(shards.directory, shards.batches, frame, progress.advance)
    return {item: tally.moments(item) for item in range(len(comparison.items))}


def _other_variant(name: str, comparison: Comparison, other: Comparison) -> Variant:
    """Return another run's moments under this run's numbers of items. Profiles are the other's own."""
    place = {one.question.item_id: item for item, one in enumerate(comparison.items)}
    moments = {
        place[one.question.item_id]: other.moments(item)[1].collapse(other.groups[0].members)
        for item, one in enumerate(other.items)
        if one.question.item_id in place
    }
    return Variant(name, moments, is_other=True)


def _kinds(comparison: Comparison) -> list[str]:
    return [str(one.question.response_type) for one in comparison.items]


def _facts(
    comparison: Comparison, raked: Raked, taus: FloatArray | None, rectified: Sequence[Row], sample: int
) -> dict[str, Any]:
    return {
        "raked_by": [grouping.name for grouping in comparison.humans.profiles.groupings],
        "design_effect": raked.design_effect,
        "margin_distance": raked.distance,
        "temperatures": {} if taus is None else basis_of(taus, _kinds(comparison)),
        "people_asked": sample if rectified else 0,
        "rectified": rectified_summary(rectified) if rectified else {},
    }
