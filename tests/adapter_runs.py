"""Runs with several adapters at toy size: a dataset of two domains, and recipes for adapters of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polypersona.engines.base import Answer
from polypersona.examples import build_example, render_examples
from polypersona.recipe import Recipe, build_recipe
from polypersona.records import Item, Persona
from polypersona.storage import RunDirectory

ITEMS = (
    Item("healthcare.likert.01", "healthcare", "How satisfied are you?", "likert", ("Disagree", "Satisfied")),
    Item("finance.likert.01", "finance", "How safe is your money?", "likert", ("Unsafe", "Safe")),
)
DOMAINS = tuple(item.domain for item in ITEMS)
NUM_TRAIN, NUM_REST = 32, 8  # of each domain
SETTINGS = {
    "epochs": 2, "learning_rate": 5e-3, "rank": 4, "alpha": 8, "batch_size": 4, "accumulation": 2, "max_length": 256,
}  # fmt: skip


def write_dataset(run: RunDirectory) -> None:
    """Write train, validation and test rows, half of each domain; half of the personas of each are 18-29."""
    splits: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for item in ITEMS:
        for number in range(NUM_TRAIN + 2 * NUM_REST):
            persona = Persona(
                f"p{number}", {"age": 20 + 20 * (number % 2), "gender": "female" if number % 3 else "male"}
            )
            label = item.options[number % 2]
            answer = Answer("", f"{label}. I am {20 + number}.", "complete", label=label)
            split = "train" if number < NUM_TRAIN else "validation" if number < NUM_TRAIN + NUM_REST else "test"
            splits[split].append(build_example(persona, item, answer, "labels"))
    for split, rows in splits.items():
        run.write(f"dataset/{split}.jsonl", render_examples(rows))


def adapters_recipe(out: Path, base: Path | str, finetune: dict[str, Any], **sections: Any) -> Recipe:
    """Return a recipe for several adapters of a toy base; it answers the test split greedily."""
    generate = {"on": "test", "temperature": 0, "max_new_tokens": 8, "slots": 8, "shard_personas": 4, "actors": 1}
    return build_recipe(
        {
            "name": "several",
            "out": str(out),
            "panel": {"size": 10},
            "model": {"base": str(base), "dtype": "fp32", "quantization": "none"},
            "finetune": {**SETTINGS, "workers": 1, **finetune},
            "generate": {**generate, **sections.pop("generate", {})},
            **sections,
        }
    )
