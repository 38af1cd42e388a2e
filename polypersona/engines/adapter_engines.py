"""Several adapters behind one engine: each cell is answered by the engine of its own adapter.

Every adapter has an engine of its own, with its own merged copy of the base, so an answer is what that adapter alone
would give. How many engines are held at once decides the pace and nothing else: one too many is closed and loaded again
when it is needed. Knows no Ray, no shard and no file of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from polypersona.engines.adapter_table import AdapterEntry, AdapterTable
from polypersona.engines.base import Answer, Cell, Engine, EngineSettings, Group, Reproduces
from polypersona.engines.registry import load_engine


class AdapterEngines:
    """Answers each cell with the adapter that the table names.

    Args:
        settings: of all engines; each gets its own base and adapter.
        table: who answers what.
        most_held: how many engines may be in memory at once.
        locate: gives the local folder of an entry's adapter.
        load: builds an engine.
    """

    reproduces: Reproduces = "bytes"

    def __init__(
        self,
        settings: EngineSettings,
        table: AdapterTable,
        most_held: int,
        locate: Callable[[AdapterEntry], str],
        load: Callable[[EngineSettings], Engine] = load_engine,
    ) -> None:
        self.name = settings.engine
        self._settings = settings
        self._table = table
        self._most_held = max(1, most_held)
        self._locate = locate
        self._load = load
        self._held: dict[str, Engine] = {}

    @property
    def held(self) -> tuple[str, ...]:
        """The names of the adapters in memory, the one used last at the end."""
        return tuple(self._held)

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order.

        Raises:
            RuntimeError: an engine left a cell out.
        """
        asked: dict[str, list[Group]] = {}
        for group in groups:
            parts: dict[str, list[Cell]] = {}
            for cell in group.cells:
                parts.setdefault(self._table.name_for(group.persona, cell.item.domain), []).append(cell)
            for name, cells in parts.items():
                asked.setdefault(name, []).append(Group(group.persona, tuple(cells)))
        answers: dict[str, Answer] = {}
        for name in sorted(asked, key=lambda name: name not in self._held):  # first those that need no loading
            answers.update((answer.assignment_id, answer) for answer in self._engine(name).answer(asked[name]))
        ids = [cell.assignment_id for group in groups for cell in group.cells]
        if missing := [one for one in ids if one not in answers]:
            raise RuntimeError(f"{len(missing)} of {len(ids)} cells came back without an answer")
        return [answers[one] for one in ids]

    def close(self) -> None:
        """Free all weights."""
        while self._held:
            self._held.popitem()[1].close()

    def _engine(self, name: str) -> Engine:
        engine = self._held.pop(name, None)
        if engine is None:
            while len(self._held) >= self._most_held:
                self._held.pop(next(iter(self._held))).close()
            entry = self._table.answering[name]
            folder = self._locate(entry) if entry.folder else ""
            engine = self._load(replace(self._settings, model=entry.model, revision=entry.revision, adapter=folder))
        self._held[name] = engine
        return engine
