"""How long `polypersona compare` takes for ten million closed answers, and how much memory: builds shards, measures.

Run: python tests/benchmarks/distribution.py SCRATCH_FOLDER
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from polypersona.ledger import Box, Ledger, shard_name
from polypersona.population import item_hashes, load_population, panel_digests
from polypersona.recipe import build_recipe
from polypersona.shardfile import Footer, render_shard
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory, update_run

ROWS = 10_000_000
NUM_ITEMS, NUM_OPTIONS, NUM_HUMANS, SHARD_PERSONAS = 80, 5, 5000, 256
GROUPS = {"region": ["north", "south", "east", "west"], "gender": ["female", "male"], "degree": ["yes", "no"]}
FINGERPRINT = "be4c4be4c4be4c40"
_LABELS = ["Strongly disagree", "Disagree", "Neither", "Agree", "Strongly agree"]
_MEASURE = """
import json, sys, time
from polypersona.compare import run
from polypersona.storage import RunDirectory
begin = time.perf_counter()
result = run(RunDirectory.at(sys.argv[1]), sys.argv[2], sys.argv[3])
seconds = time.perf_counter() - begin
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
scored = sum(1 for row in result["tables"]["scores"] if row["n"] and row["low"] == row["low"])
print(json.dumps({"s": seconds, "mb": peak_kb / 2**10, "rows": result["num_rows"], "intervals": scored}))
"""


def distribution_10m(scratch: Path, rows: int = ROWS) -> dict[str, float]:
    """Build a run of so many answers in a scratch folder, compare it with 5,000 people in a process of its own.

    The answers have option probabilities; 80 items of five options, three demographics. Returns seconds of the whole
    stage (panel and human data read, shards summed, every score with its interval written), the process's peak memory,
    answers, scores that have an interval, and answers a second.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    personas = max(SHARD_PERSONAS, rows // NUM_ITEMS)
    codebook, human, run = build(scratch, personas)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, run.location, str(human), str(codebook)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "distribution_10m_s": found["s"],
        "distribution_10m_peak_mb": found["mb"],
        "distribution_10m_answers": found["rows"],
        "distribution_10m_intervals": found["intervals"],
        "distribution_10m_answers_per_s": found["rows"] / found["s"],
    }


def build(scratch: Path, num_personas: int) -> tuple[Path, Path, RunDirectory]:
    """Write codebook, human data, panel and all shards; return codebook, data and run."""
    generator = np.random.default_rng(7)
    ids = [f"Q{place:03d}" for place in range(NUM_ITEMS)]
    codebook = scratch / "codebook.json"
    codebook.write_text(json.dumps(_codebook(ids)), encoding="utf-8")
    human = scratch / "human.csv"
    with human.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "weight", *GROUPS, *ids])
        codes = generator.integers(1, NUM_OPTIONS + 1, (NUM_HUMANS, NUM_ITEMS))
        for row in range(NUM_HUMANS):
            groups = [labels[int(generator.integers(len(labels)))] for labels in GROUPS.values()]
            writer.writerow([f"h{row}", round(float(generator.uniform(0.3, 3)), 4), *groups, *codes[row].tolist()])
    panel, weights = scratch / "panel.jsonl", generator.uniform(0.3, 3, num_personas).round(4)
    with panel.open("w", encoding="utf-8") as stream:
        for place in range(num_personas):
            attributes = {name: labels[place % len(labels)] for name, labels in GROUPS.items()}
            line = {"persona_id": f"p{place:06d}", "attributes": attributes, "text": "", "weight": weights[place]}
            stream.write(json.dumps(line) + "\n")
    return codebook, human, _write_run(scratch, codebook, panel, ids, weights, generator)


def _codebook(ids: list[str]) -> dict[str, object]:
    return {
        "title": "benchmark", "source": "made up", "respondent_id": "id", "weight": "weight",
        "demographics": {name: {"label": name, "values": labels} for name, labels in GROUPS.items()},
        "not_asked": "empty cell",
        "items": {
            item_id: {
                "stem": f"Statement number {place}.", "response_type": "agreement",
                "options": {str(code): label for code, label in enumerate(_LABELS, start=1)},
            }
            for place, item_id in enumerate(ids)
        },
    }  # fmt: skip


