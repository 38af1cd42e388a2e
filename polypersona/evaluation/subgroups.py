"""Personas → the subgroups they are in: `attribute=value`, for the tables by subgroup. Pure.

An attribute makes subgroups where its values are few: words, or a number in bands cut at the panel's quartiles. A
subgroup of fewer than `MIN_PERSONAS` personas is left out, as is an attribute that all personas share. Nothing here
depends on the order of personas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polypersona.chatml import card_attributes, render_value
from polypersona.records import AttributeValue, Persona

MIN_PERSONAS = 5
MAX_VALUES = 12
NUM_BANDS = 4


def build_subgroups(personas: Iterable[Persona]) -> dict[str, tuple[str, ...]]:
    """Return each persona's subgroups, by persona id; a persona in none is left out."""
    by_id = {persona.persona_id: persona for persona in personas}
    values: dict[str, dict[str, AttributeValue]] = {}
    for persona_id, persona in by_id.items():
        for name, value in card_attributes(persona):
            if not isinstance(value, tuple):
                values.setdefault(name, {})[persona_id] = value
    labels: dict[str, list[str]] = {persona_id: [] for persona_id in by_id}
    for name in sorted(values):
        for persona_id, label in _labels(values[name]).items():
            labels[persona_id].append(f"{name}={label}")
    return {persona_id: tuple(found) for persona_id, found in labels.items() if found}


def _labels(values: Mapping[str, AttributeValue]) -> dict[str, str]:
    """Return the group of each persona by one attribute; none where there are too many groups, or one."""
    numbers = [value for value in values.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values) and len(set(numbers)) > MAX_VALUES:
        words = _banded(values, numbers)
    else:
        words = {persona_id: render_value(value) for persona_id, value in values.items()}
    sizes = Counter(words.values())
    if not 2 <= len(sizes) <= MAX_VALUES:
        return {}
    return {persona_id: word for persona_id, word in words.items() if sizes[word] >= MIN_PERSONAS}


def _banded(values: Mapping[str, AttributeValue], numbers: Sequence[int | float]) -> dict[str, str]:
    ordered = np.sort(np.asarray(numbers, dtype=np.float64))
    inner = np.quantile(ordered, np.arange(1, NUM_BANDS) / NUM_BANDS, method="higher")
    starts = np.unique(np.concatenate([ordered[:1], inner]))
    place = dict(zip(values, np.searchsorted(starts, np.asarray(numbers), side="right") - 1, strict=True))
    words = [
        f"{start:g} to under {starts[index + 1]:g}" if index + 1 < len(starts) else f"{start:g} and more"
        for index, start in enumerate(starts.tolist())
    ]
    return {key: words[int(index)] for key, index in place.items()}
