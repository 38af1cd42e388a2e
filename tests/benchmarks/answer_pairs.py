"""Answers and references for the text metrics' benchmark, nearly all distinct: written to files, a shard each.

A text is two to six sentences that the rules teacher says about one item, with one in five a sentence as language
models write them: quotations, brackets, abbreviations, lists, emphasis. All synthetic.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.rules import RulesEngine
from polypersona.panel.sources import load_panel
from polypersona.questionbank import load_instrument
from polypersona.recipe import build_recipe
from polypersona.records import Assignment

SHARD_PAIRS = 10_000
NUM_TAUGHT = 120
MODEL_SHARE = 0.2

_OPENINGS = ("Honestly,", "On balance,", "As someone in my position,", "To be fair,", "Yes, well,", "I'd say", "No -")
_CLAIMS = (
    'I would call it "{a}," but not {b}.', "I tend to {c} ({a}, {b}), which isn't always easy.",
    "{b} matters, e.g. for {d}.", "I'd rate it a {n} on a scale of 1 to {m}.", "it's {a}... I can't {c}!",
    "Dr. Lee told me at {n} p.m. that {d} is {a}.", "it is a game-changer for {d}—{a} and {b}; I {c}.",
    "I love {d}, but I hate being {a}.", "'{a}' is VERY much what {d} felt like.", "it cost me ${n},{m}00 (or {m}%).",
)  # fmt: skip
_FILLS = {
    "a": ("worrying", "helpful", "pretty good", "terrible", "not so bad", "well-meant", "never fair", "a great joy"),
    "b": ("privacy", "my family", "tradition", "the cost", "trust", "freedom", "safety", "hard work"),
    "c": ("agree", "disagree", "complain", "save money", "help out", "worry", "keep quiet", "change my mind"),
    "d": ("work", "school", "the clinic", "my check-up", "the community", "retirement", "the internet", "voting"),
}


def write_pairs(folder: Path, num_pairs: int, seed: int = 7) -> list[Path]:
    """Write files of SHARD_PAIRS pairs (columns `text` and `reference`) and return their paths."""
    sentences = teacher_sentences()
    files = []
    for number in range(-(-num_pairs // SHARD_PAIRS)):
        rng = random.Random(f"{seed}-{number}")
        size = min(SHARD_PAIRS, num_pairs - number * SHARD_PAIRS)
        chosen = [rng.choice(sentences) for _ in range(size)]
        table = pa.table({name: [_text(rng, bank) for bank in chosen] for name in ("text", "reference")})
        files.append(folder / f"pairs-{number:04d}.parquet")
        pq.write_table(table, files[-1], compression="zstd")
    return files


def teacher_sentences() -> list[list[str]]:
    """Return what the rules teacher says about every open item, a sentence each."""
    recipe = build_recipe({"name": "pairs", "panel": {"size": NUM_TAUGHT}})
    engine = RulesEngine(EngineSettings("rules", recipe.seed))
    items = [item for item in load_instrument(recipe.instrument).items if not item.is_closed]
    said: dict[str, set[str]] = {item.item_id: set() for item in items}
    for persona in load_panel(recipe.panel, recipe.seed).personas:
        assignments = [Assignment(persona.persona_id, item.item_id) for item in items]
        cells = tuple(
            Cell(one.assignment_id, item, one.seed(recipe.seed)) for one, item in zip(assignments, items, strict=True)
        )
        for item, answer in zip(items, engine.answer([Group(persona, cells)]), strict=True):
            said[item.item_id].update(f"{sentence}." for sentence in answer.text.rstrip(".").split(". "))
    return [sorted(bank) for bank in said.values()]


def _text(rng: random.Random, bank: list[str]) -> str:
    chosen = rng.sample(bank, rng.randint(2, 6))
    if rng.random() < MODEL_SHARE:
        fills = {name: rng.choice(values) for name, values in _FILLS.items()}
        claim = rng.choice(_CLAIMS).format(n=rng.randint(1, 9), m=rng.randint(5, 10), **fills)
        chosen[rng.randrange(len(chosen))] = f"{rng.choice(_OPENINGS)} {claim}"
    return " ".join(chosen)
