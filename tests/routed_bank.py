"""A small bank with routing: follow-ups that stand before their gate in the file's order, and a chain of two gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

YES = {"item": "pets.yesno.01", "codes": [2]}


def row(kind: str, number: int, stem: str, **more: Any) -> dict[str, Any]:
    made = {"id": f"pets.{kind}.{number:02d}", "stem": stem, "scale": "ordered", "reverse": False}
    made |= {"construct": "perceived_usefulness", "source": "our own"}
    options = {"yesno": ["No", "Yes"], "likert": ["Disagree", "Neutral", "Agree"], "open": None}[kind]
    return {**made, **({"options": options} if options else {}), **more}


def routed_items() -> dict[str, list[dict[str, Any]]]:
    return {
        "yesno": [row("yesno", 1, "Do you have a pet?"), row("yesno", 2, "Would you like one?")],
        "likert": [row("likert", 1, "My pet helps me.", asked_if=YES), row("likert", 2, "Animals matter.")],
        "open": [
            row("open", 1, "Why does it help?", asked_if=[YES, {"item": "pets.likert.01", "codes": [3]}]),
            row("open", 2, "What of animals?"),
        ],
    }


def write_bank(folder: Path, items: dict[str, list[dict[str, Any]]] | None = None, name: str = "pets") -> str:
    data = {"domain": name, "title": "Pets", "version": "1", "items": routed_items() if items is None else items}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return str(file)
