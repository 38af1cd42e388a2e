"""Habits of answering, from the ordinary responses: who does not answer, answers in a straight line, or repeats itself.

- item non-response, refusal, cut short, invalid: share of asked cells that ended so.
- straight-lining: share of blocks with one option throughout. A block is a persona's answers in one interview to all
  closed items of the instrument with the same options, three or more. Its floor is the same answers given by different
  personas: Σ_k Π_i p_ik.
- ends of the scale, middle of the scale: share of closed ordered answers of five options or more at either end, or in
  the middle.
- said before: share of open answers that the persona has given word for word to an earlier item or interview.
- said by others: share of open answers that somebody else gave to the same item word for word.

All in [0, 1]. Words are compared without case and spacing, in answers of `MIN_WORDS` or more. Intervals are linearised
and clustered by persona (`inference`), except for the last, which is a sum over people; there texts are counted by
64-bit hashes, of more than `MAX_TEXTS` distinct ones a share chosen by their hash, so that memory stays bounded and any
sharding counts the same. Knows no file and no Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polypersona.bias.effects import Moments, Row
from polypersona.records import Item, seed_from
from polypersona.survey.inference import UNDEFINED, Interval

MIN_BLOCK = 3
MIN_WORDS = 4
MAX_TEXTS = 400_000
_DISPOSITIONS = {
    "item_nonresponse": "Item non-response",
    "refusal": "Refusal",
    "truncated": "Cut short",
    "invalid": "Invalid",
}
_LABELS = {
    **_DISPOSITIONS,
    "straight_lining": "Straight-lining",
    "ends": "Ends of the scale",
    "middle_of_scale": "Middle of the scale",
    "said_before": "Said before",
    "said_by_others": "Said by others",
}
_OF = {
    **dict.fromkeys(_DISPOSITIONS, "asked cells"),
    "straight_lining": f"blocks of {MIN_BLOCK} items or more",
    "ends": "ordered answers",
    "middle_of_scale": "ordered answers",
    "said_before": "open answers",
    "said_by_others": "open answers",
}


@dataclass
class Texts:
    """How often each text was given to each item: counts by hash, those below a threshold that falls as they grow."""

    counts: Counter[int] = field(default_factory=Counter)
    bits: int = 0

    def add(self, key: int) -> None:
        """Count one text."""
        if self._is_kept(key):
            self.counts[key] += 1
            while len(self.counts) > MAX_TEXTS:
                self.bits += 1
                self.counts = Counter({key: count for key, count in self.counts.items() if self._is_kept(key)})

    def _is_kept(self, key: int) -> bool:
        return not key & ((1 << self.bits) - 1)


@dataclass
class Habits:
    """Sums of all habits over personas. `blocks` are the items with equal options, by place."""

    items: Mapping[str, Item]
    moments: dict[str, Moments] = field(default_factory=dict)
    texts: Texts = field(default_factory=Texts)
    choices: dict[str, Counter[int]] = field(default_factory=dict)

    @property
    def blocks(self) -> list[list[str]]:
        """The ids of the closed items of each block."""
        found: dict[tuple[str, ...], list[str]] = {}
        for item in self.items.values():
            if item.is_closed:
                found.setdefault(item.options, []).append(item.item_id)
        return [ids for ids in found.values() if len(ids) >= MIN_BLOCK]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add all rows of some personas, those that failed too.

        Rows have persona_id, item_id, wave, draw, code, text and disposition.
        """
        people: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["item_id"] in self.items and row["disposition"] not in ("not_asked", "error"):
                people.setdefault(row["persona_id"], []).append(row)
        for own in people.values():
            for name, (part, whole) in self._counts_of(own).items():
                if whole:
                    vector = np.array([part, whole, 0.0, 0.0])
                    self.moments.setdefault(name, Moments()).add(vector, int(whole))

    def rows(self) -> list[Row]:
        """Return one row per habit."""
        rows = []
        for name, label in _LABELS.items():
            moments = self.moments.get(name, Moments())
            found, floor = moments.interval(0.0), math.nan
            if name == "straight_lining":
                floor = self._shuffled_lines()
            if name == "said_by_others":
                found = self._repeated()
            rows.append(
                {
                    "habit": name,
                    "label": label,
                    "of": _OF[name],
                    "n": 0 if math.isnan(found.value) else moments.pairs,
                    "personas": moments.personas,
                    "score": found.value,
                    "low": found.low,
                    "high": found.high,
                    "error": found.error,
                    "floor": floor,
                    "floor_name": "" if math.isnan(floor) else "shuffled",
                    "signature": f"{name}|interval:linearised,95%,clusters:persona|min_words:{MIN_WORDS}|v1",
                }
            )
        return rows

    def _counts_of(self, own: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        """Return (cells with the habit, cells that could have it) of one persona."""
        ended = Counter(row["disposition"] for row in own)
        found: dict[str, tuple[float, float]] = {name: (ended[name], len(own)) for name in _DISPOSITIONS}
        interviews: dict[tuple[int, int], dict[str, int]] = {}
        ends = middle = ordered = 0
        for row in own:
            item = self.items[row["item_id"]]
            if row["disposition"] != "complete" or row["code"] not in item.codes:
                continue
            index, last = item.codes.index(row["code"]), len(item.codes) - 1
            interviews.setdefault((row["wave"], row["draw"]), {})[item.item_id] = index
            if item.scale == "ordered" and last >= 4:
                ordered += 1
                ends += index in (0, last)
                middle += 2 * index == last
        found |= {"ends": (ends, ordered), "middle_of_scale": (middle, ordered)}
        found["straight_lining"] = self._lines(list(interviews.values()))
        found |= self._repetitions(own)
        return found

    def _lines(self, interviews: Sequence[Mapping[str, int]]) -> tuple[int, int]:
        lines = blocks = 0
        for block in self.blocks:
            for answers in interviews:
                given = [answers[item_id] for item_id in block if item_id in answers]
                if len(given) == len(block):
                    blocks += 1
                    lines += len(set(given)) == 1
                    for item_id in block:
                        self.choices.setdefault(item_id, Counter())[answers[item_id]] += 1
        return lines, blocks

    def _repetitions(self, own: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
        seen: set[str] = set()
        told: set[tuple[str, str]] = set()
        before = count = 0
        for row in sorted(own, key=lambda row: (row["wave"], row["draw"], row["item_id"])):
            text = " ".join(row["text"].casefold().split())
            if (
                self.items[row["item_id"]].is_closed
                or row["disposition"] != "complete"
                or text.count(" ") < MIN_WORDS - 1
            ):
                continue
            count += 1
            before += text in seen
            seen.add(text)
            key = row["item_id"], text
            if key not in told:  # what a persona repeats itself is no other's
                told.add(key)
                self.texts.add(seed_from(*key))
        return {"said_before": (before, count), "said_by_others": (0, count)}

    def _shuffled_lines(self) -> float:
        """Return the share of blocks in one line if each item were answered by another persona."""
        total = lines = 0.0
        for block in self.blocks:
            counts = [self.choices.get(item_id, Counter()) for item_id in block]
            number = counts[0].total()
            if number:
                shares = [{option: count / number for option, count in one.items()} for one in counts]
                lines += number * sum(
                    math.prod(share.get(option, 0.0) for share in shares)
                    for option in range(len(self.items[block[0]].options))
                )
                total += number
        return lines / total if total else math.nan

    def _repeated(self) -> Interval:
        counts = self.texts.counts
        total = counts.total()
        if not total:
            return UNDEFINED
        return Interval(sum(count for count in counts.values() if count > 1) / total, math.nan, math.nan, math.nan)
