"""What an adapter is for: some domains, and respondents with some attributes. Knows no recipe, no file, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polypersona.records import Example, Persona

# What an attribute may be: one of these texts, or a number from the first to the second.
Wanted = tuple[str, ...] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scope:
    """Domains and persona attributes; empty stands for all.

    A persona is in scope where every named attribute is one of its wanted values, or a number within the two bounds; a
    persona without the attribute is not. Of an attribute with several values one is enough.
    """

    domains: tuple[str, ...] = ()
    personas: Mapping[str, Wanted] = field(default_factory=dict)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.domains and not self.personas

    def has_domain(self, domain: str) -> bool:
        """Return whether the domain is in scope."""
        return not self.domains or domain in self.domains

    def has_persona(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether a persona with these attributes is in scope."""
        return all(_is_wanted(attributes.get(name), wanted) for name, wanted in self.personas.items())

    def has_example(self, example: Example) -> bool:
        """Return whether a training row is in scope."""
        stored = example.metadata
        return self.has_domain(str(stored["domain"])) and self.has_persona(stored["persona"].get("attributes", {}))

    def examples(self, rows: Iterable[Example]) -> list[Example]:
        """Return the rows in scope, in their order."""
        return [row for row in rows if self.has_example(row)]

    def people(self, personas: Iterable[Persona]) -> list[Persona]:
        """Return the personas in scope, in their order."""
        return [persona for persona in personas if self.has_persona(persona.attributes)]

    @property
    def text(self) -> str:
        """Say the scope in words, such as `healthcare, finance; age 18 to 29`."""
        return "; ".join(part for part in (", ".join(self.domains) or "all domains", self.people_text) if part)

    @property
    def people_text(self) -> str:
        """Say in words which personas are in scope; empty for all of them."""
        return "; ".join(f"{name} {_worded(wanted)}" for name, wanted in sorted(self.personas.items()))


EVERYTHING = Scope()


def _is_wanted(value: Any, wanted: Wanted) -> bool:
    if value is None:
        return False
    if isinstance(value, tuple | list):
        return any(_is_wanted(one, wanted) for one in value)
    if wanted and not isinstance(wanted[0], str):
        low, high = float(wanted[0]), float(wanted[1])
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return str(value) in wanted


def _worded(wanted: Wanted) -> str:
    if wanted and not isinstance(wanted[0], str):
        return f"{wanted[0]:g} to {wanted[1]:g}"
    return " or ".join(str(one) for one in wanted)
