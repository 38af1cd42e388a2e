"""A small survey of made-up people with its codebook."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path


def write_toy(folder: Path, num: int = 60, seed: int = 0) -> tuple[Path, Path]:
    """Write a survey of made-up people, with refusals and cells that were not asked; return its file and codebook."""
    rng = random.Random(seed)
    with (folder / "toy.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "w", "age", "sex", "q1", "q2"])
        for number in range(num):
            trust = rng.choice([1, 2, 3, -1])
            row = [f"secret-{number}", rng.choice([0.5, 1.5]), rng.randint(18, 80), rng.choice("fm"), trust]
            writer.writerow([*row, rng.choice([1, 2]) if trust == 3 else ""])
    book = {
        "title": "Toy survey", "source": "made up", "license": "CC0-1.0", "respondent_id": "id", "weight": "w",
        "not_asked": "empty cell",
        "demographics": {
            "age": {"label": "Age", "type": "integer", "bands": [18, 40]},
            "sex": {"label": "Sex", "values": ["f", "m"]},
        },
        "items": {
            "q1": {
                "stem": "I trust people.", "response_type": "agreement", "missing": {"-1": "refused"},
                "options": {"1": "Agree", "2": "Neither", "3": "Disagree"},
            },
            "q2": {
                "stem": "Were you ever cheated?", "response_type": "yesno", "options": {"1": "Yes", "2": "No"},
                "asked_if": {"q1": [3]},
            },
        },
    }  # fmt: skip
    (folder / "toy.json").write_text(json.dumps(book), encoding="utf-8")
    return folder / "toy.csv", folder / "toy.json"
