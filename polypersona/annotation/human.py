"""Human answers to be rated among the synthetic ones: a JSON Lines file → entries.

A line is `{"answer": …, "item_id": … or "question": …, "persona_id": … or "persona": {…}}`: an item of the run or a
question in words, and a persona of the run or a card of its own (attributes, and free text as `text`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polypersona.annotation.sample import Entry, build_entry
from polypersona.errors import SurveyError, nearest
from polypersona.records import Item, Persona, digest


def load_human_answers(path: str, personas: Mapping[str, Persona], items: Mapping[str, Item]) -> list[Entry]:
    """Return the file's answers as entries.

    Args:
        path: of the file.
        personas: the run's, by id.
        items: the run's, by id.

    Raises:
        SurveyError: the file cannot be read or holds no answer; a line that cannot be taken is named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SurveyError(f"{path} cannot be read: {reason}.", "Name a JSON Lines file of human answers.") from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            entry = _entry(line, f"{path}, line {number}", personas, items)
            entries[entry.entry_id] = entry
    if not entries:
        raise SurveyError(f"{path} holds no human answer.", "Write one JSON object a line, with its `answer`.")
    return list(entries.values())


def _entry(line: str, where: str, personas: Mapping[str, Persona], items: Mapping[str, Item]) -> Entry:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SurveyError(f"{where}: this is no JSON ({error.msg}).", "Write one JSON object a line.") from error
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str) or not row["answer"].strip():
        raise SurveyError(f"{where}: there is no answer.", 'Give the text as "answer".')
    persona, item = _persona(row, where, personas), _item(row, where, items)
    cell = digest("human", persona.persona_id, item.item_id, row["answer"])
    return build_entry("human", cell, persona, item, row["answer"].strip(), persona.persona_id)


def _persona(row: Mapping[str, Any], where: str, personas: Mapping[str, Persona]) -> Persona:
    card = row.get("persona")
    if isinstance(card, dict) and card:
        text = str(card.get("text", ""))
        values = {
            str(name): tuple(map(str, value)) if isinstance(value, list) else value
            for name, value in card.items()
            if name != "text" and isinstance(value, str | int | float | bool | list)
        }
        name = str(row.get("persona_id") or digest("human", json.dumps(card, sort_keys=True)))
        return Persona(name, values, text)
    name = str(row.get("persona_id", ""))
    if name not in personas:
        said = f"the run has no persona {name!r}.{nearest(name, personas)}" if name else "there is no persona."
        raise SurveyError(f"{where}: {said}", 'Give a "persona_id" of the run, or the card as "persona": {…}.')
    return personas[name]


def _item(row: Mapping[str, Any], where: str, items: Mapping[str, Item]) -> Item:
    question = row.get("question")
    if isinstance(question, str) and question.strip():
        name = str(row.get("item_id") or digest("human", question))
        return Item(name, str(row.get("domain", "")), question.strip(), "open")
    name = str(row.get("item_id", ""))
    if name not in items:
        said = f"the run has no item {name!r}.{nearest(name, items)}" if name else "there is no question."
        raise SurveyError(f"{where}: {said}", 'Give an "item_id" of the run, or the wording as "question".')
    return items[name]
