"""The texts of two runs, encoded through the pool: BERTScore and card similarity of both, against the first run's own.

What the runs' evaluations have encoded is read; the rest is encoded once, and kept with the first run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from polypersona.evaluation.card_pairs import CardPairs
from polypersona.evaluation.pairs import PairSource, Placed
from polypersona.evaluation.pool import score_pairs
from polypersona.evaluation.reference_pairs import ReferencePairs
from polypersona.metrics.bertscore import encoder_of, with_values
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.text_pairs import Comparison, PairValues
from polypersona.scheduling.machines import Inventory
from polypersona.scoring import Settings
from polypersona.storage import RunDirectory


@dataclass(frozen=True)
class Side:
    """One of the two runs: its directory, all its files of responses, and those of committed shards."""

    directory: RunDirectory
    files: Sequence[str]
    committed: Sequence[str]


@dataclass(frozen=True)
class SharedPairs:
    """The pairs of a source in the rows of some personas and items: those that the first run knows."""

    source: PairSource
    personas: frozenset[str]
    items: frozenset[str]

    @property
    def columns(self) -> Sequence[str]:
        return self.source.columns

    @property
    def num_ranks(self) -> int:
        return self.source.num_ranks

    def place(self, tables: Iterable[pa.Table]) -> Iterator[Placed]:
        wanted = [(name, pa.array(sorted(ids), pa.string())) for name, ids in
                  (("persona_id", self.personas), ("item_id", self.items))]  # fmt: skip
        for table in tables:
            for name, ids in wanted:
                table = table.filter(pc.is_in(table[name].cast(pa.string()), ids))
            yield from self.source.place([table])


def encode_both(
    sides: Sequence[Side],
    settings: Settings,
    people: PersonaMetrics,
    personas: frozenset[str],
    num_rows: int,
    inventory: Inventory,
) -> tuple[Settings, PersonaMetrics]:
    """Return settings and metrics with the values of all pairs of both runs, where an encoder is wanted.

    Args:
        sides: the runs, the first with the references and cards.
        settings: of the first run, with all its items.
        people: the first run's metrics of whole personas.
        personas: the first run's.
        num_rows: about how many rows a run has.
        inventory: what there is. Ray has been started.
    """
    items = frozenset(settings.items)

    def encode(source: PairSource, comparison: Comparison, files: Sequence[Sequence[str]]) -> PairValues:
        shared, keeper = SharedPairs(source, personas, items), sides[0].directory
        return PairValues.union(
            [
                score_pairs(side.directory, shared, comparison, own, num_rows, inventory, keeper)[0]
                for side, own in zip(sides, files, strict=True)
            ]
        )

    encoder, similarity = encoder_of(settings.metrics), people.similarity
    if encoder is not None and settings.references is not None:
        known = encode(ReferencePairs(settings), encoder, [side.files for side in sides])
        settings = replace(settings, metrics=with_values(settings.metrics, known))
    if similarity is not None:
        cards = CardPairs(similarity, people.seed)
        people = people.with_values(encode(cards, similarity.comparison, [side.committed for side in sides]))
    return settings, people
