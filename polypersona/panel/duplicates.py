"""Near-duplicates: personas whose cards differ in one attribute at most, or whose texts are nearly the same words.

Both searches are exact and avoid comparing all pairs: cards are grouped by a hash of all attributes but one; texts by
the prefix filter of set similarity joins (Bayardo, Ma and Srikant 2007: two sets with a Jaccard similarity of at least
t share one of each other's ⌊(1 − t)·size⌋ + 1 rarest words).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polypersona.chatml import render_value
from polypersona.records import Persona, seed_from

MIN_SIMILARITY = 0.9
# With fewer attributes, personas that differ in one are what one expects of any panel.
MIN_ATTRIBUTES = 5

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Groups of persona ids, largest first: equal in content; in card up to one attribute; in words of their text.

    A persona can stand in several groups. `text` groups have two members each, or more where the words are the same.
    """

    equal: tuple[tuple[str, ...], ...]
    card: tuple[tuple[str, ...], ...]
    text: tuple[tuple[str, ...], ...]

    @property
    def num_personas(self) -> int:
        """How many personas have at least one near-duplicate."""
        return len({name for groups in (self.equal, self.card, self.text) for group in groups for name in group})


def find_duplicates(personas: Sequence[Persona]) -> Duplicates:
    """Return the groups of near-duplicates."""
    contents: dict[tuple[int, str], list[int]] = defaultdict(list)
    cards = [_hash_card(persona) for persona in personas]
    for place, (persona, card) in enumerate(zip(personas, cards, strict=True)):
        contents[sum(card.values()), persona.text].append(place)
    first_of_each = [places[0] for places in contents.values()]
    return Duplicates(
        equal=_named(personas, (places for places in contents.values() if len(places) > 1)),
        card=_named(personas, _near_cards(personas, cards, first_of_each)),
        text=_named(personas, _near_texts([personas[place].text for place in first_of_each], first_of_each)),
    )


def _named(personas: Sequence[Persona], groups: Iterator[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    found = {tuple(sorted(group)) for group in groups}
    ordered = sorted(found, key=lambda group: (-len(group), group))
    return tuple(tuple(personas[place].persona_id for place in group) for group in ordered)


def _hash_card(persona: Persona) -> dict[str, int]:
    return {name: _hash_pair(name, render_value(value)) for name, value in persona.attributes.items()}


def _hash_pair(name: str, value: str) -> int:
    return seed_from(name, value)


def _near_cards(
    personas: Sequence[Persona], cards: Sequence[dict[str, int]], places: Sequence[int]
) -> Iterator[list[int]]:
    """Yield groups of distinct personas whose cards are the same but for one attribute, or for its absence."""
    names = sorted({name for card in cards for name in card})
    sums = {place: sum(cards[place].values()) for place in places if len(cards[place]) >= MIN_ATTRIBUTES}
    for name in names:
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        for place, total in sums.items():
            groups[total - cards[place].get(name, 0), personas[place].text].append(place)
        yield from (group for group in groups.values() if len(group) > 1)


def _near_texts(texts: Sequence[str], places: Sequence[int]) -> Iterator[list[int]]:
    """Yield groups of personas whose texts have the same words, and pairs of nearly the same."""
    holders: dict[frozenset[str], list[int]] = defaultdict(list)
    for text, place in zip(texts, places, strict=True):
        if words := frozenset(_WORD.findall(text.lower())):
            holders[words].append(place)
    yield from (group for group in holders.values() if len(group) > 1)
    sets = list(holders)
    for one, other in _similar_sets(sets):
        yield [holders[sets[one]][0], holders[sets[other]][0]]


def _similar_sets(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different sets with a Jaccard similarity of at least MIN_SIMILARITY."""
    frequency = Counter(word for words in sets for word in words)
    index: dict[str, list[int]] = defaultdict(list)
    for one in sorted(range(len(sets)), key=lambda place: len(sets[place])):
        words = sets[one]
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(words) - math.ceil(MIN_SIMILARITY * len(words)) + 1]
        candidates = {other for word in prefix for other in index[word]}
        for other in candidates:
            shared = len(words & sets[other])
            if shared >= MIN_SIMILARITY * (len(words) + len(sets[other]) - shared):
                yield other, one
        for word in prefix:
            index[word].append(one)
