"""`polypersona bench`: a short calibration of this machine, which `plan` uses."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from polypersona.cli.options import recipe_options
from polypersona.recipe import load_recipe
from polypersona.storage import RunDirectory

MIB = 1 << 20


@click.command("bench")
@recipe_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Also write the figures.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="How long to measure.")
def bench_command(recipe_path: str, overrides: tuple[str, ...], json_path: Path | None, seconds: float) -> None:
    """Measure how fast this machine answers a recipe, and keep it for `plan`.

    As many actors as a run would have here answer a sample of the recipe's personas; no response is kept.

    \b
    Example: polypersona bench jobs/demo.yaml
    """
    recipe = load_recipe(recipe_path, overrides)
    result = importlib.import_module("polypersona.benchmark").run(
        recipe, seconds, announce=lambda text: click.echo(text, err=True)
    )
    for warning in result["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    if json_path is not None:
        RunDirectory.at(json_path.absolute().parent).write_json(json_path.name, {"synthetic": True, **result})
    click.echo(_render(result))


def _render(result: dict[str, Any]) -> str:
    """Return the figures as lines; what was not measured is n/a."""
    rows = [
        ("rows a second, one actor", _number(result["rows_per_s"])),
        ("rows a CPU-second", _number(result["rows_per_cpu_s"])),
        ("prompt tokens a second", _number(result["prompt_tokens_per_s"])),
        ("of them reused", _number(result["reused_share"], 100, " %")),
        ("new tokens a second", _number(result["new_tokens_per_s"])),
        ("start-up", _number(result["start_up_s"], unit=" s")),
        ("peak memory, one actor", _number(result["peak_rss_bytes"], 1 / MIB, " MiB")),
        ("peak memory on the GPU", _number(result["peak_device_bytes"], 1 / MIB, " MiB")),
    ]
    measured = f"{result['rows']:,} synthetic rows in {result['seconds'] / result['actors']:.1f} s"
    head = f"{result['hardware']}: {result['actors']} at once, {measured}"
    return "\n".join([head, *(f"{name:<28}{value}" for name, value in rows), f"kept in {result['file']}"])


def _number(value: float | None, factor: float = 1.0, unit: str = "") -> str:
    return "n/a" if value is None else f"{value * factor:,.1f}{unit}"
