"""pytest tests/models/test_allocator.py"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from polypersona.models import allocator

# Fifth word of glibc's mallinfo2: bytes in regions of their own, which are returned to the system when freed.
OWN_REGIONS = """
import ctypes, sys
from polypersona.models import allocator
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [("words", ctypes.c_size_t * 10)]})
libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] != "leave":
    getattr(allocator, sys.argv[1])()
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1 << 24))))
before = libc.mallinfo2().words[4]
block = libc.malloc(ctypes.c_size_t(1 << 24))
print(libc.mallinfo2().words[4] - before)
"""
HAS_GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallinfo2")


def bytes_in_own_regions(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", OWN_REGIONS, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not HAS_GLIBC, reason="glibc 2.33 or newer says where memory comes from")
def test_large_blocks_come_from_memory_that_is_kept_or_that_is_given_back() -> None:
    assert bytes_in_own_regions("leave") >= 1 << 24
    assert bytes_in_own_regions("keep_freed_memory") == 0
    assert bytes_in_own_regions("return_freed_memory") >= 1 << 24


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    allocator.keep_freed_memory()
    allocator.return_freed_memory()
