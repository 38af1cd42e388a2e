"""Files of a local folder: a write that a rename makes appear, and the remains of writers that were killed.

Raises what the system raises. Knows no run directory.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from pathlib import Path

import pyarrow as pa

# What another machine has begun to write and not touched for so long is not being written.
ABANDONED_AFTER_S = 6 * 3600.0


def write_whole(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: under another name, which says who writes, flushed to disk and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}@{platform.node()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def delete_abandoned(folder: Path) -> None:
    """Delete what dead processes have left half-written in a folder and the folders directly in it."""
    inner = (path for path in folder.glob("*/.*.tmp") if not path.parent.is_symlink())
    for path in (*folder.glob(".*.tmp"), *inner):
        with contextlib.suppress(FileNotFoundError):
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    writer, _, host = path.name.removesuffix(".tmp").rpartition("@")
    pid = writer.rpartition(".")[2]
    if host != platform.node() or not pid.isdecimal():
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False
