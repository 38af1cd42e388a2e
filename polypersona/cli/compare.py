"""`polypersona compare`: a run beside human data."""

from __future__ import annotations

import json
import math
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from polypersona.cli.mitigation import mitigation_tables
from polypersona.cli.options import json_option
from polypersona.cli.tables import render_table
from polypersona.compare import Mitigation, write_csv
from polypersona.compare import run as compare
from polypersona.location import mask_secrets
from polypersona.storage import RunDirectory
from polypersona.survey.cells import ALL
from polypersona.survey.microdata import load_human
from polypersona.survey.personas import render_personas

SHOWN_ITEMS = 12
_SUMMARY = (
    "w1_alignment", "total_variation", "js_distance", "ks_similarity", "rank_correlation", "variance_ratio",
    "entropy_difference", "effective_human_n",
)  # fmt: skip


@click.command("compare")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--human", required=True, metavar="FILE", help="Coded human data: CSV, TSV, Parquet, .sav, .xlsx, JSON.")
@click.option("--codebook", required=True, metavar="FILE", help="What its columns mean: codebook.json.")
@click.option("--by", metavar="NAMES", help="Demographics, such as race,educ; else all that the personas have.")
@click.option("--mitigate", is_flag=True, help="Also the scores with mitigations switched on, before and after.")
@click.option(
    "--rectify", "sample", type=click.IntRange(min=2), metavar="N", help="Rectify means by the answers of N people."
)
@click.option(
    "--beside", multiple=True, metavar="RUN", help="A run generated with a mitigation of its own; may be repeated."
)
@click.option("--csv", "csv_folder", metavar="DIR", help="Also write every table as CSV into this folder.")
@click.option("--personas", "personas_file", metavar="FILE", help="Write the respondents as a panel (JSON Lines).")
@json_option
def compare_command(
    run: str | None,
    human: str,
    codebook: str,
    by: str | None,
    mitigate: bool,
    sample: int | None,
    beside: tuple[str, ...],
    csv_folder: str | None,
    personas_file: str | None,
    as_json: bool,
) -> None:
    """Compare a run's closed answers with those of people, by item and subgroup.

    Items meet by id: generate with `instrument: {bank: codebook.json}`. With --personas the respondents are written as
    a panel to generate on; without RUN that is all that happens.

    \b
    Example: polypersona compare runs/nonvoters --human nonvoters_data.csv --codebook codebook.json --by race,educ
    """
    if run is None and personas_file is None:
        raise click.UsageError("Name the RUN to compare, or a file for --personas.")
    if personas_file is not None:
        survey = load_human(human, codebook)
        folder, _, name = personas_file.rpartition("/")
        RunDirectory.at(folder or ".").write(name, render_personas(survey))
        click.echo(f"{survey.num_respondents:,} personas in {mask_secrets(personas_file)}", err=as_json)
    if run is None:
        return
    names = None if by is None else [name.strip() for name in by.split(",") if name.strip()]
    mitigation = Mitigation(sample or 0, tuple(RunDirectory.at(other) for other in beside))
    is_wanted = mitigate or mitigation != Mitigation()
    result = compare(RunDirectory.at(run), human, codebook, names, mitigation if is_wanted else None)
    tables = result.pop("tables")
    if csv_folder is not None:
        write_csv(csv_folder, tables, attribution(result))
    if as_json:
        click.echo(json.dumps(_plain(result), indent=2, ensure_ascii=False))
        return
    for line in _head(result):
        click.echo(line)
    shown = (_summary_table(result), _group_table(result), _item_table(result), _individual_table(result))
    for table in (*shown, *mitigation_tables(result, tables)):
        if table is not None:
            click.echo(render_table(table), nl=False)
    for line in _tail(result):
        click.echo(line)


def attribution(result: dict[str, Any]) -> str:
    """Return whose the human data are, and under what licence."""
    human = result["human"]
    terms = f" Licence: {human['license']}." if human["license"] else ""
    return f"Human data: {human['title'] or human['file']}. Source: {human['source']}{terms}"


def _head(result: dict[str, Any]) -> list[str]:
    human = result["human"]
    return [
        f"{result['run']} (synthetic) beside {human['respondents']:,} people, effective n {human['effective_n']:,.0f}, "
        f"on {len(result['items']['shared'])} items",
        attribution(result),
        *(f"ALARM: {alarm}" for alarm in result["alarms"]),
        *(f"note: {note}" for note in result["notes"]),
    ]


