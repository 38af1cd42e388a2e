"""Ids of personas whose source gives none: derived from the content, with an occurrence number for repeats.

Content is what the card shows, so a persona has the same id whatever its file's format and column order. Knows no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from polypersona.chatml import card_attributes, clean_text, render_value
from polypersona.records import Persona, digest


def content_digest(persona: Persona) -> str:
    """Return sixteen hex digits of the card's content: attributes and text, neither id nor weight."""
    pairs = [part for name, value in card_attributes(persona) for part in (name, render_value(value))]
    return digest(len(pairs), *pairs, clean_text(persona.text))


def identify(personas: Iterable[Persona]) -> Iterator[Persona]:
    """Yield the personas with ids from their content; the second of equals ends in `-2`, the third in `-3`.

    An id depends on the personas before it only, so a longer panel begins with the ids of a shorter one.
    """
    seen: Counter[str] = Counter()
    for persona in personas:
        content = content_digest(persona)
        seen[content] += 1
        yield replace(persona, persona_id=content if seen[content] == 1 else f"{content}-{seen[content]}")
