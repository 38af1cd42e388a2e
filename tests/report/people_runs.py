"""A small run beside made-up people: one question collapses, one group has three people."""

from __future__ import annotations

import random
from pathlib import Path

from survey.human_runs import write_csv, write_json, write_run

from polypersona.compare import run as compare
from polypersona.storage import RunDirectory
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import load_codebook
from polypersona.survey.microdata import load_human
from polypersona.survey.personas import build_personas

SCALE = {str(code): label for code, label in enumerate(("never", "rarely", "sometimes", "often", "always"), start=1)}
BOOK = {
    "title": "Toy survey of people",
    "source": "made up for tests, CC0",
    "license": "CC0",
    "respondent_id": "id",
    "not_asked": "empty cell",
    "demographics": {"area": {"label": "Area", "values": ["city", "village", "island"]}},
    "items": {
        "q1": {"stem": "How often do you read?", "response_type": "likert", "options": SCALE},
        "q2": {"stem": "How often do you walk?", "response_type": "likert", "options": SCALE},
        "q3": {"stem": "Do you own a bicycle?", "response_type": "yesno", "options": {"1": "Yes", "2": "No"}},
    },
}


def compared_run(folder: Path) -> RunDirectory:
    """Return a run that `compare` has set beside 123 people; q1 is answered alike by all personas."""
    rng = random.Random(4)
    book = write_json(folder / "codebook.json", BOOK)
    areas = ["city"] * 70 + ["village"] * 50 + ["island"] * 3
    rows = [[f"h{place}", area, rng.randint(1, 5), rng.randint(1, 5), rng.randint(1, 2)]
            for place, area in enumerate(areas)]  # fmt: skip
    human = write_csv(folder / "human.csv", ["id", "area", "q1", "q2", "q3"], rows)
    people = build_personas(load_human(str(human), str(book)))
    items = codebook_items(load_codebook(book))
    answers = {
        (person.persona_id, item.item_id, 1, 1): 3 if item.item_id == "q1" else rng.choice(item.codes)
        for person in people
        for item in items
    }
    run = write_run(folder, book, people, items, answers)
    compare(run, str(human), str(book))
    return run