def _write_run(
    scratch: Path, codebook: Path, panel: Path, ids: list[str], weights: np.ndarray, generator: np.random.Generator
) -> RunDirectory:
    recipe = build_recipe(
        {"name": "run", "out": str(scratch), "panel": {"source": str(panel), "weight": "weight"},
         "instrument": {"bank": str(codebook)}}
    )  # fmt: skip
    run = RunDirectory.at(scratch / "run")
    population = load_population(recipe, run)
    digest = panel_digests(population.personas, [len(weights)])[len(weights)]
    ledger = Ledger(SHARD_PERSONAS).extend(Box(len(weights), tuple(ids)), digest)
    stored = {"fingerprint": FINGERPRINT, "recipe": recipe.model_dump(mode="json"), "ledger": ledger.as_json()}
    update_run(run, {**stored, "content": {"parts": {}, "items": item_hashes(population)}})
    for number in range(ledger.num_shards):
        shard = ledger.shard(number)
        table = _shard(shard.begin, shard.end, ids, weights, number, generator)
        footer = Footer(FINGERPRINT, number, table.num_rows, table.num_rows, 0)
        run.write(f"responses/{shard_name(number, FINGERPRINT)}", render_shard(table, footer))
    return run


def _shard(
    begin: int, end: int, ids: list[str], weights: np.ndarray, number: int, generator: np.random.Generator
) -> pa.Table:
    size = (end - begin) * len(ids)
    person = np.repeat(np.arange(end - begin), len(ids))
    item = np.tile(np.arange(len(ids)), end - begin)
    probabilities = generator.dirichlet(np.ones(NUM_OPTIONS), size).astype(np.float32)
    code = (probabilities.cumsum(axis=1) < generator.random((size, 1))).sum(axis=1).clip(max=NUM_OPTIONS - 1)
    labels = _repeated(code, _LABELS)
    flat = pa.array(probabilities.reshape(-1))
    offsets = pa.array(np.arange(0, (size + 1) * NUM_OPTIONS, NUM_OPTIONS, dtype=np.int32))
    constant = {
        "variant": "", "domain": "survey", "response_type": "agreement", "rationale": "", "disposition": "complete",
        "error": "", "adapter": "", "wave": 1, "draw": 1, "attempts": 1, "prompt_tokens": 180,
        "reused_prompt_tokens": 120, "new_tokens": 4, "seed": 7, "shard": number, "codes": None, "value": None,
        "options_as_shown": None,
    }  # fmt: skip
    given = {
        "assignment_id": pa.array([f"{begin:08x}{place:08x}" for place in range(size)]),
        "persona_id": _repeated(person, [f"p{place:06d}" for place in range(begin, end)]),
        "item_id": _repeated(item, ids),
        "weight": pa.array(weights[begin:end][person]),
        "text": labels.cast(pa.string()),
        "label": labels,
        "code": pa.array((code + 1).astype(np.int16)),
        "option_probs": pa.ListArray.from_arrays(offsets, flat),
    }
    columns = []
    for field in RESPONSE_SCHEMA:
        if field.name in given:
            columns.append(given[field.name].cast(field.type))
        elif pa.types.is_dictionary(field.type):
            columns.append(_repeated(np.zeros(size, np.int64), [str(constant[field.name])]))
        else:
            columns.append(pa.repeat(pa.scalar(constant[field.name], field.type), size))
    return pa.Table.from_arrays(columns, schema=RESPONSE_SCHEMA)


def _repeated(places: np.ndarray, values: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(values, pa.string()))


if __name__ == "__main__":
    started = time.perf_counter()
    figures = distribution_10m(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    print(f"built and measured in {time.perf_counter() - started:,.0f} s")
