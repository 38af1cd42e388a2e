"""Runs to score: shards written by hand, with answers of a known quality."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polypersona.content import content_parts, extend_ledger
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.rules import RulesEngine
from polypersona.engines.settings import Weights
from polypersona.ledger import Ledger
from polypersona.panel.sources import load_panel
from polypersona.population import item_hashes, load_population
from polypersona.questionbank import load_instrument
from polypersona.recipe import Recipe, build_recipe
from polypersona.records import Assignment, Item, Persona
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory, update_run

Row = dict[str, Any]
Answers = Callable[[Persona, Sequence[Item]], list[Row]]


def scored_recipe(out: Path, name: str = "scored", **evaluate: Any) -> Recipe:
    return build_recipe(
        {
            "name": name,
            "out": str(out),
            "panel": {"source": "sampled", "size": 60},
            "instrument": {"bank": "questionbank", "domains": ["finance", "technology"], "max_items": 8},
            "generate": {"on": "panel", "engine": "rules"},
            "evaluate": {"bootstrap": 200, **evaluate},
        }
    )


def people_and_items(recipe: Recipe) -> tuple[list[Persona], list[Item]]:
    return list(load_panel(recipe.panel, recipe.seed).personas), list(load_instrument(recipe.instrument).items)


def taught(seed: int) -> Answers:
    """The rules teacher's own answers under a seed."""
    engine = RulesEngine(EngineSettings("rules", seed))

    def answer(persona: Persona, items: Sequence[Item]) -> list[Row]:
        assignments = [Assignment(persona.persona_id, item.item_id) for item in items]
        cells = tuple(Cell(a.assignment_id, item, a.seed(seed)) for a, item in zip(assignments, items, strict=True))
        return [
            {"text": given.text, "code": given.code, "label": given.label, "disposition": given.disposition}
            for given in engine.answer([Group(persona, cells)])
        ]

    return answer


def persona_blind(recipe: Recipe) -> Answers:
    """Answers of a teacher that was shown somebody else's card: right marginals, nothing of the persona."""
    people, _ = people_and_items(recipe)
    inner = taught(recipe.seed)
    others = dict(zip((p.persona_id for p in people), random.Random(5).sample(people, len(people)), strict=True))
    return lambda persona, items: inner(others[persona.persona_id], items)


def rows_of(recipe: Recipe, answers: Answers) -> list[Row]:
    people, items = people_and_items(recipe)
    return [
        row(persona, item, **given)
        for persona in people
        for item, given in zip(items, answers(persona, items), strict=True)
    ]


def row(persona: Persona, item: Item, **given: Any) -> Row:
    assignment = Assignment(persona.persona_id, item.item_id)
    blank: Row = {
        "assignment_id": assignment.assignment_id, "persona_id": persona.persona_id, "item_id": item.item_id,
        "variant": "", "domain": item.domain, "response_type": item.response_type, "wave": 1, "draw": 1, "weight": 1.0,
        "text": "", "rationale": "", "code": None, "codes": None, "value": None, "label": "", "option_probs": None,
        "options_as_shown": None, "disposition": "complete", "error": "", "attempts": 1, "prompt_tokens": 0,
        "reused_prompt_tokens": 0, "new_tokens": 0, "adapter": "", "seed": 1, "shard": 0,
    }  # fmt: skip
    return blank | given


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=RESPONSE_SCHEMA)


def write_shards(recipe: Recipe, rows: Sequence[Row], num_shards: int, folder: str = "responses") -> RunDirectory:
    """Write the rows as shards of whole personas, `num_shards` of them or a few less, and the run's record."""
    directory = RunDirectory.at(recipe.location)
    population = load_population(recipe, directory)
    frozen = {"shard_personas": recipe.generate.shard_personas}
    people = list(dict.fromkeys(row["persona_id"] for row in rows))
    size = -(-len(people) // num_shards)
    shards = [frozenset(people[start : start + size]) for start in range(0, len(people), size)]
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": "f00d",
        "content": {
            "parts": content_parts(recipe, frozen, Weights(), population),
            "items": item_hashes(population),
        },
        "ledger": extend_ledger(Ledger(size), recipe, population).as_json(),
    }
    if folder == "responses":
        update_run(directory, record)
    for number, members in enumerate(shards):
        sink = io.BytesIO()
        pq.write_table(table([row for row in rows if row["persona_id"] in members]), sink)
        directory.write(f"{folder}/shard-{number:05d}-f00d.parquet", sink.getvalue())
    return directory