def _table(title: str, columns: tuple[str, ...], left: int) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def _summary_table(result: dict[str, Any]) -> Table:
    columns = ("measure", "score", "95 % interval", "uniform", "split-half", "items", "n", "effective n")
    table = _table("Everybody: means over items", columns, 1)
    rows = {row["metric"]: row for row in result["summary"] if row["by"] == ALL}
    for row in (rows[name] for name in _SUMMARY if name in rows):
        table.add_row(
            Text(row["label"]), _number(row["score"]), _range(row), _number(row["uniform"]), _number(row["split_half"]),
            str(row["items"]), f"{row['n']:,}", _number(row["n_effective"]),
        )  # fmt: skip
    return table


def _group_table(result: dict[str, Any]) -> Table | None:
    rows = [row for row in result["summary"] if row["by"] != ALL and row["metric"] == "total_variation"]
    if not rows:
        return None
    columns = (
        "group",
        "TV",
        "95 % interval",
        "marginal",
        "shuffled",
        "split-half",
        "people, eff. n",
        "personas, eff. n",
    )
    table = _table("Subgroups: mean total variation (lower is closer; floors beside it)", columns, 1)
    for row in rows:
        table.add_row(
            Text(f"{row['by']}: {row['group']}"), _number(row["score"]), _range(row), _number(row["marginal"]),
            _number(row["shuffled"]), _number(row["split_half"]), _number(row["human_n_effective"]),
            _number(row["n_effective"]),
        )  # fmt: skip
    return table


def _item_table(result: dict[str, Any]) -> Table:
    rows = [row for row in result["overall"] if row["metric"] == "total_variation" and row["n"]]
    ratio = {row["item"]: row for row in result["overall"] if row["metric"] == "variance_ratio" and row["n"]}
    worst = sorted(rows, key=lambda row: (-row["score"], row["item"]))
    shown = worst[:SHOWN_ITEMS]
    more = f"; the worst {SHOWN_ITEMS} of {len(worst)}, all in scores/" if len(worst) > SHOWN_ITEMS else ""
    columns = ("item", "TV", "95 % interval", "uniform", "split-half", "variance ratio", "people", "answers", "from")
    table = _table(f"Items by total variation{more}", columns, 1)
    for row in shown:
        spread = ratio.get(row["item"])
        table.add_row(
            Text(row["item"]), _number(row["score"]), _range(row), _number(row["uniform"]), _number(row["split_half"]),
            "n/a" if spread is None else f"{_number(spread['score'])} {_range(spread)}",
            f"{row['human_n']:,}", f"{row['n']:,}", row["basis"],
        )  # fmt: skip
    return table


def _individual_table(result: dict[str, Any]) -> Table | None:
    rows = [row for row in result["individuals"] if not math.isnan(row["r"]) or not math.isnan(row["accuracy"])]
    if not rows:
        return None
    columns = ("item", "n", "accuracy", "95 % interval", "shuffled", "r", "95 % interval", "SD people", "SD synthetic")
    table = _table("Person by person: personas and the people of the same id", columns, 1)
    for row in rows[:SHOWN_ITEMS]:
        table.add_row(
            Text(row["item"]), f"{row['n']:,}", _number(row["accuracy"]), _range(row, "accuracy_"),
            _number(row["accuracy_shuffled"]), _number(row["r"]), _range(row, "r_"), _number(row["human_sd"]),
            _number(row["synthetic_sd"]),
        )  # fmt: skip
    return table


def _tail(result: dict[str, Any]) -> list[str]:
    prediction, regression, pattern = result["prediction"], result["regression"], result["pattern"]
    lines = [
        f"Predicting people: run {_number(prediction['synthetic'])}, demographic back-off "
        f"{_number(prediction['back_off'])}, gain {_number(prediction['gain'])}, "
        f"no demographics {_number(prediction['marginal'])}, uniform {_number(prediction['uniform'])}",
        f"Association between items (Cramér's V, {pattern['n']:,} pairs): r {_number(pattern['correlation'])} "
        f"{_range(pattern)}, split-half {_number(pattern['split_half'])}; mean V {_number(pattern['mean_synthetic'])} "
        f"against {_number(pattern['mean_human'])} of people",
    ]
    if regression["coefficients"]:
        lines.append(
            f"Regressions on demographics: {regression['share_different']:.0%} of {regression['coefficients']:,} "
            f"coefficients differ (|z| > 1.96; {regression['expected_different']:.0%} between samples of one "
            f"population), of those the sign flips in {_percent(regression['share_flipped'])}"
        )
    return [*lines, result["caption"], f"{result['run']}/scores/human.json"]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.0%}"


def _range(row: dict[str, Any], prefix: str = "") -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "n/a" if math.isnan(low) or math.isnan(high) else f"[{_number(low)}, {_number(high)}]"


def _plain(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content
