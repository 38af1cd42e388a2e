"""What `polypersona bench` measured: one record for each kind of hardware and workload, in the user's cache folder.

A record's parts say what it holds for. One that differs in any part (another precision, another questionnaire, another
processor) is not used, so that a plan never rests on a pace that was measured for something else. Knows files and
numbers; no recipe, no engine and no clock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from polypersona.errors import StorageError
from polypersona.fingerprint import digest_of
from polypersona.storage import RunDirectory

FILE = "calibration.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted while `actors` processes answered side by side; times and counts are those of all of them.

    `seconds` are actor-seconds: two actors that answer for ten seconds make twenty. `cpu_s` and `peak_rss_bytes` are
    None for an engine that computes in processes of its own, `peak_device_bytes` is None without a GPU.
    """

    actors: int
    rows: int
    seconds: float
    cpu_s: float | None
    prompt_tokens: int
    reused_prompt_tokens: int
    new_tokens: int
    start_up_s: float
    peak_rss_bytes: int | None
    peak_device_bytes: int | None

    @property
    def rows_per_s(self) -> float:
        """Rows a second of one actor."""
        return self.rows / self.seconds

    def rates(self) -> dict[str, float | None]:
        """Return what is made of the counts; the rates are one actor's. None where it was not measured."""
        return {
            "rows_per_s": self.rows_per_s,
            "rows_per_cpu_s": self.rows / self.cpu_s if self.cpu_s else None,
            "prompt_tokens_per_s": self.prompt_tokens / self.seconds,
            "new_tokens_per_s": self.new_tokens / self.seconds,
            "reused_share": self.reused_prompt_tokens / self.prompt_tokens if self.prompt_tokens else None,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measurement: the day, the hardware, what it holds for, its figures, and what limits it."""

    date: str
    hardware: str
    parts: Mapping[str, Any]
    figures: Figures
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {**asdict(self), "rates": self.figures.rates()}


def calibration_folder() -> RunDirectory:
    """Return the user's cache folder: `$XDG_CACHE_HOME/polypersona`, else `~/.cache/polypersona`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return RunDirectory.at(Path(home) / "polypersona")


def load_calibrations() -> dict[str, Calibration]:
    """Return all records by key; none where nothing was measured yet.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    folder = calibration_folder()
    if not folder.exists(FILE):
        return {}
    try:
        content = folder.read_json(FILE)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
        return {key: _record(stored) for key, stored in content["calibrations"].items()}
    except (StorageError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else getattr(error, "message", None) or str(error)
        raise StorageError(
            f"The calibration file {folder.path(FILE)} is damaged: {what.rstrip('.')}.",
            "Delete it and run `polypersona bench RECIPE` again.",
        ) from error


def save_calibration(calibration: Calibration) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    folder, records = calibration_folder(), load_calibrations()
    records[key_of(calibration.parts)] = calibration
    stored = {key: record.as_json() for key, record in sorted(records.items())}
    folder.write_json(FILE, {"synthetic": True, "format": FORMAT, "calibrations": stored})
    return folder.path(FILE)


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of what a record holds for."""
    return digest_of(parts)


def _record(stored: Mapping[str, Any]) -> Calibration:
    counted = {field.name: stored["figures"][field.name] for field in fields(Figures)}
    figures = Figures(**counted)
    if not (figures.rows > 0 and figures.seconds > 0 and figures.actors > 0):
        raise ValueError("a record counts no rows, seconds or actors")
    return Calibration(
        date=str(stored["date"]),
        hardware=str(stored["hardware"]),
        parts=dict(stored["parts"]),
        figures=figures,
        versions=dict(stored["versions"]),
        notes=tuple(stored["notes"]),
    )
