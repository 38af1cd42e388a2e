"""The questionbank: a checked bank and a recipe's filters → the instrument of a run.

Knows no persona, no model and no simulator: which constructs exist is not its business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path

from polypersona.domain_files import SHIPPED, Problem, check_bank, read_bank
from polypersona.errors import QuestionbankError, nearest
from polypersona.recipe import InstrumentRecipe
from polypersona.records import Item, digest

__all__ = ["Instrument", "Problem", "check_bank", "item_hash", "load_bank", "load_instrument"]


@dataclass(frozen=True, slots=True)
class Instrument:
    """The ordered items of a survey. `source_hash` changes with what the items say, not with how a file is laid out."""

    items: tuple[Item, ...]
    source_hash: str


def load_instrument(instrument: InstrumentRecipe) -> Instrument:
    """Return the items a recipe asks: those that pass all its filters, in bank order.

    `max_items` takes them in turns: one of each domain, then a second of each, within a domain one of each response
    type before a second of any. A larger `max_items` therefore holds every item of a smaller one.

    Raises:
        QuestionbankError: a faulty bank; a domain, item or response type the bank lacks; filters that leave nothing.
    """
    bank = load_bank(instrument.bank)
    _refuse_unknown("domains", instrument.domains, [item.domain for item in bank], instrument.bank)
    _refuse_unknown("items", instrument.items, [item.item_id for item in bank], instrument.bank)
    _refuse_unknown("response_types", instrument.response_types, [item.response_type for item in bank], instrument.bank)
    items = [item for item in bank if _is_wanted(item, instrument)]
    lost = set(instrument.items) - {item.item_id for item in items}
    if lost:
        raise QuestionbankError(
            f"instrument.items names {min(lost)!r}, which instrument.domains or instrument.response_types leave out.",
            "Name the items alone, or widen the other filters.",
        )
    if not items:
        raise QuestionbankError(
            f"No item of {instrument.bank!r} passes the filters of the recipe's instrument: "
            f"domains {instrument.domains}, response_types {instrument.response_types}.",
            "Widen instrument.domains or instrument.response_types.",
        )
    if instrument.max_items is not None:
        items = _take_evenly(items, instrument.max_items)
    return Instrument(tuple(items), digest(*map(item_hash, items)))


def load_bank(path: str | Path = SHIPPED) -> tuple[Item, ...]:
    """Return the items of a folder of domain files, or of one file; "questionbank" is the shipped bank.

    Items come by domain (the paper's order), then by response type (`BANK_TYPES`), then as the file has them.

    Raises:
        QuestionbankError: the first problem that `check_bank` finds.
    """
    items, problems = read_bank([path])
    if problems:
        more = f" `polypersona bank check {path}` lists all {len(problems)} problems." if len(problems) > 1 else ""
        raise QuestionbankError(str(problems[0]), problems[0].hint + more)
    return items


def item_hash(item: Item) -> str:
    """Return the hash of what an item asks and measures, sixteen hex digits; its `source` is not part of it."""
    wording = (item.item_id, item.variant, item.domain, item.response_type, item.stem, item.options, item.codes)
    meaning = (item.scale, item.reverse, item.construct, sorted(item.missing.items()))
    return digest(json.dumps([*wording, *meaning]))


def _is_wanted(item: Item, instrument: InstrumentRecipe) -> bool:
    return (
        (not instrument.domains or item.domain in instrument.domains)
        and (not instrument.items or item.item_id in instrument.items)
        and (not instrument.response_types or item.response_type in instrument.response_types)
    )


def _refuse_unknown(key: str, wanted: Sequence[str], known: Iterable[str], bank: str) -> None:
    names = list(dict.fromkeys(known))
    for name in wanted:
        if name not in names:
            raise QuestionbankError(
                f"instrument.{key}: {name!r} is not in the bank {bank!r}.{nearest(name, names)}",
                "Run `polypersona bank list` for the ids." if key == "items" else f"Allowed are {', '.join(names)}.",
            )


def _take_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    domains = [list(group) for _, group in groupby(items, key=lambda item: item.domain)]
    mixed = [_in_turns([list(group) for _, group in groupby(own, key=lambda i: i.response_type)]) for own in domains]
    taken = {item.item_id for item in _in_turns(mixed)[:limit]}
    return [item for item in items if item.item_id in taken]


def _in_turns(groups: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for turn in zip_longest(*groups) for item in turn if item is not None]
