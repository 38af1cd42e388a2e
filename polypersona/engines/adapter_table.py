"""Several adapters, and which of them answers a cell: by its domain and the persona's attributes. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polypersona.records import Persona
from polypersona.scopes import EVERYTHING, Scope

# What the responses' column `adapter` says of the base model alone.
NO_ADAPTER = "none"


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One of a run's adapters, or the base model alone under the name `none`.

    Attributes:
        name: what the responses say.
        scope: the personas it is for; its domains are the table's business.
        folder: the folder inside the run directory, empty for the base model alone.
        adapter_hash: of its files; empty where it is not trained yet, and for the base model alone.
        model: the folder or hub id of its base.
        model_hash: what identifies that.
        revision: of a hub id.
        model_bytes: the size of the base's weights, None where that is not known.
        eval_loss: its loss on its validation rows, None where that is not known.
        validation: what identifies those rows.
    """

    name: str
    scope: Scope = EVERYTHING
    folder: str = ""
    adapter_hash: str = ""
    model: str = ""
    model_hash: str = ""
    revision: str | None = None
    model_bytes: int | None = None
    eval_loss: float | None = None
    validation: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether its weights are there."""
        return not self.folder or bool(self.adapter_hash)


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """Which entries answer which domain. For a persona and a domain exactly one entry is in scope, or the base answers.

    Attributes:
        entries: those that answer something, by name.
        by_domain: the names for each domain.
        base: the entry of the base model alone, where it answers what no adapter is for.
    """

    entries: Mapping[str, AdapterEntry]
    by_domain: Mapping[str, tuple[str, ...]]
    base: AdapterEntry | None = None

    @property
    def answering(self) -> dict[str, AdapterEntry]:
        """All entries that may answer, the base model alone last."""
        return {**self.entries, **({NO_ADAPTER: self.base} if self.base is not None else {})}

    def names_for(self, persona: Persona, domain: str) -> list[str]:
        """Return the names of all adapters in scope; a table in use has at most one."""
        return [name for name in self.by_domain[domain] if self.entries[name].scope.has_persona(persona.attributes)]

    def name_for(self, persona: Persona, domain: str) -> str:
        """Return who answers a cell: an adapter's name, or `none` for the base model alone."""
        names = self.by_domain[domain]
        if len(names) == 1 and not self.entries[names[0]].scope.personas:
            return names[0]
        return next(iter(self.names_for(persona, domain)), NO_ADAPTER)

    def describe(self, domain: str) -> str:
        """Return what answers a domain: names with hashes, and the personas each is for. Equal text, equal answers."""
        told = []
        for name in self.by_domain[domain]:
            entry = self.entries[name]
            people = f" for {entry.scope.people_text}" if entry.scope.personas else ""
            told.append(f"{name} {entry.adapter_hash} on {entry.model_hash}{people}")
        if self.base is not None:
            told.append(f"else {NO_ADAPTER}")
        return "; ".join(told)
