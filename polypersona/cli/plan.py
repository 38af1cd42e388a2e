"""What `plan` prints: the work of a recipe, the plan for it, and the reasons."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from polypersona.engines.settings import base_bytes, refuse_unsupported
from polypersona.ledger import Box, Ledger
from polypersona.population import load_population
from polypersona.recipe import Recipe
from polypersona.scheduling.inventory import load_inventory, read_inventory
from polypersona.scheduling.policy import GIB, Inventory, Plan, build_plan, limit_inventory
from polypersona.storage import RunDirectory


def make_plan(recipe: Recipe, inventory_path: Path | None = None) -> tuple[Plan, dict[str, Any]]:
    """Return the plan and the work it is for; starts nothing.

    Raises:
        InfeasiblePlanError: nothing fits the inventory.
    """
    refuse_unsupported(recipe)
    limits = recipe.cluster.limits
    inventory = limit_inventory(load_inventory(inventory_path), limits) if inventory_path else read_inventory(limits)
    work = measure_work(recipe)
    return build_plan(recipe, inventory, work.get("shards"), base_bytes(recipe)), work


def measure_work(recipe: Recipe) -> dict[str, Any]:
    """Return how much there is to answer; only that it is not known where the test split is not there yet."""
    run = RunDirectory.at(recipe.location)
    if recipe.generate.on == "test" and not run.exists("dataset/test.jsonl"):
        return {"on": "test"}
    population, generate = load_population(recipe, run), recipe.generate
    box = Box(len(population.personas), population.item_keys, generate.waves, generate.draws)
    ledger = Ledger(generate.shard_personas).extend(box, asked=population.asked)
    return {
        "on": generate.on,
        "personas": box.personas,
        "items": len(box.items),
        "waves": box.waves,
        "draws": box.draws,
        "cells": ledger.num_cells,
        "shards": ledger.num_shards,
    }


def render_plan(plan: Plan, work: dict[str, Any]) -> str:
    """Return the plan as a table for a terminal or a log."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Plan", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "value", "why"):
        table.add_column(column, overflow="fold")
    for row in _rows(plan, work):
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=110, highlight=False)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _rows(plan: Plan, work: dict[str, Any]) -> list[tuple[str, str, str]]:
    train, generate = plan.train, plan.generate
    return [
        ("inventory", _describe(plan.inventory), plan.inventory.source),
        ("cells to answer", *_describe_work(work)),
        ("training workers", str(train.workers.value), train.workers.reason),
        (
            "global batch",
            f"{train.workers.value} × {train.batch_size} × {train.accumulation}",
            "workers × batch × accumulation; the recipe's, whatever the workers",
        ),
        ("actors", str(generate.actors.value), generate.actors.reason),
        ("precision", generate.dtype.value, generate.dtype.reason),
        ("quantization", generate.quantization.value, generate.quantization.reason),
        ("slots", str(generate.slots.value), generate.slots.reason),
        ("key-value cache", _in_gib(generate.cache_bytes.value), generate.cache_bytes.reason),
        ("threads an actor", str(generate.threads.value), generate.threads.reason),
    ]


def _in_gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size else "–"


def _describe(inventory: Inventory) -> str:
    parts = [f"{inventory.cpus:g} CPUs", f"{sum(node.memory_bytes for node in inventory.nodes) / GIB:.0f} GiB"]
    names = [gpu.name for gpu in inventory.gpus]
    return ", ".join(parts + [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)])


def _describe_work(work: dict[str, Any]) -> tuple[str, str]:
    if "cells" not in work:
        return "not known yet", "the test split, which the dataset stage makes"
    repeats = "".join(f" × {work[name]} {name}" for name in ("waves", "draws") if work[name] > 1)
    what = f"{work['personas']:,} personas × {work['items']:,} items{repeats}"
    return f"{work['cells']:,}", f"{what}, in {work['shards']:,} shards" if work["on"] == "panel" else "the test split"
