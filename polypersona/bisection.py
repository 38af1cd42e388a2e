"""The search for what makes a shard fail: which of its units, asked alone, fail every time.

A unit is what can be asked alone: a cell, or an interview. A search is a value: what it asks next follows from it, and
an outcome gives the next search, so that it can be written down before each probe and goes on in another process. It
first asks single units until one is answered; where none is, the fault is not one of units. Then it halves what failed,
left before right, and what is left alone must fail `max_tries` times. Knows no engine, no file and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

# How many single units are asked for a sign that anything is answered at all.
MAX_SAMPLES = 5
# A shard with more failing units than this is given up: each costs a dozen deaths of a process.
MAX_FOUND = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Units `begin` … `end` - 1 of those that are searched.

    `is_known`: that it holds a failing unit follows from other probes. `decides_next`: if this is answered, the span
    after it does. `tries` counts the failures of a single unit.
    """

    begin: int
    end: int
    is_known: bool = False
    decides_next: bool = False
    tries: int = 0

    @property
    def size(self) -> int:
        """How many units there are in it."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Found:
    """A unit that failed `tries` times alone, with the last reason."""

    unit: int
    reason: str
    tries: int


@dataclass(frozen=True, slots=True)
class Search:
    """How far a search is. `spans` are still to be asked, the last one next; `samples` before any of them."""

    samples: tuple[int, ...]
    spans: tuple[Span, ...]
    found: tuple[Found, ...] = ()
    is_hopeless: bool = False

    @classmethod
    def among(cls, num_units: int) -> Search:
        """Return the search for what fails among units 0 … `num_units` - 1, two or more, which fail together."""
        count = min(MAX_SAMPLES, num_units)
        samples = tuple((2 * index + 1) * num_units // (2 * count) for index in range(count))
        return cls(samples, _halves(Span(0, num_units)))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask."""
        return self.is_hopeless or not self.spans

    @property
    def probe(self) -> Span:
        """What is asked next."""
        return Span(self.samples[0], self.samples[0] + 1) if self.samples else self.spans[-1]

    def answered(self) -> Search:
        """Return the search after the probe was answered."""
        if self.samples:
            return replace(self, samples=())
        *rest, done = self.spans
        if done.decides_next:
            rest[-1] = replace(rest[-1], is_known=True)
        return self._with(rest)

    def failed(self, reason: str, max_tries: int) -> Search:
        """Return the search after the probe failed."""
        if self.samples:
            samples = self.samples[1:]
            return replace(self, samples=samples, is_hopeless=not samples)
        *rest, done = self.spans
        if done.size > 1:
            return self._with([*rest, replace(done, is_known=True, decides_next=False)])
        tries = done.tries + 1
        if tries < max_tries:
            return self._with([*rest, replace(done, tries=tries)])
        found = (*self.found, Found(done.begin, reason, tries))
        return replace(self._with(rest), found=found, is_hopeless=len(found) > MAX_FOUND)

    def as_json(self) -> dict[str, Any]:
        """Return the search as JSON values; `search_from` reads them back."""
        return asdict(self)

    def _with(self, spans: list[Span]) -> Search:
        if spans and spans[-1].is_known and spans[-1].size > 1:
            spans[-1:] = _halves(spans[-1])
        return replace(self, spans=tuple(spans))


def search_from(stored: Mapping[str, Any]) -> Search:
    """Return the search that `as_json` wrote."""
    return Search(
        tuple(stored["samples"]),
        tuple(Span(**span) for span in stored["spans"]),
        tuple(Found(**found) for found in stored["found"]),
        stored["is_hopeless"],
    )


def _halves(span: Span) -> tuple[Span, Span]:
    """Return the right half and, to be asked first, the left one."""
    middle = (span.begin + span.end) // 2
    return Span(middle, span.end), Span(span.begin, middle, decides_next=True)
