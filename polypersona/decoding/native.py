"""Attention and small operations in C, compiled for this machine at first use and kept in the user's cache folder.

Gives what `attention.py` gives, for the fused decoder on a CPU. Where there is no compiler, `load_kernels` says so and
the engine stays with torch. Knows pointers and shapes, no model.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from polypersona.decoding.attention import Segment
from polypersona.decoding.cache import KeyValueCache
from polypersona.decoding.compiler import find_compiler

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_BLOCK = 32
_LANES = 16
SWITCH = "POLYPERSONA_KERNELS"


@cache
def load_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the kernels for fp32 or bf16, or None where they cannot be had; the reason is logged once.

    The environment variable POLYPERSONA_KERNELS=off leaves them out.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no"):
        return None
    flags = (*_FLAGS, *(("-DBF16",) if dtype == torch.bfloat16 else ()))
    compiler = find_compiler()
    if compiler is None:
        _log.warning("There is no C compiler: generation goes on without compiled kernels, at about half the speed.")
        return None
    key = hashlib.sha256(repr((_SOURCE.read_bytes(), flags, compiler, _processor())).encode()).hexdigest()[:16]
    library = _folder() / f"kernels-{key}.so"
    try:
        if not library.exists():
            _compile(compiler, flags, library)
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # damaged where it is kept
            _compile(compiler, flags, library)
            return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.warning("The kernels cannot be compiled: %s; generation goes on without them.", said.strip()[:300])
        return None


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "polypersona"


def _processor() -> str:
    """Return what the compiler adapts to, so that a cache folder shared by unlike machines holds one library each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _compile(compiler: str, flags: Sequence[str], library: Path) -> None:
    """Compile under another name and rename, so that processes that start together do not meet half a file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = Path(scratch) / library.name
        command = [compiler, *flags, str(_SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        made.replace(library)


class NativeAttention:
    """What the new tokens of one forward see, for the kernels.

    Args:
        cache: keys and values.
        sights: (tokens, 8) int32: shared beginning, its length; whether the own region is a shared beginning, which;
            how many of its tokens are seen, where a branch begins and how long it is; where the token is stored.
    """

    def __init__(self, cache: KeyValueCache, sights: npt.NDArray[np.int32]) -> None:
        self.cache, self.sights = cache, sights
        self._measure()

    @classmethod
    def of_segments(cls, cache: KeyValueCache, segments: Sequence[Segment]) -> NativeAttention:
        """Return the sights of segments in their order."""
        return cls(cache, np.concatenate([_sights(cache, segment) for segment in segments]))

    @classmethod
    def of_slots(cls, cache: KeyValueCache, groups: Sequence[int], slots: Sequence[int]) -> NativeAttention:
        """Return the sights of one new token a slot; `set_lengths` completes them."""
        sights = np.zeros((len(slots), 8), np.int32)
        sights[:, 0] = groups
        sights[:, 1] = [cache.shared_lengths[group] for group in groups]
        sights[:, 3] = slots
        return cls(cache, sights)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many tokens each slot holds before the new one."""
        self.sights[:, 7] = lengths
        self.sights[:, 4] = self.sights[:, 7] + 1
        self._measure()

    def only(self, places: npt.NDArray[np.int64]) -> NativeAttention:
        """Return the sights of the tokens at some places."""
        return NativeAttention(self.cache, self.sights[places])

    def _measure(self) -> None:
        def up(sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
            return -(-sizes // _LANES) * _LANES

        seen = np.maximum(self.sights[:, 4], self.sights[:, 5] + self.sights[:, 6])
        self.longest = int(up(self.sights[:, 1]).max() + up(seen).max())


def _sights(cache: KeyValueCache, segment: Segment) -> npt.NDArray[np.int32]:
    """Return the sights of a segment's tokens."""
    count = len(segment.ids)
    sights = np.zeros((count, 8), np.int32)
    if segment.shared_to is None:
        sights[:, 0], sights[:, 1] = segment.group, cache.shared_lengths[segment.group]
        sights[:, 3], past = segment.slot or 0, segment.past
    else:  # what all groups share stands at the head of the region already
        sights[:, 2], sights[:, 3] = 1, segment.shared_to
        past = cache.shared_lengths[segment.group]
    at = past + np.arange(count, dtype=np.int32)
    sights[:, 7] = at
    sights[:, 4] = at + 1
    begin = segment.num_kept
    for length in segment.branches:
        sights[begin : begin + length, 4] = past + segment.num_kept
        sights[begin : begin + length, 5] = past + begin
        sights[begin : begin + length, 6] = np.arange(1, length + 1)
        begin += length
    return sights


class Kernels:
    """Typed calls of the compiled functions, for one shape of model."""

    def __init__(self, library: ctypes.CDLL, heads: int, key_heads: int, size: int) -> None:
        self._library = library
        self._heads, self._key_heads, self._size = heads, key_heads, size
        self._scratch = torch.empty(0, dtype=torch.float32)

    def turn_and_store(
        self, packed: torch.Tensor, attention: NativeAttention, layer: int, cosine: torch.Tensor, sine: torch.Tensor
    ) -> None:
        """Rotate queries and keys of (tokens, (heads + 2 key heads) × size) in place; store keys and values."""
        cache = attention.cache
        self._library.turn_and_store(
            _pointer(packed),
            ctypes.c_void_p(attention.sights.ctypes.data),
            len(packed),
            self._heads,
            self._key_heads,
            self._size,
            _pointer(cosine),
            _pointer(sine),
            *_regions(cache, layer),
            cache.num_own,
            cache.num_shared,
        )

    def attend(self, packed: torch.Tensor, attention: NativeAttention, layer: int, scale: float) -> torch.Tensor:
        """Return (tokens, heads × size) for the rotated queries in `packed`."""
        cache = attention.cache
        out = torch.empty(len(packed), self._heads * self._size, dtype=packed.dtype)
        need = max(_BLOCK * self._key_heads, self._heads) * (2 * self._size + attention.longest)
        if self._scratch.numel() < need:
            self._scratch = torch.empty(need, dtype=torch.float32)
        self._library.attend(
            _pointer(packed),
            ctypes.c_int64(packed.stride(0)),
            _pointer(out),
            ctypes.c_void_p(attention.sights.ctypes.data),
            len(packed),
            self._heads,
            self._key_heads,
            self._size,
            ctypes.c_float(scale),
            *_regions(cache, layer),
            cache.num_own,
            cache.num_shared,
            attention.longest,
            _pointer(self._scratch),
        )
        return out

    def add_and_norm(
        self, states: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Add to `states` in place and return them normalised by their root mean square."""
        out = torch.empty_like(states)
        self._library.add_and_norm(
            _pointer(states),
            ctypes.c_void_p(0) if added is None else _pointer(added),
            _pointer(weight),
            _pointer(out),
            *states.shape,
            ctypes.c_float(epsilon),
        )
        return out

    def gate(self, both: torch.Tensor) -> torch.Tensor:
        """Return silu(first half) × second half."""
        out = torch.empty(len(both), both.shape[1] // 2, dtype=both.dtype)
        self._library.gate(_pointer(both), _pointer(out), len(both), both.shape[1] // 2)
        return out


def draw_tokens(
    library: ctypes.CDLL,
    logits: torch.Tensor,
    draws: npt.NDArray[np.float64],
    *,
    top_k: int,
    temperature: float,
    top_p: float,
    min_p: float,
) -> list[int]:
    """Return one token id per row of (rows, vocabulary), -1 where the row is not finite; see `TokenSampler`."""
    rows, size = logits.shape
    tokens = np.empty(rows, np.int32)
    scratch, choices, order = np.empty(2 * size, np.float32), np.empty(2 * size, np.float64), np.empty(size, np.int32)
    library.draw(
        _pointer(logits),
        ctypes.c_int64(logits.stride(0)),
        rows,
        size,
        top_k,
        *(ctypes.c_double(value) for value in (temperature, top_p, min_p)),
        *(ctypes.c_void_p(array.ctypes.data) for array in (draws, tokens, scratch, choices, order)),
    )
    return [int(token) for token in tokens]


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _regions(cache: KeyValueCache, layer: int) -> tuple[ctypes.c_void_p, ...]:
    parts = (cache.keys, cache.values, cache.shared_keys, cache.shared_values)
    return tuple(_pointer(part[layer]) for part in parts)
