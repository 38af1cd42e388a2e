"""Answer → stance sign: what a coded or written answer says about its item's construct.

Closed answers are read from their code and the item's key; open ones by recognising the simulator's own opening
sentences, so an open answer in other words has no stance here.
"""

from __future__ import annotations

from typing import Literal

from polypersona.records import Item
from polypersona.simulator.grammar import read_level

Sign = Literal[-1, 0, 1]


def stance_sign(item: Item, code: int | None, text: str) -> Sign | None:
    """Return −1, 0 or 1 towards the item's construct (reverse keys turned), or None where it cannot be read."""
    if not item.construct:
        return None
    if not item.is_closed:
        level = read_level(text)
        return None if level is None else _sign(level)
    if code is None or code not in item.codes or item.scale != "ordered":
        return None
    position = 2 * item.codes.index(code) - (len(item.codes) - 1)
    return _sign(-position if item.reverse else position)


def _sign(value: int) -> Sign:
    return 1 if value > 0 else -1 if value < 0 else 0
