"""One rater's session: the run's sample, drawn or continued, and the ratings so far. Knows no page and no server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from polypersona.annotation.human import load_human_answers
from polypersona.annotation.sample import Entry, draw_sample
from polypersona.annotation.store import (
    Rating,
    Sample,
    append_rating,
    check_rater,
    grow_sample,
    load_rater,
    load_raters,
    load_sample,
    save_sample,
)
from polypersona.errors import StorageError
from polypersona.ledger import committed_shards, item_key
from polypersona.population import load_population
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory, load_run


@dataclass
class Session:
    """What a rater rates. Safe to use from several threads.

    Args:
        run: the run directory.
        rater: whose ratings these are.
        entries: what is to be rated, in order.
        ratings: the rater's, by entry.
    """

    run: RunDirectory
    rater: str
    entries: tuple[Entry, ...]
    ratings: dict[str, Rating]
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def num_rated(self) -> int:
        """How many of the entries are rated."""
        return sum(entry.entry_id in self.ratings for entry in self.entries)

    def as_json(self) -> dict[str, Any]:
        """Return what the page shows; nothing in it says of which kind an entry is."""
        with self._lock:
            known = {entry.entry_id for entry in self.entries}
            return {
                "rater": self.rater,
                "entries": [entry.blinded() for entry in self.entries],
                "ratings": {
                    name: {"realism": one.realism, "consistency": one.consistency, "guess": one.guess}
                    for name, one in self.ratings.items()
                    if name in known
                },
            }

    def rate(self, content: Any) -> int:
        """Save a rating and return how many entries are rated; when this returns, it is on the disk.

        Raises:
            ValueError: it is no rating, or of no entry of the sample.
            StorageError: it cannot be written.
        """
        rating = Rating.from_json(content)
        if all(entry.entry_id != rating.entry for entry in self.entries):
            raise ValueError("the sample has no such entry")
        with self._lock:
            saved = replace(rating, at=datetime.now(UTC).isoformat(timespec="seconds"))
            append_rating(self.run, self.rater, saved)
            self.ratings[saved.entry] = saved
            return self.num_rated


def open_session(run: RunDirectory, count: int, rater: str, human: str | None = None) -> Session:
    """Return a rater's session on the first `count` entries of the run's sample, which is drawn or grown to them.

    Args:
        run: the run directory.
        count: how many entries.
        rater: whose ratings these are.
        human: a file of human answers to mix in; a sample that was drawn with it goes on with it.

    Raises:
        StorageError: there are no responses, or the sample was drawn with other human answers and has been rated.
        SurveyError: the human answers cannot be read.
    """
    rater = check_rater(rater)
    sample = _load_or_draw(run, count, human)
    if not sample.entries:
        raise StorageError(
            f"{run.path()} has no question that two personas answered.", "Generate more responses, then draw a sample."
        )
    return Session(run, rater, sample.entries[:count], load_rater(run, rater).ratings)


def _load_or_draw(run: RunDirectory, count: int, human: str | None) -> Sample:
    before, marker = load_sample(run), _marker(human)
    if before is not None and human is not None and before.human != marker:
        if any(one.ratings for one in load_raters(run)):
            raise StorageError(
                f"The sample of {run.path()} was drawn {'with other' if before.human else 'without'} human answers, "
                "and has been rated.",
                "Go on without --human, or move the folder annotations/ away to begin a new sample.",
            )
        before = None
    if before is not None and len(before.entries) >= count:
        return before
    if before is not None and before.human and human is None:
        raise StorageError(
            f"The sample of {run.path()} has {len(before.entries)} answers and was drawn with human ones.",
            f"Give --human with the same file to grow it, or --sample {len(before.entries)}.",
        )
    stored = load_run(run)
    fingerprint = str(stored.get("fingerprint", ""))
    if not committed_shards(run, fingerprint):
        raise StorageError(f"There are no responses in {run.path()}.", "Run generate first.")
    recipe = build_recipe(stored["recipe"])
    population = load_population(recipe, run)
    personas = {persona.persona_id: persona for persona in population.personas}
    items = {item_key(item.item_id, item.variant): item for item in population.items}
    humans: Sequence[Entry] = load_human_answers(human, personas, items) if human is not None else ()
    drawn = draw_sample(run, fingerprint, recipe.seed, count, personas, items, humans)
    sample = grow_sample(before, drawn, count, recipe.seed, marker)
    if sample.entries and sample != before:
        save_sample(run, sample)
    return sample


def _marker(human: str | None) -> str:
    """Return a digest of the file's bytes; empty without a file, or where it cannot be read, which loading it names."""
    if human is None or not Path(human).is_file():
        return ""
    return hashlib.blake2b(Path(human).read_bytes(), digest_size=8).hexdigest()
