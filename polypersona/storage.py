"""The run directory: where it is, how a file gets into it whole or not at all, what its files look like.

A location is a local path or any URL that pyarrow's file systems take (`s3://`, `gs://`, `file://`). Locally a file is
written under a temporary name in the same folder, flushed to disk and renamed; on an object store one PUT makes it
appear. Names are relative to the run directory and cannot leave it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from polypersona.errors import StorageError
from polypersona.local_files import delete_abandoned, write_whole
from polypersona.location import join_location, mask_all, mask_secrets
from polypersona.object_store import open_store, put, with_patience

T = TypeVar("T")

SCHEMA_VERSION = 1
_BY_STAGE = ("stages", "plan")  # keys of run.json under which each stage has its own
# Where Ray unpacks what `ray job submit --working-dir` uploads; the job runs there, so relative paths lead there.
_JOB_COPY = "/runtime_resources/working_dir_files/"

_REPEATED = pa.dictionary(pa.int32(), pa.string())
RESPONSE_SCHEMA = pa.schema(
    [
        pa.field("assignment_id", pa.string(), nullable=False),
        pa.field("persona_id", _REPEATED, nullable=False),
        pa.field("item_id", _REPEATED, nullable=False),
        pa.field("variant", _REPEATED, nullable=False),
        pa.field("domain", _REPEATED, nullable=False),
        pa.field("response_type", _REPEATED, nullable=False),
        pa.field("wave", pa.int16(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("code", pa.int16()),
        pa.field("codes", pa.list_(pa.int16())),
        pa.field("value", pa.float64()),
        pa.field("label", _REPEATED, nullable=False),
        pa.field("option_probs", pa.list_(pa.float32())),
        pa.field("options_as_shown", pa.list_(pa.int16())),
        pa.field("disposition", _REPEATED, nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("reused_prompt_tokens", pa.int32(), nullable=False),
        pa.field("new_tokens", pa.int32(), nullable=False),
        pa.field("adapter", _REPEATED, nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class RunDirectory:
    """A run's files. Picklable; the file system is opened where it is used.

    Args:
        location: an absolute local path or a URL.
    """

    location: str

    @classmethod
    def at(cls, location: str | Path) -> RunDirectory:
        """Return the run directory at a path or URL; a relative path is made absolute. Creates nothing."""
        text = str(location)
        if text.startswith("file://"):
            text = urllib.parse.unquote(text.removeprefix("file://"))
        return cls(text.rstrip("/") if "://" in text else str(Path(text).absolute()))

    @property
    def is_local(self) -> bool:
        """Whether the files are on a file system of this machine."""
        return "://" not in self.location

    def path(self, name: str = "") -> str:
        """Return the location of a file for messages and records: a secret in a URL is masked."""
        return mask_secrets(self.address(name))

    def address(self, name: str = "") -> str:
        """Return the location of a file, for libraries that take paths."""
        return join_location(self.location, _checked(name)) if name else self.location

    def local_path(self, name: str = "") -> Path:
        """Return the local path of a file.

        Raises:
            StorageError: the run directory is not local.
        """
        if not self.is_local:
            raise StorageError(f"{self.path(name)} is not a local path.", "Use a run directory on this machine.")
        return Path(self.address(name))

    def writable_path(self, name: str) -> Path:
        """Return the local path of a file to be written.

        Raises:
            StorageError: the run directory is not local, or a link inside it leads the file out of it.
        """
        path, root = self.local_path(name), os.path.realpath(self.location)
        if not Path(os.path.realpath(path.parent)).is_relative_to(root) or path.is_symlink():
            raise StorageError(
                f"{path} is not written: a link there leads out of the run directory.", "Remove the link."
            )
        return path

    def refuse_unusable(self) -> None:
        """Refuse a place that could not keep a run, before any work is done for it. Creates nothing.

        Raises:
            StorageError: a folder that may not be written, or one that Ray deletes with the job.
        """
        if not self.is_local:
            self.filesystem()
            return
        if _JOB_COPY in self.location:
            raise StorageError(
                f"{self.location} is inside the copy of the working directory that Ray deletes with the job.",
                "Give `out` as an absolute path or a URL that all nodes share: --set out=/path/to/runs.",
            )
        path = Path(self.location)
        existing = next(place for place in (path, *path.parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "may not be written" if existing.is_dir() else "is a file"
            raise StorageError(
                f"{self.location} is no place for a run: {existing} {what}.", "Set out: to a folder you may write to."
            )

    def exists(self, name: str) -> bool:
        """Return whether the file (not a folder) is there."""
        fs, root = self.filesystem()
        with _named_errors(self.path(name), "looked for"):
            info = self._ask(lambda: fs.get_file_info(f"{root}/{_checked(name)}"))
        return bool(info.type == pafs.FileType.File)

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Return the names of the files directly in a folder, sorted, relative to the run directory."""
        return sorted(name for name in self.sizes(folder) if name.endswith(suffix))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in a folder, by name relative to the run directory."""
        fs, root = self.filesystem()
        selector = pafs.FileSelector(f"{root}/{_checked(folder)}", allow_not_found=True)
        with _named_errors(self.path(folder), "listed"):
            infos = self._ask(lambda: fs.get_file_info(selector))
        return {
            f"{folder}/{info.base_name}": info.size
            for info in infos
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            StorageError: there is no such file, or it cannot be read.
        """
        fs, root = self.filesystem()
        path = f"{root}/{_checked(name)}"

        def read() -> bytes:
            with fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        try:
            with _named_errors(self.path(name), "read"):
                return self._ask(read)
        except FileNotFoundError as error:
            raise StorageError(
                f"There is no {self.path(name)}.", "Run the stage that writes it first, or name another run."
            ) from error

    def read_json(self, name: str) -> Any:
        """Return a JSON file's content.

        Raises:
            StorageError: there is no such file, or it is not JSON.
        """
        try:
            return json.loads(self.read(name))
        except json.JSONDecodeError as error:
            raise StorageError(
                f"{self.path(name)} is not valid JSON (line {error.lineno}).", "Restore the file."
            ) from error
        except UnicodeDecodeError as error:
            raise StorageError(f"{self.path(name)} is not JSON text.", "Restore the file.") from error

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all, replacing an earlier one.

        Raises:
            StorageError: the place cannot be written, or is full; nothing is left behind.
        """
        name = _checked(name)
        try:
            if self.is_local:
                write_whole(self.writable_path(name), data)
            else:
                fs, root = self.filesystem()
                self._ask(lambda: put(fs, f"{root}/{name}", data))
        except OSError as error:
            raise StorageError(
                f"{self.path(name)} cannot be written: {error.strerror or error}.",
                "Free space or choose a folder you may write to; what was committed before is kept.",
            ) from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, indented, keys in the order given, NaN as null, secrets in URLs masked."""
        text = json.dumps(_without_nan(mask_all(content)), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        self.write(name, f"{text}\n".encode())

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        fs, root = self.filesystem()
        if self.exists(name):
            # Another process may be quicker, and a store may have done it without its answer getting through.
            with contextlib.suppress(FileNotFoundError), _named_errors(self.path(name), "deleted"):
                self._ask(lambda: fs.delete_file(f"{root}/{_checked(name)}"))

    def sweep(self) -> None:
        """Delete what dead processes of this machine left half-written; of other machines, what is hours old."""
        if not self.is_local:
            return
        with _named_errors(self.path(), "swept"):
            delete_abandoned(self.local_path())

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system and the run directory's path on it.

        Raises:
            StorageError: a URL scheme that pyarrow does not know.
        """
        try:
            fs, root = open_store(Path(self.location).as_uri() if self.is_local else self.location)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                f"{self.location} is no place for a run: {error}.", "Name a local path, s3://… or gs://…."
            ) from error
        return fs, root.rstrip("/")

    def _ask(self, deed: Callable[[], T]) -> T:
        return deed() if self.is_local else with_patience(self.location, deed)


def load_run(run: RunDirectory) -> dict[str, Any]:
    """Return run.json, or an empty mapping where the run has not begun."""
    content = run.read_json("run.json") if run.exists("run.json") else {}
    if not isinstance(content, dict):
        raise StorageError(f"{run.path('run.json')} is no run's record.", "Restore the file, or name another run.")
    return content


def update_run(run: RunDirectory, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace top-level keys of run.json and return the result; of `stages` and `plan` only the stages given.

    Secrets in URLs are masked.
    """
    content = {"schema_version": SCHEMA_VERSION, "synthetic": True, **load_run(run)}
    for key, value in mask_all(changes).items():
        content[key] = {**content.get(key, {}), **value} if key in _BY_STAGE else value
    run.write_json("run.json", content)
    return content


@contextlib.contextmanager
def _named_errors(path: str, deed: str) -> Iterator[None]:
    """Turn what a file system raises into one sentence; a missing file stays the caller's to name."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be {deed}: {error.strerror or error}.", "Check the address and its permissions."
        ) from error


def _without_nan(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    return [_without_nan(value) for value in content] if isinstance(content, list | tuple) else content


def _checked(name: str) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise StorageError(f"{name!r} leaves the run directory.", "Name a file inside it.")
    return name.strip("/")
