"""The C allocator's settings for tensor work on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
# Tensors from this size on get a region of their own, which the system has back as soon as they are freed.
_OWN_REGION_BYTES = 256 << 10


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors instead of returning it to the system.

    glibc maps every large tensor anew and pays a page fault per 4 KiB of it, which costs more than the arithmetic on
    small models. The process keeps its peak memory, and holes in it that no aligned tensor of the same size fits into:
    a training may hold several times what it uses. Does nothing where the C library is not glibc.
    """
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20})


def return_freed_memory() -> None:
    """Let this process return the memory of large freed tensors to the system at once, so that it holds what it uses.

    Left alone, glibc does so only until the first such tensor is freed. Does nothing where the C library is not glibc.
    """
    _set({_MMAP_THRESHOLD: _OWN_REGION_BYTES, _MMAP_MAX: 2**20, _TRIM_THRESHOLD: 2**20, _TOP_PAD: 2**20})


def _set(options: dict[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in options.items():
        mallopt(option, value)
