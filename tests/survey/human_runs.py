"""Human data, codebooks and runs made up for tests: what `compare` reads, without a model and without Ray."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from polypersona.ledger import Box, Ledger, item_key, shard_name
from polypersona.population import item_hashes, load_population, panel_digests
from polypersona.recipe import build_recipe
from polypersona.records import Assignment, Item, Persona
from polypersona.shardfile import Footer, render_shard
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory, update_run

FINGERPRINT = "f00df00df00df00d"
# (persona id, item id, wave, draw) → code, or (code, option probabilities); None is a refusal.
Answer = int | tuple[int, Sequence[float]] | None


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def write_panel(path: Path, personas: Sequence[Persona]) -> Path:
    lines = [
        {"persona_id": one.persona_id, "attributes": dict(one.attributes), "text": "", "weight": one.weight}
        for one in personas
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_run(
    folder: Path,
    codebook: Path,
    personas: Sequence[Persona],
    items: Sequence[Item],
    answers: Mapping[tuple[str, str, int, int], Answer],
    *,
    shard_personas: int = 64,
    waves: int = 1,
    draws: int = 1,
    sections: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """Write run.json, the panel and the shards of a finished run; `sections` are further ones of its recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    panel = write_panel(folder / "panel.jsonl", personas)
    recipe = build_recipe(
        {"name": "run", "out": str(folder), "panel": {"source": str(panel)}, "instrument": {"bank": str(codebook)},
         **(sections or {})}
    )  # fmt: skip
    run = RunDirectory.at(folder / "run")
    keys = tuple(item_key(item.item_id) for item in items)
    population = load_population(recipe, run)
    digest = panel_digests(population.personas, [len(personas)])[len(personas)]
    ledger = Ledger(shard_personas).extend(Box(len(personas), keys, waves, draws), digest)
    for number in range(ledger.num_shards):
        shard = ledger.shard(number)
        rows = [
            _row(persona, item, wave, draw, answers[persona.persona_id, item.item_id, wave, draw], number)
            for persona in personas[shard.begin : shard.end]
            for wave in range(1, waves + 1)
            for draw in range(1, draws + 1)
            for item in items
            if (persona.persona_id, item.item_id, wave, draw) in answers
        ]
        table = pa.Table.from_pylist(rows, schema=RESPONSE_SCHEMA)
        footer = Footer(FINGERPRINT, number, len(rows), len(rows), 0)
        run.write(f"responses/{shard_name(number, FINGERPRINT)}", render_shard(table, footer))
    content = {"parts": {}, "items": item_hashes(population)}
    stored = {"fingerprint": FINGERPRINT, "recipe": recipe.model_dump(mode="json"), "ledger": ledger.as_json()}
    update_run(run, {**stored, "content": content})
    return run


def _row(persona: Persona, item: Item, wave: int, draw: int, answer: Answer, shard: int) -> dict[str, Any]:
    code, probabilities = answer if isinstance(answer, tuple) else (answer, None)
    assignment = Assignment(persona.persona_id, item.item_id, "", wave, draw)
    label = "" if code is None else item.options[item.codes.index(code)]
    return {
        "assignment_id": assignment.assignment_id, "persona_id": persona.persona_id, "item_id": item.item_id,
        "variant": "", "domain": item.domain, "response_type": item.response_type, "wave": wave, "draw": draw,
        "weight": persona.weight, "text": label, "rationale": "", "code": code, "codes": None, "value": None,
        "label": label, "option_probs": None if probabilities is None else list(probabilities),
        "options_as_shown": None, "disposition": "refusal" if code is None else "complete", "error": "",
        "attempts": 1, "prompt_tokens": 1, "reused_prompt_tokens": 0, "new_tokens": 1, "adapter": "", "seed": 1,
        "shard": shard,
    }  # fmt: skip
