"""A small run that raters can rate, and made-up raters of it."""

from __future__ import annotations

import json

from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.annotation.session import open_session
from polypersona.storage import RunDirectory

PEOPLE = 30


def annotated_run(folder, **options) -> RunDirectory:
    recipe = toy_recipe(folder)
    return write_run(recipe, toy_personas(PEOPLE), toy_items(1), per_persona=8, **options)


def write_humans(folder, count: int = 20) -> str:
    path = folder / "human.jsonl"
    item = toy_items(1)[0].item_id
    rows = [
        {
            "answer": f"Honestly, number {index} of us never thought about it.",
            "item_id": item,
            "persona_id": f"p{index:04d}",
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rate_all(run, count, rater, judge, human=None):
    session = open_session(run, count, rater, human)
    for entry in session.entries:
        realism, consistency, guess = judge(entry)
        session.rate({"entry": entry.entry_id, "realism": realism, "consistency": consistency, "guess": guess})
    return session
