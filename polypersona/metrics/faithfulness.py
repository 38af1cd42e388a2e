"""Faithfulness: are the facts that answers state about their speaker those of the card?

- fact faithfulness: true facts / facts that the own card can judge (`facts`). In [0, 1], higher is better. The floor
  judges the same facts by another persona's card, the next one in an order of the panel shuffled by the seed: what
  facts are true by chance, such as a common occupation.
- fact rate: share of answers in words that state at least one such fact. In [0, 1]; neither end is better, but
  faithfulness rests on these answers alone.

The statistic is, by persona and domain: answers, those with a fact, facts judged and true, facts that the other card
can judge and that are true of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from polypersona.metrics.base import MAX_REMEMBERED_TEXTS, IntArray, ratio
from polypersona.metrics.facts import MAX_VALUES, Fact, FactReader, is_true
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.persona_score import PersonaMetric, Scored
from polypersona.records import Item, Persona

METRICS = (
    PersonaMetric(
        "fact_faithfulness", "Faithfulness of stated facts", True,
        f"facts:true/judged|frames:1|vocabulary:panel,{MAX_VALUES}|range:0-1",
    ),
    PersonaMetric(
        "fact_rate", "Answers that state a fact", True,
        f"facts:answers_with_judged/answers|frames:1|vocabulary:panel,{MAX_VALUES}|direction:none|range:0-1", "",
    ),
)  # fmt: skip
_COLUMNS = 6


@dataclass(frozen=True)
class Faithfulness:
    """Facts stated by answers, beside the cards. `personas` by id; `next_persona` is the rotation of the panel."""

    items: Sequence[Item]
    personas: Mapping[str, Persona]
    next_persona: Mapping[str, str]
    _known: dict[str, list[Fact]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def metrics(self) -> Sequence[PersonaMetric]:
        """What is scored."""
        return METRICS

    @cached_property
    def reader(self) -> FactReader:
        """The reader of the panel's values."""
        return FactReader.of(self.personas.values())

    @cached_property
    def domains(self) -> Sequence[str]:
        """The instrument's domains."""
        return sorted({item.domain for item in self.items})

    @property
    def width(self) -> int:
        """Columns of a persona's row."""
        return len(self.domains) * _COLUMNS

    def measure(self, interviews: Interviews) -> IntArray:
        """Return one row per persona, shape (personas, width)."""
        rows = np.zeros((interviews.num_personas, len(self.domains), _COLUMNS), np.int64)
        place = {name: index for index, name in enumerate(self.domains)}
        for persona, item, text in interviews.texts:
            facts = self._facts(text)
            row = rows[persona, place[self.items[item].domain]]
            row[0] += 1
            if facts:
                name = interviews.persona_ids[persona]
                row[1:] += self._judge(facts, name)
        return rows.reshape(len(rows), self.width)

    def members(self, item_id: str | None, domain: str | None) -> IntArray:
        """Return the domains of a group; an item has none."""
        if item_id is not None:
            return np.zeros(0, np.int64)
        return np.array([index for index, name in enumerate(self.domains) if domain in (None, name)], np.int64)

    def score(self, totals: IntArray, members: IntArray) -> Mapping[str, Scored]:
        """Return each metric's score and floor from summed rows, shape (replicates, width), for some domains."""
        parts = totals.reshape(len(totals), len(self.domains), _COLUMNS)[:, members].sum(axis=1)
        numbers = parts.astype(np.float64)
        return {
            "fact_faithfulness": Scored(
                ratio(numbers[:, 3], parts[:, 2]), ratio(numbers[:, 5], parts[:, 4]), int(parts[0, 2])
            ),
            "fact_rate": Scored(ratio(numbers[:, 1], parts[:, 0]), None, int(parts[0, 0])),
        }

    def _facts(self, text: str) -> list[Fact]:
        if text not in self._known:
            if len(self._known) >= MAX_REMEMBERED_TEXTS:
                self._known.clear()
            self._known[text] = self.reader.read(text)
        return self._known[text]

    def _judge(self, facts: Sequence[Fact], name: str) -> list[int]:
        other = self.next_persona.get(name)
        own = [found for fact in facts if (found := is_true(fact, self.personas[name])) is not None]
        others = [] if other is None else [is_true(fact, self.personas[other]) for fact in facts]
        judged = [found for found in others if found is not None]
        return [int(bool(own)), len(own), sum(own), len(judged), sum(judged)]
