"""What `polypersona bench` measured: one record for each kind of hardware and workload, in the user's cache folder.

A record's parts say what it holds for. One that differs in any part (another precision, another questionnaire, another
processor) is not used, so that a plan never rests on a pace that was measured for something else. Knows files and
numbers; no recipe, no engine and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from polypersona.scheduling.record_file import RecordFile

FILE = "calibration.json"


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


def load_calibrations() -> dict[str, Calibration]:
    """Return all records by key; none where nothing was measured yet.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    return _CALIBRATIONS.load()


def save_calibration(calibration: Calibration) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    return _CALIBRATIONS.put(calibration.parts, calibration)


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


_CALIBRATIONS = RecordFile(
    FILE,
    "calibrations",
    "calibration file",
    "Delete it and run `polypersona bench RECIPE` again.",
    _record,
    Calibration.as_json,
)
