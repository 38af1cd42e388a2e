"""Response tables → arrays of complete answers to shared items, and the fixed facts they are sorted by.

Knows no file, no sum and no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polypersona.errors import StorageError
from polypersona.records import DISPOSITIONS
from polypersona.survey.alignment import Aligned

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]

COLUMNS = ("persona_id", "item_id", "variant", "wave", "draw", "weight", "code", "option_probs", "disposition")
MAX_BITS = 16
# Options of all items together beyond which later items are left out of the joint tables of pairs.
MAX_JOINT_OPTIONS = 1200
NO_CODE = np.iinfo(np.int32).min
_NO_CODE_16 = pa.scalar(np.iinfo(np.int16).min, pa.int16())


@dataclass(frozen=True)
class Frame:
    """What rows are sorted by; the same in every thread.

    `human_codes` (items, respondents) are the humans' codes for pairs, `row_of` the respondent of a persona. `bits` is
    the fixed point of weights. `num_interviews` is waves × draws. `exponents` (items,) are what the probabilities of an
    answer's options are raised to, None where they stay. `is_greedy` says that the answers were given at temperature 0:
    option probabilities do not describe them and are not read.
    """

    items: tuple[Aligned, ...]
    of_persona: Mapping[str, int]
    num_profiles: int
    num_waves: int
    num_draws: int
    bits: int
    human_codes: npt.NDArray[np.int32]
    row_of: Mapping[str, int]
    exponents: FloatArray | None = None
    is_greedy: bool = False

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Index of an item by its id."""
        return {one.question.item_id: index for index, one in enumerate(self.items)}

    @cached_property
    def width(self) -> int:
        """The most options an item has."""
        return max(one.num_options for one in self.items)

    @cached_property
    def offsets(self) -> IntArray:
        """Where each item's options begin among the options of all items; the last is their number."""
        return np.cumsum([0, *(one.num_options for one in self.items)])

    @cached_property
    def num_joint_items(self) -> int:
        """How many items, from the first on, the joint tables of pairs hold."""
        return int(np.searchsorted(self.offsets, MAX_JOINT_OPTIONS, side="right")) - 1

    @cached_property
    def options_of_codes(self) -> IntArray:
        """Option index by (item, code − least code), −1 where the item has no such code."""
        low, high = self.code_range
        table = np.full((len(self.items), high - low + 1), -1, np.int64)
        for index, one in enumerate(self.items):
            for option, code in enumerate(one.question.codes):
                table[index, code - low] = option
        return table

    @cached_property
    def code_range(self) -> tuple[int, int]:
        """Least and largest code of any item."""
        codes = [code for one in self.items for code in one.question.codes]
        return min(codes), max(codes)

    @cached_property
    def shown_to_option(self) -> IntArray:
        """Codebook option by (item, place in the run's item), −1 beyond its last."""
        table = np.full((len(self.items), self.width), -1, np.int64)
        for index, one in enumerate(self.items):
            table[index, : len(one.order)] = one.order
        return table


def fixed_bits(max_weight: float, mean_weight: float, num_interviews: int, max_rows: int) -> int:
    """Return the fixed point's bits, fewer than none where its step is above one.

    The step is at most 2**-MAX_BITS of the mean weight, whatever the weights' scale; it is larger where the squares of
    a persona's summed weights, over a batch, would not fit an int64 otherwise.
    """
    reach = math.log2(max_weight) + math.log2(max(num_interviews, 1))
    room = (62 - math.log2(max(max_rows, 2))) / 2 - reach
    return min(MAX_BITS - math.floor(math.log2(mean_weight)), math.floor(room))


@dataclass(frozen=True)
class Census:
    """What a table holds: rows, rows of changed items, rows of items nobody shares, dispositions of shared ones."""

    num_rows: int
    num_variants: int
    unshared: Mapping[str, int]
    dispositions: IntArray


