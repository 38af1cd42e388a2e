"""What annotation keeps in the run directory: the sample, and a file of ratings for each rater.

`annotations/sample.json` is written once and then only grows. `annotations/<rater>.jsonl` gets a line for every rating,
flushed to disk before the rater is told that it is saved; a rating that is corrected gets another line, and the last
one counts. A line that a crash cut off was never acknowledged: it is counted and left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from polypersona.annotation.sample import Entry
from polypersona.errors import PolypersonaError, StorageError
from polypersona.storage import RunDirectory

FOLDER = "annotations"
SAMPLE = f"{FOLDER}/sample.json"
SAMPLE_VERSION = 1
SCALES = ("realism", "consistency")
POINTS = (1, 2, 3, 4, 5)
GUESSES = ("human", "synthetic")
_RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's judgement of an entry. `seconds` is how long it was on the screen, `at` when it was saved (UTC)."""

    entry: str
    realism: int
    consistency: int
    guess: str
    seconds: float = 0.0
    at: str = ""

    @classmethod
    def from_json(cls, content: Any) -> Rating:
        """Return the rating that JSON values describe.

        Raises:
            ValueError: says which field is missing or not allowed.
        """
        if not isinstance(content, dict) or not isinstance(content.get("entry"), str):
            raise ValueError("a rating names its entry")
        for name, allowed in (("realism", POINTS), ("consistency", POINTS), ("guess", GUESSES)):
            value = content.get(name)
            if isinstance(value, bool | float) or value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")
        seconds = content.get("seconds", 0.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            raise ValueError(f"seconds is {seconds!r}; it is a number of seconds")
        return cls(
            content["entry"], content["realism"], content["consistency"], content["guess"], float(seconds),
            str(content.get("at", "")),
        )  # fmt: skip


@dataclass(slots=True)
class RaterFile:
    """A rater's ratings by entry: the last of each. `num_broken` counts lines that a crash cut off."""

    rater: str
    ratings: dict[str, Rating] = field(default_factory=dict)
    num_broken: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The entries raters see, in their order, and what they were drawn with."""

    entries: tuple[Entry, ...]
    seed: int
    human: str = ""


def check_rater(name: str) -> str:
    """Return a rater's name in lower case, as the name of the file.

    Raises:
        PolypersonaError: it would be no good file name.
    """
    lower = name.strip().lower()
    if not _RATER.fullmatch(lower) or lower == "sample":
        raise PolypersonaError(
            f"A rater cannot be called {name!r}.", "Use up to 40 letters, digits, - and _, such as --rater anna."
        )
    return lower


def load_raters(run: RunDirectory) -> list[RaterFile]:
    """Return the ratings of all raters, by name."""
    names = run.names(FOLDER, ".jsonl")
    return [load_rater(run, name.removeprefix(f"{FOLDER}/").removesuffix(".jsonl")) for name in names]


def load_rater(run: RunDirectory, rater: str) -> RaterFile:
    """Return a rater's ratings; none where the rater has not begun.

    Raises:
        StorageError: a line is JSON but no rating.
    """
    name, found = _file(rater), RaterFile(rater)
    for number, line in enumerate(run.read(name).split(b"\n") if run.exists(name) else (), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            found.num_broken += 1
            continue
        try:
            rating = Rating.from_json(content)
        except ValueError as error:
            raise StorageError(
                f"{run.path(name)}, line {number}: this is no rating ({error}).", "Correct or remove the line."
            ) from error
        found.ratings[rating.entry] = rating
    return found


def append_rating(run: RunDirectory, rater: str, rating: Rating) -> None:
    """Add a rating to the rater's file; when this returns, it is on the disk.

    Raises:
        StorageError: it cannot be written; what was there before is kept.
    """
    name = _file(rater)
    line = json.dumps(asdict(rating), ensure_ascii=False).encode() + b"\n"
    if not run.is_local:
        before = run.read(name) if run.exists(name) else b""
        run.write(name, before + line)
        return
    path = run.writable_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a crash cut the last line off; it must not swallow this one
                    line = b"\n" + line
            if stream.write(line) != len(line):
                raise OSError(28, "the disk is full")
            os.fsync(stream.fileno())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Free space or mend its permissions; the ratings before are kept.",
        ) from error


def load_sample(run: RunDirectory) -> Sample | None:
    """Return the run's sample, None where none was drawn.

    Raises:
        StorageError: the file is not one of this version.
    """
    if not run.exists(SAMPLE):
        return None
    stored = run.read_json(SAMPLE)
    try:
        if stored["sample_version"] != SAMPLE_VERSION:
            raise ValueError(f"version {stored['sample_version']}")
        entries = tuple(
            Entry(**{**one, "card": tuple(map(tuple, one["card"])), "options": tuple(one["options"])})
            for one in stored["entries"]
        )
        return Sample(entries, stored["seed"], stored["human"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{run.path(SAMPLE)} is no sample that this version reads ({error}).", "Restore the file."
        ) from error


def save_sample(run: RunDirectory, sample: Sample) -> None:
    """Write the run's sample. The file says which kind each entry is: raters should not open it."""
    content = {
        "synthetic": True,
        "note": "This file says which kind each answer is. Whoever rates should not read it.",
        "sample_version": SAMPLE_VERSION,
        "seed": sample.seed,
        "human": sample.human,
        "entries": [asdict(entry) for entry in sample.entries],
    }
    run.write_json(SAMPLE, content)


def grow_sample(before: Sample | None, drawn: Sequence[Entry], count: int, seed: int, human: str) -> Sample:
    """Return the sample with entries added up to `count`; those it has stay as they are, where they are."""
    kept = before.entries if before else ()
    known = {entry.entry_id for entry in kept}
    added = [entry for entry in drawn if entry.entry_id not in known][: max(0, count - len(kept))]
    return Sample((*kept, *added), seed, human)


def _file(rater: str) -> str:
    return f"{FOLDER}/{check_rater(rater)}.jsonl"
