"""`polypersona personas`: sample, import and describe panels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polypersona.cli.options import json_option
from polypersona.location import mask_secrets
from polypersona.panel.describe import Composition, Description, describe
from polypersona.panel.export import render_reading, render_sampled
from polypersona.panel.sampler import sample_personas
from polypersona.panel.sources import Reading, read_personas
from polypersona.recipe import load_recipe
from polypersona.recipe_sections import PanelRecipe
from polypersona.storage import RunDirectory

DEFAULT_SIZE = 433
DEFAULT_SEED = 7
SHOWN = 5

Command = TypeVar("Command", bound=Callable[..., Any])


def mapping_options(command: Command) -> Command:
    """Add the options that say how a file is read; the command gets them as `mapping`."""
    for option in reversed(
        (
            click.option(
                "--id",
                "id_",
                metavar="COLUMN",
                help="Column of the id; else persona_id, agent_id, respondent_id or id, else a hash.",
            ),
            click.option(
                "--text",
                "text",
                multiple=True,
                metavar="COLUMN",
                help="Column of free text; each of several is a persona.",
            ),
            click.option("--weight", metavar="COLUMN", help="Column of the survey weight."),
            click.option(
                "--map", "pairs", multiple=True, metavar="ATTRIBUTE=COLUMN", help="Take a column as this attribute."
            ),
            click.option("--distinct", is_flag=True, help="Keep the first of personas with equal content."),
            click.option("--accept-license", metavar="LICENCE", help="The licence of the source that you accept."),
        )
    ):
        command = option(command)
    return command


@click.group()
def personas() -> None:
    """Sample, import and describe panels.

    Example: polypersona personas describe sampled
    """


@personas.command("sample")
@click.option("--size", type=click.IntRange(1), default=DEFAULT_SIZE, show_default=True, help="How many personas.")
@click.option("--seed", type=click.IntRange(0), default=DEFAULT_SEED, show_default=True, help="Of the panel.")
@click.option("--out", metavar="FILE", help="JSON Lines file to write; standard output without it.")
def sample_command(size: int, seed: int, out: str | None) -> None:
    """Sample synthetic personas from the built-in margins.

    A larger panel of the same seed begins with the smaller one.

    Example: polypersona personas sample --size 500 --seed 7 --out panel.jsonl
    """
    data = render_sampled(sample_personas(size, seed))
    if out is None:
        click.echo(data, nl=False)
        return
    _write(out, data)
    click.echo(f"{size} synthetic personas in {mask_secrets(out)}")


@personas.command("import")
@click.argument("source", metavar="FILE")
@mapping_options
@click.option("--size", type=click.IntRange(1), help="Take the first so many.")
@click.option("--out", metavar="FILE", required=True, help="JSON Lines file to write.")
@json_option
def import_command(source: str, size: int | None, out: str, as_json: bool, **given: Any) -> None:
    """Read personas from a file, or as a recipe's panel says, and write them in this project's shape.

    FILE is JSON Lines, JSON, CSV, TSV, Parquet, an Excel workbook (.xlsx) or SPSS (.sav), a path or URL; or a recipe
    (.yaml), for recoded values. The report says which rows were kept aside and why, and what was not taken over.

    Example: polypersona personas import people.csv --id caseid --map age=AGE --map work=WRKSTAT --out panel.jsonl
    """
    panel, _ = _panel(source, size, None, given)
    if panel.source == "sampled":
        raise click.UsageError("A sampled panel is not imported: use `polypersona personas sample`.")
    if panel.source == out:
        raise click.UsageError(f"--out names the source itself, {out}.")
    reading = read_personas(panel)
    _write(out, render_reading(reading))
    if as_json:
        click.echo(json.dumps({**_notes_as_json(reading), "out": mask_secrets(out)}, indent=2, ensure_ascii=False))
        return
    for line in _notes(reading):
        click.echo(line)
    click.echo(f"{len(reading.personas)} personas in {mask_secrets(out)}")


@personas.command("describe")
@click.argument("source", metavar="FILE|sampled")
@mapping_options
@click.option("--size", type=click.IntRange(1), help=f"The first so many; a sampled panel has {DEFAULT_SIZE}.")
@click.option("--seed", type=click.IntRange(0), help=f"Of a sampled panel; {DEFAULT_SEED} without it.")
@json_option
def describe_command(source: str, size: int | None, seed: int | None, as_json: bool, **given: Any) -> None:
    """Show a panel's composition, near-duplicates and contradictions.

    FILE as for `import`, or a recipe (.yaml); `sampled` is the built-in sampler.

    Example: polypersona personas describe jobs/gss.yaml --json
    """
    panel, seed = _panel(source, size, seed, given)
    reading = None if panel.source == "sampled" else read_personas(panel)
    members = sample_personas(panel.size or DEFAULT_SIZE, seed) if reading is None else reading.personas
    description = describe(members)
    is_synthetic = reading is None or reading.is_synthetic
    if as_json:
        notes = {} if reading is None else _notes_as_json(reading)
        content = {"source": mask_secrets(panel.source), "synthetic": is_synthetic, **notes, **description.as_json()}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    name = f"sampled with seed {seed}" if reading is None else reading.location
    click.echo(f"{len(members)} {'synthetic ' if is_synthetic else ''}personas, {name}")
    for line in () if reading is None else _notes(reading):
        click.echo(line)
    click.echo(_render_table(description), nl=False)
    for line in _findings(description):
        click.echo(line)


def _panel(source: str, size: int | None, seed: int | None, given: dict[str, Any]) -> tuple[PanelRecipe, int]:
    """Return the panel that the command line or the recipe it names describes, and the seed."""
    is_mapped = any(given.values())
    if source.lower().endswith((".yaml", ".yml")):
        if is_mapped or size is not None or seed is not None:
            raise click.UsageError("A recipe says how its panel is read: give it without further options.")
        recipe = load_recipe(source)
        return recipe.panel, recipe.seed
    if source == "sampled" and is_mapped:
        raise click.UsageError("A sampled panel has no columns: give `sampled` with --size and --seed only.")
    if source != "sampled" and seed is not None:
        raise click.UsageError("--seed is for a sampled panel; personas of a file have none.")
    mapping: dict[str, Any] = {}
    for pair in given["pairs"]:
        attribute, separator, column = pair.partition("=")
        if not (separator and attribute and column):
            raise click.UsageError(f"--map {pair!r} is not ATTRIBUTE=COLUMN.")
        if attribute in mapping:
            raise click.UsageError(f"--map names the attribute {attribute!r} twice.")
        mapping[attribute] = column
    panel = PanelRecipe(
        source=source,
        size=size,
        mapping=mapping,
        id=given["id_"],
        text=list(given["text"]) or None,
        weight=given["weight"],
        distinct=given["distinct"],
        accept_license=given["accept_license"],
    )
    return panel, DEFAULT_SEED if seed is None else seed


def _write(out: str, data: bytes) -> None:
    if not out.endswith((".jsonl", ".ndjson")):
        raise click.UsageError(f"--out {out} is written as JSON Lines: end its name in .jsonl.")
    folder, name = out.rsplit("/", 1) if "://" in out else (str(Path(out).parent), Path(out).name)
    RunDirectory.at(folder).write(name, data)


def _notes_as_json(reading: Reading) -> dict[str, Any]:
    return {
        "file": reading.location,
        "num_personas": len(reading.personas),
        "license": reading.license,
        "rejects": [asdict(reject) for reject in reading.rejects],
        "repeats": reading.repeats,
        "unmapped": reading.unmapped,
        "unused": list(reading.unused),
        "skipped": reading.skipped,
        "not_numbers": {name: asdict(strays) for name, strays in reading.strays.items()},
        "notes": list(reading.notes),
    }


def _notes(reading: Reading) -> Iterator[str]:
    """Yield what a reader of the file must know: licence, rows kept aside, what was not taken over."""
    if reading.license:
        yield f"Licence: {reading.license}"
    if reading.rejects:
        yield f"Kept aside: {len(reading.rejects)} rows"
        for reject in reading.rejects[:SHOWN]:
            field = f", {reject.field!r}" if reject.field else ""
            yield f"  {reject.file}, row {reject.row}{field}: {reject.reason}"
        yield from _rest(len(reading.rejects))
    if reading.repeats:
        yield f"Left out as repeats: {reading.repeats}"
    for attribute, counts in reading.unmapped.items():
        shown = ", ".join(f"{value!r} ({count})" for value, count in list(counts.items())[:SHOWN])
        yield f"Not in the recoding of {attribute}, kept as they are: {shown}{', …' if len(counts) > SHOWN else ''}"
    if reading.unused:
        yield f"Columns not taken: {', '.join(reading.unused)}"
    for column, count in reading.skipped.items():
        yield f"Cells of {column!r} that no attribute can hold: {count}"
    for attribute, strays in reading.strays.items():
        verb = "is not a number" if strays.num_strays == 1 else "are not numbers"
        which = "" if strays.num_strays == 1 else "the first in "
        yield (
            f"{attribute}: {strays.num_strays} of {strays.num_values} values {verb} ({which}row {strays.row}: "
            f"{json.dumps(strays.value, ensure_ascii=False)}), so the attribute is not numeric"
        )
    yield from reading.notes


def _rest(count: int) -> Iterator[str]:
    if count > SHOWN:
        yield f"  … and {count - SHOWN} more (--json lists all)"


def _render_table(description: Description) -> str:
    table = Table("attribute", "has it", "composition")
    for row in description.composition:
        share = f"{row.num_personas / description.num_personas:.1%}"
        table.add_row(Text(row.attribute), share, Text(_composition(row)))
    console = Console()
    with console.capture() as captured:
        if description.composition:
            console.print(table)
    return captured.get()


def _composition(row: Composition) -> str:
    if row.numbers is not None:
        numbers = row.numbers
        spread = "" if numbers.sd is None else f", sd {numbers.sd:.1f}"
        bounds = f"{numbers.minimum:g} to {numbers.maximum:g}"
        return f"{bounds}, median {numbers.quartiles[1]:g}, mean {numbers.mean:.1f}{spread}"
    shown = ", ".join(f"{value} {count / row.num_personas:.1%}" for value, count in row.counts[: SHOWN + 3])
    rest = len(row.counts) - SHOWN - 3
    return f"{shown}, {rest} more" if rest > 0 else shown


def _findings(description: Description) -> Iterator[str]:
    if description.mean_words is not None:
        yield f"Free text: {description.num_texts} personas, {description.mean_words:.1f} words in the mean"
    if description.effective_size < description.num_personas - 0.5:
        yield f"Weights: sum {description.weight_sum:.1f}, effective size {description.effective_size:.1f}"
    duplicates = description.duplicates
    yield f"Near-duplicates: {duplicates.num_personas} personas"
    for what, groups in (
        ("equal", duplicates.equal),
        ("cards that differ in one attribute", duplicates.card),
        ("texts that share 90 % of their words", duplicates.text),
    ):
        if groups:
            example = ", ".join(groups[0][:SHOWN]) + (", …" if len(groups[0]) > SHOWN else "")
            yield f"  {what}: {len(groups)} groups, the largest of {len(groups[0])}: {example}"
    yield f"Contradictions: {len(description.contradictions)}"
    for found in description.contradictions[:SHOWN]:
        yield f"  {found.persona_id}: {found.rule} ({found.detail})"
    yield from _rest(len(description.contradictions))