@dataclass(frozen=True)
class Rows:
    """Complete answers to shared items. `profiles` are those of the batch's personas, which `persona` numbers."""

    profiles: IntArray
    persona: IntArray
    item: IntArray
    option: IntArray
    code: IntArray
    weight: FloatArray
    interview: IntArray
    human: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]
    sizes: IntArray
    num_items: int

    @cached_property
    def cells(self) -> IntArray:
        """Number of each answer's persona and item."""
        return self.persona * self.num_items + self.item

    @classmethod
    def read(cls, table: pa.Table, frame: Frame) -> tuple[Rows | None, Census]:
        """Return the complete answers to shared items, None where there is none, and what was there altogether.

        Raises:
            StorageError: a persona or a code that the run cannot have.
        """
        table = table.unify_dictionaries().combine_chunks()
        variant, names = _dictionary(table, "variant")
        is_item = np.array([name == "" for name in names], bool)[variant]
        item_index, item_names = _dictionary(table, "item_id")
        lookup = np.array([frame.place.get(name, -1) for name in item_names], np.int64)
        counts = np.bincount(item_index[is_item], minlength=len(item_names))
        found = zip(item_names, lookup.tolist(), counts.tolist(), strict=True)
        unshared = {name: count for name, place, count in found if place < 0 and count}
        item = lookup[item_index]
        disposition, outcomes = _dictionary(table, "disposition")
        outcome = np.array([DISPOSITIONS.index(name) for name in outcomes], np.int64)[disposition]
        known = is_item & (item >= 0)
        places = item[known] * len(DISPOSITIONS) + outcome[known]
        shape = (len(frame.items), len(DISPOSITIONS))
        dispositions = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
        census = Census(table.num_rows, int((~is_item).sum()), unshared, dispositions)
        known &= outcome == DISPOSITIONS.index("complete")
        if not known.any():
            return None, census
        return cls._complete(table.filter(pa.array(known)).combine_chunks(), item[known], frame), census

    @classmethod
    def _complete(cls, table: pa.Table, item: IntArray, frame: Frame) -> Rows:
        index, names = _dictionary(table, "persona_id")
        used = np.unique(index)
        numbers = np.zeros(len(names), np.int64)
        numbers[used] = np.arange(len(used))
        people = [names[place] for place in used.tolist()]
        stranger = next((name for name in people if name not in frame.of_persona), None)
        if stranger is not None:
            raise StorageError(
                f"The responses hold the persona {stranger!r}, which the recipe's panel lacks.",
                "Compare with the recipe that the responses were made with.",
            )
        persona = numbers[index]
        code = pc.fill_null(table.column("code"), _NO_CODE_16).to_numpy().astype(np.int64)
        low, high = frame.code_range
        inside = (code >= low) & (code <= high)
        option = np.where(inside, frame.options_of_codes[item, np.clip(code, low, high) - low], -1)
        if bool((option < 0).any()):
            wrong = int(np.flatnonzero(option < 0)[0])
            name = frame.items[int(item[wrong])].question.item_id
            raise StorageError(
                f"A response to {name!r} has the code {code[wrong]}, which is none of its options.",
                "Compare with the recipe that the responses were made with.",
            )
        weight = np.rint(table.column("weight").to_numpy() * 2.0**frame.bits)
        wave, draw = (table.column(name).to_numpy().astype(np.int64) - 1 for name in ("wave", "draw"))
        interview = (persona * frame.num_waves + wave) * frame.num_draws + draw
        respondent = np.array([frame.row_of.get(name, -1) for name in people], np.int64)[persona]
        human = np.where(respondent >= 0, frame.human_codes[item, respondent], NO_CODE).astype(np.int32)
        listed = table.column("option_probs").combine_chunks()
        if frame.is_greedy:
            listed = pa.nulls(len(listed), listed.type)
        sizes = pc.fill_null(pc.list_value_length(listed), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.list_flatten(listed).to_numpy(zero_copy_only=False)
        if frame.exponents is not None and len(flat):
            flat = tempered(flat, sizes, frame.exponents[item])
        profiles = np.array([frame.of_persona[name] for name in people], np.int64)
        return cls(profiles, persona, item, option, code, weight, interview, human, flat, sizes, len(frame.items))


def _dictionary(table: pa.Table, name: str) -> tuple[IntArray, list[Any]]:
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array.indices.to_numpy(zero_copy_only=False).astype(np.int64), array.dictionary.to_pylist()


def tempered(
    flat: npt.NDArray[np.float32] | FloatArray, sizes: IntArray, exponents: FloatArray
) -> npt.NDArray[np.float32]:
    """Return the probabilities of some answers' options, each answer's raised to a power and normalised again.

    Args:
        flat: all answers' probabilities, one after another.
        sizes: how many each answer has.
        exponents: of each answer.
    """
    row = np.repeat(np.arange(len(sizes)), sizes)
    powers = np.power(flat.astype(np.float64), exponents[row])
    totals = np.bincount(row, weights=powers, minlength=len(sizes))
    return np.asarray(powers / totals[row], dtype=np.float32)


def human_codes(
    items: Sequence[Aligned], options: Mapping[str, IntArray], num_respondents: int
) -> npt.NDArray[np.int32]:
    """Return the humans' codes (items, respondents), a mark where a person gave none."""
    found = np.full((len(items), max(num_respondents, 1)), NO_CODE, np.int32)
    for index, one in enumerate(items):
        chosen = options[one.question.item_id]
        codes = np.array(one.question.codes, np.int32)
        found[index, : len(chosen)] = np.where(chosen >= 0, codes[np.clip(chosen, 0, None)], NO_CODE)
    return found
