"""What an encoder says of pairs of texts: how it is described, and its values, by pair.

A comparison is the weights that encode texts, and what is made of two of them. A run's pairs are encoded by a pool of
their own, which hands the values over as `PairValues`; without them a process encodes what it is given. Knows no
persona, no shard and no Ray, and loads torch with an encoder only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from polypersona.errors import StorageError
from polypersona.metrics.base import FloatArray, TextPair
from polypersona.records import encode_parts


class PairEncoder(Protocol):
    """An encoder that is loaded."""

    @property
    def num_encoded(self) -> int:
        """How many texts it has encoded."""

    def match(self, pairs: Sequence[TextPair]) -> FloatArray:
        """Return a row for each pair, shape (num_pairs, columns); NaN where a text has no token of its own."""


class Comparison(Hashable, Protocol):
    """Which encoder compares texts, and how. Picklable, and hashed by its values."""

    @property
    def name(self) -> str:
        """Identifier, in files and in run.json."""

    @property
    def key(self) -> str:
        """The recipe's key that names the encoder."""

    @property
    def columns(self) -> Sequence[str]:
        """The values of a pair, in order."""

    @property
    def model(self) -> str:
        """Folder or hub id."""

    @property
    def identity(self) -> str:
        """What identifies the encoder's weights."""

    @property
    def signature(self) -> str:
        """The settings and versions that change a value."""

    def load(self, threads: int | None = None) -> PairEncoder:
        """Load the encoder, which computes with so many threads; as the process does unless given.

        Raises:
            ModelError: it cannot be loaded.
        """


@dataclass(frozen=True, slots=True, eq=False)
class PairValues:
    """The values of many pairs, by the pair's key: `keys` ascending, `values` (num_pairs, columns)."""

    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, keys: npt.NDArray[np.uint64], values: npt.NDArray[np.float32]) -> PairValues:
        """Return the values in order of their keys; of equal keys the first counts."""
        unique, first = np.unique(keys, return_index=True)
        return cls(unique, values[first])

    @classmethod
    def union(cls, parts: Sequence[PairValues]) -> PairValues:
        """Return the values of several parts, at least one, of the same columns."""
        return cls.of(np.concatenate([one.keys for one in parts]), np.concatenate([one.values for one in parts]))

    def look_up(self, texts: Sequence[TextPair | None]) -> FloatArray:
        """Return the values of some pairs, shape (num_texts, columns); NaN for None and where undefined.

        Raises:
            StorageError: a pair is not among them.
        """
        found = np.full((len(texts), self.values.shape[1]), np.nan)
        asked = [place for place, pair in enumerate(texts) if pair is not None]
        if not asked:
            return found
        keys = pair_keys(pair for pair in texts if pair is not None)
        places = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        if not len(self.keys) or not np.array_equal(self.keys[places], keys):
            raise StorageError(
                "A pair of texts was not encoded: the responses changed while they were scored.",
                "Run evaluate again once generate has ended.",
            )
        found[asked] = self.values[places]
        return found


def values_of(comparison: Comparison, known: PairValues | None, texts: Sequence[TextPair | None]) -> FloatArray:
    """Return the values of some pairs, shape (num_texts, columns): those that are known, or encoded in this process.

    NaN for None and where undefined.

    Raises:
        StorageError: values are known, but not of a pair.
        ModelError: the encoder cannot be loaded.
    """
    if known is not None:
        return known.look_up(texts)
    found = np.full((len(texts), len(comparison.columns)), np.nan)
    asked = [place for place, pair in enumerate(texts) if pair is not None]
    if asked:
        found[asked] = _match_here(comparison, tuple(pair for pair in texts if pair is not None))
    return found


def pair_keys(pairs: Iterable[TextPair]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each pair's hash; among ten million pairs two agree with a probability of 3 in a million."""
    data = b"".join(hashlib.blake2b(encode_parts(*pair), digest_size=8).digest() for pair in pairs)
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


@lru_cache(maxsize=1)
def load_encoder(comparison: Comparison, threads: int | None = None) -> PairEncoder:
    """Return the encoder of a comparison; a process keeps the last one.

    Raises:
        ModelError: it cannot be loaded.
    """
    return comparison.load(threads)


# The columns of a comparison may be metrics of their own, measured one after another on the same pairs.
@lru_cache(maxsize=4)
def _match_here(comparison: Comparison, pairs: tuple[TextPair, ...]) -> FloatArray:
    return load_encoder(comparison).match(pairs)
