"""What people said of the run's answers, for its scores: the annotations → rows, and what they depend on."""

from __future__ import annotations

from typing import Any

from polypersona.annotation.results import score_ratings
from polypersona.annotation.store import FOLDER, load_raters, load_sample
from polypersona.records import digest
from polypersona.storage import RunDirectory


def rated_scores(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the rows of `annotation.results.annotation_scores`; none where nothing was rated.

    Raises:
        StorageError: the sample or a rater's file cannot be read.
    """
    sample, raters = load_sample(run), load_raters(run)
    if sample is None or not any(one.ratings for one in raters):
        return []
    return score_ratings(sample, raters)


def annotations_digest(run: RunDirectory) -> str:
    """Return what stands for the sample and all ratings."""
    return digest(*(part for name in run.names(FOLDER) for part in (name, digest(run.read(name).hex()))))
