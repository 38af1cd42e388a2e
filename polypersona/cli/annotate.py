"""`polypersona annotate`: people rate a blind sample of a run's answers on a local page."""

from __future__ import annotations

import getpass
import json
import math
import re
import webbrowser
from typing import Any

import click
from rich.table import Table

from polypersona.annotation.results import count_rated, load_annotations, score_ratings
from polypersona.annotation.server import AnnotationServer
from polypersona.annotation.session import open_session
from polypersona.cli.options import json_option
from polypersona.cli.tables import render_table
from polypersona.storage import RunDirectory

_LABELS = {
    "realism": "Realism, mean (1-5)",
    "consistency": "Persona consistency, mean (1-5)",
    "conditioning_gain_realism": "Realism: conditioning gain",
    "conditioning_gain_consistency": "Persona consistency: conditioning gain",
    "detection_rate": "Taken for synthetic",
    "false_alarm_rate": "Taken for synthetic",
    "discrimination": "Taken for synthetic: difference",
    "alpha_realism": "Agreement on realism (ordinal alpha)",
    "alpha_consistency": "Agreement on consistency (ordinal alpha)",
    "alpha_guess": "Agreement on the guess (nominal alpha)",
}
_SHARES = ("detection_rate", "false_alarm_rate", "discrimination")


@click.command("annotate")
@click.argument("run", metavar="RUN")
@click.option("--sample", "count", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N",
              help="How many answers to rate, of all kinds together.")  # fmt: skip
@click.option("--rater", metavar="NAME", help="Whose ratings these are; else your login name.")
@click.option("--human", metavar="FILE", help="Human answers to mix in: JSON Lines.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, metavar="N", help="The page's port; else a free one."
)
@click.option("--no-browser", is_flag=True, help="Print the address and open no browser.")
@click.option("--results", "shows_results", is_flag=True, help="Print what was found so far; rate nothing.")
@json_option
def annotate_command(
    run: str,
    count: int,
    rater: str | None,
    human: str | None,
    port: int,
    no_browser: bool,
    shows_results: bool,
    as_json: bool,
) -> None:
    """Rate a blind sample of a run's answers on a page that only this machine can open.

    Half of the answers stand beside the persona they were made for, half beside another one; with --human a third each,
    the last third by people. Raters score realism and persona consistency and guess who wrote it. All raters see the
    same sample; each rating is saved at once, and the same command goes on where it ended.

    A line of FILE: {"answer": "…", "item_id" or "question": "…", "persona_id": "…" or "persona": {…}}

    \b
    Example: polypersona annotate runs/demo --sample 100 --rater anna
    """
    directory = RunDirectory.at(run)
    if shows_results:
        _show_results(directory, as_json)
        return
    if as_json:
        raise click.UsageError("--json goes with --results.")
    session = open_session(directory, count, rater or _login_name(), human)
    if len(session.entries) < count:
        click.echo(f"note: the sample has {len(session.entries):,} answers; the run gives no more.", err=True)
    server = AnnotationServer(session, port)
    click.echo(f"{session.rater} has rated {session.num_rated:,} of {len(session.entries):,} answers.")
    click.echo(f"Rate them at {server.url} (Ctrl-C ends; every rating is saved at once)")
    if not no_browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo()
    finally:
        server.server_close()
    click.echo(f"{session.num_rated:,} of {len(session.entries):,} answers are rated. Results: --results")


def _login_name() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = ""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40] or "rater"


def _show_results(directory: RunDirectory, as_json: bool) -> None:
    sample, raters = load_annotations(directory)
    rows = score_ratings(sample, raters)
    rated = count_rated(sample, raters)
    if as_json:
        content = {
            "run": directory.path(),
            "synthetic": True,
            "sample": len(sample.entries),
            "rated": rated,
            "scores": [
                {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
                for row in rows
            ],
        }
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in rated.items())
    click.echo(f"{directory.path()} (synthetic), {len(sample.entries):,} answers; rated by {counts}")
    for one in raters:
        if one.num_broken:
            click.echo(f"note: {one.num_broken} cut-off lines of {one.rater} are left out.")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(("measure", "answers", "value", "95 % interval", "n")):
        table.add_column(column, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    click.echo(render_table(table, 120), nl=False)
    click.echo("Intervals are clustered by persona and take the raters as given. Alpha counts entries that two rated.")
    if not any(row["kind"] == "human" for row in rows):
        click.echo("Without human answers (--human), the share taken for synthetic has nothing to stand beside.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = _number(row, "low"), _number(row, "high")
    interval = "n/a" if "n/a" in (low, high) else f"[{low}, {high}]"
    return _LABELS[row["name"]], row["kind"], _number(row, "value"), interval, f"{row['n']:,}"


def _number(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if math.isnan(value):
        return "n/a"
    return f"{value:.0%}" if row["name"] in _SHARES else f"{value:.2f}"
