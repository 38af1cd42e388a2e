"""The `bank` commands: check domain files, list items, show one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import click

from polypersona.cli.options import json_option
from polypersona.domain_files import BANK_TYPES, SHIPPED, read_bank
from polypersona.errors import QuestionbankError, nearest
from polypersona.questionbank import item_hash, load_bank, load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.records import Item

_BANK_OPTION = click.option(
    "--bank", default=SHIPPED, show_default=True, metavar="PATH", help="A domain file or a folder of them."
)


@click.group()
def bank() -> None:
    """Check, list and show the questionbank.

    \b
    Example: polypersona bank list --domain healthcare
    """


@bank.command("check")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@json_option
def check_command(files: tuple[str, ...], as_json: bool) -> None:
    """Check domain files, or folders of them, as one bank; without any, the shipped bank.

    \b
    Example: polypersona bank check my_bank/*.json
    """
    items, problems = read_bank(files or (SHIPPED,))
    if as_json:
        rows = [
            {"file": p.file, "item": p.item, "field": p.field, "message": p.message, "hint": p.hint} for p in problems
        ]
        click.echo(json.dumps({"is_valid": not problems, **_counts(items), "problems": rows}, ensure_ascii=False))
    if len(problems) == 1:
        raise QuestionbankError(str(problems[0]), problems[0].hint)
    if problems:
        for problem in problems:
            click.echo(f"{problem} {problem.hint}", err=True)
        num_files = len({problem.file for problem in problems})
        raise QuestionbankError(f"The check found {len(problems)} problems in {num_files} file(s).", "Mend them all.")
    if not as_json:
        counts = _counts(items)
        by_type = ", ".join(f"{number} {name}" for name, number in counts["items_by_type"].items())
        click.echo(f"OK: {counts['num_items']} items in {len(counts['items_by_domain'])} domains ({by_type}).")


@bank.command("list")
@click.option("--domain", "domains", multiple=True, help="Only this domain; may be repeated.")
@click.option("--type", "response_types", multiple=True, type=click.Choice(BANK_TYPES), help="Only this response type.")
@_BANK_OPTION
@json_option
def list_command(domains: tuple[str, ...], response_types: tuple[str, ...], bank: str, as_json: bool) -> None:
    """List the items, one a line: id, construct, "reverse" where it is, and the stem.

    \b
    Example: polypersona bank list --domain healthcare --type likert
    """
    wanted = {"bank": bank, "domains": list(domains), "response_types": list(response_types)}
    items = load_instrument(InstrumentRecipe.model_validate(wanted)).items
    if as_json:
        click.echo(json.dumps([_row(item) for item in items], indent=2, ensure_ascii=False))
        return
    width = max(len(item.item_id) for item in items)
    for item in items:
        construct = f"{item.construct}{' (reverse)' if item.reverse else ''}"
        click.echo(f"{item.item_id:<{width}}  {construct:<34}  {item.stem}")


@bank.command("show")
@click.argument("item_id")
@_BANK_OPTION
@json_option
def show_command(item_id: str, bank: str, as_json: bool) -> None:
    """Show one item with its options, codes, construct and source.

    \b
    Example: polypersona bank show healthcare.likert.02
    """
    items = {item.item_id: item for item in load_bank(bank)}
    if item_id not in items:
        raise QuestionbankError(
            f"There is no item {item_id!r} in the bank {bank!r}.{nearest(item_id, items)}",
            "Run `polypersona bank list` for the ids.",
        )
    row = _row(items[item_id])
    if as_json:
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
        return
    lines = dict(zip(row.pop("codes"), row.pop("options"), strict=True))
    missing, gates = row.pop("missing"), row.pop("asked_if")
    for name, value in row.items():
        click.echo(f"{name:<14} {json.dumps(value) if isinstance(value, bool) else value}")
    for code, label in lines.items():
        click.echo(f"{f'option {code}':<14} {label}")
    for code, label in missing.items():
        click.echo(f"{f'missing {code}':<14} {label}")
    for gate in gates:
        click.echo(f"{'asked if':<14} {gate['item']} is {' or '.join(map(str, gate['codes']))}")


def _counts(items: tuple[Item, ...]) -> dict[str, Any]:
    by_type = Counter(item.response_type for item in items)
    return {
        "num_items": len(items),
        "items_by_type": {name: by_type[name] for name in BANK_TYPES},
        "items_by_domain": dict(Counter(item.domain for item in items)),
    }


def _row(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "domain": item.domain,
        "response_type": item.response_type,
        "stem": item.stem,
        "options": list(item.options),
        "codes": list(item.codes),
        "scale": item.scale,
        "reverse": item.reverse,
        "construct": item.construct,
        "source": item.source,
        "missing": dict(item.missing),
        "asked_if": [{"item": gate.item_id, "codes": list(gate.codes)} for gate in item.asked_if],
        "hash": item_hash(item),
    }
