"""Files that write another file if anything in them is run: what somebody might send instead of data."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Canary:
    """Unpickled, it creates the file at `path`."""

    path: Path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")

    def pickled(self) -> bytes:
        return pickle.dumps(self)

    def code(self, rest: str = "") -> str:
        """Python source that creates the file when it is imported, and then defines `rest`."""
        return f"open({str(self.path)!r}, 'w').close()\n{rest}"

    @property
    def has_sung(self) -> bool:
        return self.path.exists()
