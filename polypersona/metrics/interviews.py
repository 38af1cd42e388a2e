"""Responses of whole personas as arrays: who said what to which item, interview by interview.

An interview is a persona's answers in one wave and draw. Closed answers are option indices; all answers with a
construct have a stance sign towards it, reverse keys turned, and a position in [−1, 1]. Knows no score and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, FloatArray, IntArray
from polypersona.records import Item
from polypersona.simulator.grammar import read_level

Signs: TypeAlias = npt.NDArray[np.int8]

# In the place of an answer that is not there or cannot be read.
NO_OPTION, NO_SIGN = -1, 9
_ANSWERED = ("complete", "truncated")


@dataclass(frozen=True)
class Interviews:
    """The answers of some personas, all of theirs.

    `persona` (interviews,) numbers `persona_ids`; `wave` and `draw` (interviews,) tell the interviews of one persona
    apart. `options`, `signs` and `positions` are (interviews, items), with NO_OPTION, NO_SIGN and NaN where there is
    none. `texts` are the answers in words as (persona, item, text).
    """

    items: Sequence[Item]
    persona_ids: Sequence[str]
    persona: IntArray
    wave: IntArray
    draw: IntArray
    options: IntArray
    signs: Signs
    positions: FloatArray
    texts: Sequence[tuple[int, int, str]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], items: Sequence[Item]) -> Interviews:
        """Return the answers of rows with persona_id, item_id, wave, draw, code, text and disposition.

        Rows of unknown items are left out, and so are answers that are neither complete nor cut by the length limit.
        """
        place = {item.item_id: index for index, item in enumerate(items)}
        known = [row for row in rows if row["disposition"] in _ANSWERED and row["item_id"] in place]
        keys = sorted({(row["persona_id"], row["wave"], row["draw"]) for row in known})
        number = {key: index for index, key in enumerate(keys)}
        names = sorted({key[0] for key in keys})
        index_of = {name: index for index, name in enumerate(names)}
        shape = (len(keys), len(items))
        options, signs = np.full(shape, NO_OPTION, np.int64), np.full(shape, NO_SIGN, np.int8)
        positions, texts = np.full(shape, np.nan), []
        for row in known:
            at = number[row["persona_id"], row["wave"], row["draw"]], place[row["item_id"]]
            item = items[at[1]]
            option, position = _read(item, row["code"], row["text"])
            options[at] = option
            if position is not None:
                signs[at], positions[at] = (position > 0) - (position < 0), position
            if row["text"].strip():
                texts.append((index_of[row["persona_id"]], at[1], row["text"]))
        persona, wave, draw = (
            np.array([index_of[key[0]] if part == 0 else key[part] for key in keys], np.int64) for part in range(3)
        )
        return cls(items, names, persona, wave, draw, options, signs, positions, texts)

    @property
    def num_personas(self) -> int:
        """How many personas answered."""
        return len(self.persona_ids)

    @cached_property
    def by_persona(self) -> Sequence[IntArray]:
        """The interviews of each persona."""
        order = np.argsort(self.persona, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.persona, minlength=self.num_personas))[:-1])


def _read(item: Item, code: int | None, text: str) -> tuple[int, float | None]:
    """Return the option's index and the position towards the construct."""
    if not item.is_closed:
        level = _level(text) if item.construct else None
        return NO_OPTION, None if level is None else level / 2
    if code is None or code not in item.codes:
        return NO_OPTION, None
    index, last = item.codes.index(code), len(item.codes) - 1
    if not item.construct or item.scale != "ordered" or not last:
        return index, None
    position = 2 * index / last - 1
    return index, -position if item.reverse else position


@lru_cache(maxsize=MAX_REMEMBERED_TEXTS)
def _level(text: str) -> int | None:
    return read_level(text)
