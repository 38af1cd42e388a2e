"""`polypersona difference`: two runs on the cells both answered."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from polypersona.cli.options import json_option
from polypersona.cli.tables import render_table
from polypersona.storage import RunDirectory


@click.command("difference")
@click.argument("run", metavar="RUN")
@click.argument("other", metavar="OTHER")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of RUN's recipe that makes no other responses, such as evaluate.bootstrap=200.",
)
@json_option
def difference_command(run: str, other: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compare two runs on the cells both answered: RUN's scores minus OTHER's, with paired intervals.

    Both are measured against RUN's references. The figures by domain, response type and item are in RUN's
    scores/against-<OTHER>.json.

    \b
    Example: polypersona difference runs/adapted runs/base
    """
    from polypersona.evaluation.paired import against_name, compare_runs

    first, second = RunDirectory.at(run), RunDirectory.at(other)
    content = compare_runs(first, second, overrides)
    if as_json:
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    names = (content["run"]["name"], content["against"]["name"])
    click.echo(
        f"{names[0]} minus {names[1]} (synthetic): {content['num_cells']:,} cells of {content['num_personas']:,} "
        f"personas and {content['num_items']:,} items"
    )
    click.echo(_render(content["overall"]), nl=False)
    click.echo(content["caption"])
    click.echo(first.path(f"scores/{against_name(second)}"))


def _render(rows: list[dict[str, Any]]) -> str:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("score", "this", "other", "difference", "95 % interval", "effect", "p", "n"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for row in rows:
        bounds = "n/a" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        table.add_row(
            Text(row["label"]), _number(row["score"]), _number(row["other"]), _number(row["difference"], "+"), bounds,
            _number(row["effect"], "+"), _number(row["p"]), f"{row['n']:,}",
        )  # fmt: skip
    return render_table(table)


def _number(value: float | None, sign: str = "") -> str:
    return "n/a" if value is None else f"{value:{sign}.3f}"
