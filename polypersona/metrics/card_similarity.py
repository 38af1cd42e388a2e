"""How near an answer in words stands to its respondent's own card: the cosine of two sentence vectors, in [−1, 1].

    similarity = cos(v(answer), v(card)),   v(text) = mean of the vectors of the text's tokens in the last layer

v is the mean pooling of Reimers & Gurevych 2019 (Sentence-BERT). The card is the text that stands in the prompts. The
score is the mean over answers to open items, complete or cut by the length limit, and not blank; undefined where a text
has no token. Higher is better, but no value is good in itself: the floor is the same answer beside another persona's
card, the next one in an order of the panel shuffled by the seed. Numbers of different encoders are not comparable. A
text longer than the encoder takes is cut by its tokenizer, so the end of a long card is not compared.

The statistic is, by persona and open item: answers and the sum of their similarities; answers that have a floor, and
the sums of their similarities and of the floor's.

It is measured only where the recipe names a sentence encoder (`text_pairs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from polypersona.chatml import RENDERER_VERSION, render_card
from polypersona.errors import StorageError
from polypersona.metrics.base import SCALE, FloatArray, IntArray, TextPair, ratio
from polypersona.metrics.encoder_files import describe_encoder, most_tokens
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.persona_score import PersonaMetric, PersonaStatistic, Scored
from polypersona.metrics.text_pairs import PairValues, values_of
from polypersona.models.location import model_name
from polypersona.records import Item, Persona

if TYPE_CHECKING:
    from polypersona.metrics.mean_pooling import MeanPooler

NAME = "card_similarity"
KEY = "evaluate.embedding_model"
MAX_REMEMBERED_CARDS = 4096
_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class CosineOfMeans:
    """The comparison of sentence vectors: a folder or hub id, its layers, at how many tokens it cuts, its identity."""

    model: str
    layer: int
    max_tokens: int | None
    identity: str
    name: ClassVar[str] = NAME
    key: ClassVar[str] = KEY
    columns: ClassVar[Sequence[str]] = ("cosine",)

    @property
    def signature(self) -> str:
        cut = "" if self.max_tokens is None else f"|max_tokens:{self.max_tokens}"
        encoder = f"model:{model_name(self.model)}|pooling:mean|layer:{self.layer}{cut}"
        return f"cosine:answer,card|{encoder}|card:{RENDERER_VERSION}|range:-1-1|transformers:{version('transformers')}"

    def load(self, threads: int | None = None) -> MeanPooler:
        from polypersona.metrics.mean_pooling import MeanPooler

        return MeanPooler.load(self.model, self.max_tokens, self.key, threads)


class Compared(NamedTuple):
    """An answer beside the own card and the next persona's; None for a card that says nothing, or where none is."""

    persona: int
    item: int
    own: TextPair | None
    other: TextPair | None


@dataclass(frozen=True)
class CardSimilarity:
    """Answers in words beside cards. `personas` by id; `next_persona` is the rotation of the panel.

    `known` are values that are there already.
    """

    items: Sequence[Item]
    personas: Mapping[str, Persona]
    next_persona: Mapping[str, str]
    comparison: CosineOfMeans
    known: PairValues | None = field(default=None, repr=False, compare=False)
    _cards: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def metrics(self) -> Sequence[PersonaMetric]:
        """What is scored."""
        return (PersonaMetric(NAME, "Similarity of answers to the card", True, self.comparison.signature),)

    @cached_property
    def open_items(self) -> Sequence[int]:
        """Places of the items that are answered in words."""
        return [place for place, item in enumerate(self.items) if not item.is_closed]

    @property
    def width(self) -> int:
        """Columns of a persona's row."""
        return len(self.open_items) * _COLUMNS

    def compare(self, interviews: Interviews) -> Iterator[Compared]:
        """Yield the answers that `measure` counts, each with what it is compared with."""
        is_open = frozenset(self.open_items)
        for persona, item, text in interviews.texts:
            if item in is_open:
                name = interviews.persona_ids[persona]
                own, other = self._card(name), self._card(self.next_persona.get(name))
                yield Compared(persona, item, (text, own) if own else None, (text, other) if own and other else None)

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona, shape (personas, width).

        Raises:
            StorageError: the panel lacks a persona, or values are known but not of all pairs.
        """
        compared = list(self.compare(interviews))
        own, other = (self._cosines([getattr(one, side) for one in compared]) for side in ("own", "other"))
        is_known = ~np.isnan(own)
        has_floor = is_known & ~np.isnan(other)
        score, floor = (np.rint(np.nan_to_num(values) * SCALE).astype(np.int64) for values in (own, other))
        columns = np.stack([is_known, score * is_known, has_floor, score * has_floor, floor * has_floor], axis=1)
        persona, item = (np.array([one[place] for one in compared], np.int64) for place in (0, 1))
        rows = np.zeros((interviews.num_personas, len(self.open_items), _COLUMNS), np.int64)
        np.add.at(rows, (persona, np.searchsorted(self.open_items, item)), columns)
        return rows.reshape(len(rows), self.width)

    def members(self, item_id: str | None, domain: str | None) -> IntArray:
        """Return the open items of a group: all, those of a domain, or the one with an id."""
        own = [self.items[place] for place in self.open_items]
        chosen = [
            unit for unit, item in enumerate(own) if item_id in (None, item.item_id) and domain in (None, item.domain)
        ]
        return np.array(chosen, np.int64)

    def score(self, totals: IntArray, members: IntArray) -> Mapping[str, Scored]:
        """Return the score and its floor from summed rows, shape (replicates, width), for some open items."""
        parts = totals.reshape(len(totals), len(self.open_items), _COLUMNS)[:, members].sum(axis=1)
        values = parts.astype(np.float64) / SCALE
        score, matched, floor = (ratio(values[:, place], parts[:, of]) for place, of in ((1, 0), (3, 2), (4, 2)))
        return {NAME: Scored(score, floor, int(parts[0, 0]), matched)}

    def _cosines(self, pairs: Sequence[TextPair | None]) -> FloatArray:
        return values_of(self.comparison, self.known, pairs)[:, 0]

    def _card(self, persona_id: str | None) -> str:
        """Return a persona's card, empty for none."""
        if persona_id is None:
            return ""
        if persona_id not in self._cards:
            if persona_id not in self.personas:
                raise StorageError(
                    f"The responses hold the persona {persona_id!r}, which the recipe's panel lacks.",
                    "Evaluate with the recipe that the responses were made with.",
                )
            if len(self._cards) >= MAX_REMEMBERED_CARDS:
                self._cards.clear()
            self._cards[persona_id] = render_card(self.personas[persona_id])
        return self._cards[persona_id]


def build_comparison(model: str) -> CosineOfMeans:
    """Return the comparison by a sentence encoder's last layer.

    Raises:
        ModelError: its files cannot be read, it runs code of its own, its weights are pickled, or its vectors are no
            mean of its tokens'.
    """
    facts = describe_encoder(model, KEY)
    return CosineOfMeans(model, facts.num_layers, most_tokens(model, KEY), facts.identity)


def similarity_of(statistics: Sequence[PersonaStatistic]) -> CardSimilarity | None:
    """Return the statistic of cards among some, None where it is not measured."""
    return next((one for one in statistics if isinstance(one, CardSimilarity)), None)


def with_values(statistics: Sequence[PersonaStatistic], known: PairValues) -> tuple[PersonaStatistic, ...]:
    """Return the statistics, that of cards with values that are there already."""
    return tuple(replace(one, known=known) if isinstance(one, CardSimilarity) else one for one in statistics)
