"""Files of what was measured or found out on a kind of hardware: a record a key, in the user's cache folder.

Knows files; no clock, and not what a record means.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from polypersona.errors import StorageError
from polypersona.fingerprint import digest_of
from polypersona.storage import RunDirectory

Record = TypeVar("Record")
FORMAT = 1
# For a damaged file that the next training would set aside by itself.
LEAVE_IT = "Delete it, or leave it: the next training keeps it aside and begins a new one."
# Trainings beside each other are threads of one driver.
_WRITING = threading.Lock()


@dataclass(frozen=True, slots=True)
class SetAside:
    """A file that cannot be used: why, and under which path it is kept now; empty where it could not be moved."""

    reason: str
    kept_as: str

    @property
    def text(self) -> str:
        """What became of it, as one sentence."""
        what = f"it is kept as {self.kept_as}, and a new one is begun" if self.kept_as else "it is not used"
        return f"{self.reason.rstrip('.')}; {what}."


@dataclass(frozen=True)
class RecordFile(Generic[Record]):
    """A file of records.

    Args:
        name: the file's.
        section: the key that holds the records.
        what: what the file is called in an error.
        hint: how to mend a damaged one.
        read: a stored record's JSON → the record; raises ValueError, TypeError or KeyError where it is damaged.
        write: a record → its JSON.
    """

    name: str
    section: str
    what: str
    hint: str
    read: Callable[[Mapping[str, Any]], Record]
    write: Callable[[Record], Mapping[str, Any]]

    def load(self) -> dict[str, Record]:
        """Return all records by key; none where there is no file.

        Raises:
            StorageError: the file cannot be read, or is damaged.
        """
        folder = cache_folder()
        if not folder.exists(self.name):
            return {}
        try:
            content = folder.read_json(self.name)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
            return {key: self.read(stored) for key, stored in content[self.section].items()}
        except (StorageError, ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else getattr(error, "message", None) or str(error)
            raise StorageError(
                f"The {self.what} {folder.path(self.name)} is damaged: {what.rstrip('.')}.", self.hint
            ) from error

    def put(self, parts: Mapping[str, Any], record: Record) -> str:
        """Add a record, in place of an earlier one for the same parts, and return the file's path.

        Raises:
            StorageError: the file is damaged, or cannot be written.
        """
        folder = cache_folder()
        with _WRITING:
            records = {**self.load(), key_of(parts): record}
            stored = {key: dict(self.write(records[key])) for key in sorted(records)}
            folder.write_json(self.name, {"synthetic": True, "format": FORMAT, self.section: stored})
        return folder.path(self.name)

    def set_aside(self) -> SetAside | None:
        """Rename the file where it is damaged, so that a new one can be begun; None where nothing is wrong with it.

        For a file that only spares work: what a training takes hours for does not stop because of it.
        """
        with _WRITING:
            try:
                self.load()
            except StorageError as error:
                return SetAside(error.message, self._rename())
        return None

    def _rename(self) -> str:
        """Give the file a name that none has, and return its path; empty where that is not possible."""
        try:
            path = cache_folder().local_path(self.name)
            names = (f"{self.name}.damaged{f'-{count}' if count > 1 else ''}" for count in itertools.count(1))
            kept = next(place for name in names if not (place := path.with_name(name)).exists())
            path.rename(kept)
        except (StorageError, OSError):
            return ""
        return str(kept)


def cache_folder() -> RunDirectory:
    """Return the user's cache folder: `$XDG_CACHE_HOME/polypersona`, else `~/.cache/polypersona`.

    Raises:
        StorageError: the user has neither.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise StorageError(f"There is no cache folder: {error}", "Set XDG_CACHE_HOME to a folder.") from error
    return RunDirectory.at(Path(home) / "polypersona")


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of what a record holds for."""
    return digest_of(parts)
