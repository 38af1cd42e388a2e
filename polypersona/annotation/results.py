"""Ratings → figures: means by kind, conditioning gain, detection, agreement of raters. Reads the run's annotations.

Intervals are clustered by the persona whose card was shown; they say how far the figures would move with other
personas, and take the raters as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polypersona.annotation.agreement import (
    Estimate,
    Level,
    Observation,
    alpha_interval,
    clustered_difference,
    clustered_mean,
    detection_rate,
)
from polypersona.annotation.sample import KINDS, Entry
from polypersona.annotation.store import GUESSES, POINTS, SCALES, RaterFile, Rating, Sample, load_raters, load_sample
from polypersona.errors import StorageError
from polypersona.storage import RunDirectory

SYNTHETIC = GUESSES.index("synthetic")
_LEVELS: dict[str, Level] = {"realism": "ordinal", "consistency": "ordinal", "guess": "nominal"}


def annotation_scores(run: RunDirectory) -> list[dict[str, Any]]:
    """Return what raters found, one figure a row: `name`, `kind`, `value`, `n`, `low`, `high`.

    `realism` and `consistency` are means (1 to 5, higher is better) by kind. `conditioning_gain_*` is the mean of the
    model's answers minus that of shuffled ones: 0 where the answers say nothing of the persona. `detection_rate` is the
    share of synthetic answers taken for synthetic (lower is better), `false_alarm_rate` that of human ones, and
    `discrimination` their difference for the model's answers: 0 where raters cannot tell. `alpha_*` is Krippendorff's
    alpha, ordinal for the scales and nominal for the guess, over all kinds; its `n` counts entries that two rated.
    Undefined is NaN with n = 0.

    Args:
        run: the run directory.

    Raises:
        StorageError: nothing was rated.
    """
    sample, raters = load_annotations(run)
    return score_ratings(sample, raters)


def load_annotations(run: RunDirectory) -> tuple[Sample, list[RaterFile]]:
    """Return the run's sample and its raters' files.

    Raises:
        StorageError: nothing was rated.
    """
    sample, raters = load_sample(run), load_raters(run)
    if sample is None or not any(one.ratings for one in raters):
        raise StorageError(
            f"Nothing was rated in {run.path()}.", "Rate a sample first: polypersona annotate RUN --sample 100."
        )
    return sample, raters


def score_ratings(sample: Sample, raters: Sequence[RaterFile]) -> list[dict[str, Any]]:
    """Return the rows of `annotation_scores`; ratings of entries that the sample lacks are left out."""
    entries = {entry.entry_id: entry for entry in sample.entries}
    rated = [
        (entries[rating.entry], rating)
        for one in raters
        for rating in one.ratings.values()
        if rating.entry in entries
    ]  # fmt: skip
    kinds = [kind for kind in KINDS if any(entry.kind == kind for entry in sample.entries)]
    rows: list[dict[str, Any]] = []
    for scale in SCALES:
        values = {kind: _observations(rated, kind, scale) for kind in KINDS}
        rows.extend(_row(scale, kind, clustered_mean(values[kind], POINTS[0], POINTS[-1])) for kind in kinds)
        gain = clustered_difference(values["model"], values["shuffled"], POINTS[-1] - POINTS[0])
        rows.append(_row(f"conditioning_gain_{scale}", "model − shuffled", gain))
    guesses = {kind: _observations(rated, kind, "guess") for kind in KINDS}
    for kind in kinds:
        name = "false_alarm_rate" if kind == "human" else "detection_rate"
        rows.append(_row(name, kind, detection_rate(guesses[kind])))
    if "human" in kinds:
        told = clustered_difference(guesses["model"], guesses["human"], 1.0)
        rows.append(_row("discrimination", "model − human", told))
    rows.extend(_alpha_row(name, sample, raters) for name in _LEVELS)
    return rows


def count_rated(sample: Sample, raters: Sequence[RaterFile]) -> dict[str, int]:
    """Return how many entries of the sample each rater has rated."""
    known = {entry.entry_id for entry in sample.entries}
    return {one.rater: len(known & one.ratings.keys()) for one in raters}


def _alpha_row(name: str, sample: Sample, raters: Sequence[RaterFile]) -> dict[str, Any]:
    units = [
        [_value(one.ratings[entry.entry_id], name) if entry.entry_id in one.ratings else None for one in raters]
        for entry in sample.entries
    ]
    clusters = [entry.persona_id for entry in sample.entries]
    return _row(f"alpha_{name}", "all", alpha_interval(units, clusters, _LEVELS[name], sample.seed))


def _observations(rated: Sequence[tuple[Entry, Rating]], kind: str, name: str) -> list[Observation]:
    return [Observation(_value(rating, name), entry.persona_id) for entry, rating in rated if entry.kind == kind]


def _value(rating: Rating, name: str) -> float:
    return float(GUESSES.index(rating.guess)) if name == "guess" else float(getattr(rating, name))


def _row(name: str, kind: str, found: Estimate) -> dict[str, Any]:
    return {"name": name, "kind": kind, **found._asdict()}
