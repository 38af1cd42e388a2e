"""`polypersona bias`: what wording, order of options and scale do to the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from polypersona.bias.battery import DEFAULT_SAMPLE, SCORES
from polypersona.bias.battery import run as run_battery
from polypersona.cli.options import json_option, recipe_options
from polypersona.cli.tables import render_table
from polypersona.lease import hold
from polypersona.recipe import load_recipe
from polypersona.storage import RunDirectory


@click.command("bias")
@recipe_options
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    default=DEFAULT_SAMPLE,
    show_default=True,
    help="How many personas are asked.",
)
@click.option("--against", metavar="RUN", help="Another run with a battery: print the drift between the two.")
@json_option
def bias_command(recipe_path: str, overrides: tuple[str, ...], sample: int, against: str | None, as_json: bool) -> None:
    """Ask changed forms of a run's items, and measure what they change.

    A negation of each statement, the options in reverse, a scale without its middle, an offered "Don't know", forbid
    for allow, and two misspelt forms that should change nothing. The forms lie in RUN/bias and are answered once;
    habits of answering, such as straight-lining, come from the run's own responses.

    \b
    Example: polypersona bias jobs/demo.yaml --sample 200
    """
    recipe = load_recipe(recipe_path, overrides)
    directory = RunDirectory.at(recipe.location)
    directory.refuse_unusable()
    other = None if against is None else RunDirectory.at(against)
    with hold(directory):
        result = run_battery(recipe, sample, other)
    if as_json:
        click.echo(json.dumps(_plain(result), indent=2, ensure_ascii=False))
        return
    click.echo(f"{result['run']} (synthetic): {result['sample']:,} personas")
    click.echo(render_table(_effect_table(result)), nl=False)
    if result["habits"]:
        click.echo(render_table(_habit_table(result)), nl=False)
    if result["drift"]:
        click.echo(render_table(_drift_table(result)), nl=False)
    click.echo(result["caption"])
    click.echo(directory.path(SCORES))


def _effect_table(result: Mapping[str, Any]) -> Table:
    table = _table(
        "Effects", ("effect", "reads", "score", "95 % interval", "d", "items apart from 0", "pairs", "personas")
    )
    for row in result["effects"]:
        apart = "" if row["is_level"] or not row["n"] else f"{row['items_apart']} of {row['items']}"
        table.add_row(
            Text(row["label"]), Text(row["reading"]), _signed(row["score"]), _range(row), _signed(row["d"]), apart,
            f"{row['n']:,}", f"{row['personas']:,}",
        )  # fmt: skip
    return table


def _habit_table(result: Mapping[str, Any]) -> Table:
    table = _table("Habits of answering", ("habit", "share of", "score", "95 % interval", "floor", "n", "personas"))
    for row in result["habits"]:
        table.add_row(
            Text(row["label"]), Text(row["of"]), _number(row["score"]), _range(row), _number(row["floor"]),
            f"{row['n']:,}", f"{row['personas']:,}",
        )  # fmt: skip
    return table


def _drift_table(result: Mapping[str, Any]) -> Table:
    table = _table(
        f"Drift: this run minus {result['against']}", ("measure", "here", "there", "change", "95 % interval")
    )
    for row in result["drift"]:
        table.add_row(
            Text(row["label"]), _signed(row["score"]), _signed(row["other"]), _signed(row["change"]), _range(row)
        )
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    words = {"effect", "reads", "habit", "share of", "measure"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return table


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and _is_known(value) else "n/a"


def _signed(value: float | None) -> str:
    # What rounds to nothing has no sign.
    return f"{value + 0.0:+.3f}".replace("-0.000", "+0.000") if value is not None and _is_known(value) else "n/a"


def _range(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    return f"[{_number(low)}, {_number(high)}]" if _is_known(low) and _is_known(high) else "n/a"


def _plain(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content
