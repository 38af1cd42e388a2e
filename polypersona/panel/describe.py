"""What a panel is made of: composition by attribute, weights, near-duplicates, contradictions.

Takes personas, gives a value that is easily JSON. Prints nothing and reads no file.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.chatml import card_attributes, render_value
from polypersona.panel.contradictions import Contradiction, find_contradictions
from polypersona.panel.duplicates import Duplicates, find_duplicates
from polypersona.records import Persona


@dataclass(frozen=True, slots=True)
class Numbers:
    """Summary of a numeric attribute; `sd` has n − 1 in the denominator and is None for a single value."""

    minimum: float
    quartiles: tuple[float, float, float]
    maximum: float
    mean: float
    sd: float | None


@dataclass(frozen=True, slots=True)
class Composition:
    """One attribute: how many personas have it, the counts of its values, and a summary where all are numbers.

    Each part of a list counts, so counts of lists add up to more than `num_personas`.
    """

    attribute: str
    num_personas: int
    counts: tuple[tuple[str, int], ...]
    numbers: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A panel described. `effective_size` is Kish's (Σw)² / Σw²; shares are of `num_personas`, unweighted."""

    num_personas: int
    composition: tuple[Composition, ...]
    num_texts: int
    mean_words: float | None
    weight_sum: float
    effective_size: float
    duplicates: Duplicates
    contradictions: tuple[Contradiction, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        content = asdict(self)
        for row in content["composition"]:
            row["counts"] = dict(row["counts"])
        content["duplicates"]["num_personas"] = self.duplicates.num_personas
        return content


def describe(personas: Sequence[Persona]) -> Description:
    """Describe a panel; attributes are in the card's order."""
    named = Persona("", {name: "" for persona in personas for name in persona.attributes})
    texts = [persona.text for persona in personas if persona.text]
    weights = [persona.weight for persona in personas]
    squares = sum(weight * weight for weight in weights)
    return Description(
        num_personas=len(personas),
        composition=tuple(_compose(name, personas) for name, _ in card_attributes(named)),
        num_texts=len(texts),
        mean_words=statistics.fmean(len(text.split()) for text in texts) if texts else None,
        weight_sum=sum(weights),
        effective_size=sum(weights) ** 2 / squares if squares else 0.0,
        duplicates=find_duplicates(personas),
        contradictions=tuple(find_contradictions(personas)),
    )


def _compose(name: str, personas: Sequence[Persona]) -> Composition:
    values = [persona.attributes[name] for persona in personas if name in persona.attributes]
    counts: Counter[str] = Counter()
    for value in values:
        counts.update(value if isinstance(value, tuple) else [render_value(value)])
    ordered = tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return Composition(name, len(values), ordered, _summarize(numbers) if len(numbers) == len(values) else None)


def _summarize(numbers: Sequence[float]) -> Numbers:
    if len(numbers) == 1:
        return Numbers(numbers[0], (numbers[0],) * 3, numbers[0], numbers[0], None)
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    spread = statistics.stdev(numbers)
    return Numbers(min(numbers), (low, middle, high), max(numbers), statistics.fmean(numbers), spread)
