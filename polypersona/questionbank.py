"""The questionbank: a checked bank and a recipe's filters → the instrument of a run.

Knows no persona, no model and no simulator: which constructs exist is not its business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from polypersona.domain_files import SHIPPED, Problem, check_bank, read_bank
from polypersona.errors import QuestionbankError, nearest
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.records import Item, digest
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import is_codebook, load_codebook

__all__ = ["Instrument", "Problem", "check_bank", "item_hash", "load_bank", "load_instrument"]


@dataclass(frozen=True, slots=True)
class Instrument:
    """The ordered items of a survey. `source_hash` changes with what the items say, not with how a file is laid out."""

    items: tuple[Item, ...]
    source_hash: str


def load_instrument(instrument: InstrumentRecipe) -> Instrument:
    """Return the items a recipe asks: those that pass all its filters, in bank order, gates before what they open.

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
    _refuse_lost_gates(items, bank, instrument)
    return Instrument(tuple(items), digest(*map(item_hash, items)))


def load_bank(path: str | Path = SHIPPED) -> tuple[Item, ...]:
    """Return the items of a folder of domain files, of one file or of a codebook; "questionbank" is the shipped bank.

    Items come by domain (the paper's order), then by response type (`BANK_TYPES`), then as the file has them.

    Raises:
        QuestionbankError: the first problem that `check_bank` finds.
        SurveyError: a faulty codebook.
    """
    if is_codebook(path):
        return codebook_items(load_codebook(path))
    items, problems = read_bank([path])
    if problems:
        more = f" `polypersona bank check {path}` lists all {len(problems)} problems." if len(problems) > 1 else ""
        raise QuestionbankError(str(problems[0]), problems[0].hint + more)
    return items


def item_hash(item: Item) -> str:
    """Return the hash of what an item asks and measures, sixteen hex digits; its `source` is not part of it."""
    wording = (item.item_id, item.variant, item.domain, item.response_type, item.stem, item.options, item.codes)
    meaning = (item.scale, item.reverse, item.construct, sorted(item.missing.items()))
    routing = [[gate.item_id, *sorted(gate.codes)] for gate in item.asked_if]
    later = [*([sorted(routing)] if routing else []), *([{"shown": item.shown}] if item.shown else [])]
    return digest(json.dumps([*wording, *meaning, *later]))


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


def _refuse_lost_gates(items: Sequence[Item], bank: Sequence[Item], instrument: InstrumentRecipe) -> None:
    """Refuse an item whose routing depends on an item that the recipe does not ask.

    Raises:
        QuestionbankError: names the item, the one it depends on and the filter that leaves that out.
    """
    asked = {item.item_id for item in items}
    for item in items:
        for gate in item.asked_if:
            if gate.item_id not in asked:
                lost = next(other for other in bank if other.item_id == gate.item_id)
                raise QuestionbankError(
                    f"{item.item_id!r} is asked only after certain answers to {gate.item_id!r}, which "
                    f"instrument.{_filter_against(lost, instrument)} leaves out.",
                    f"Let the recipe ask {gate.item_id} too, or leave {item.item_id} out.",
                )


def _filter_against(item: Item, instrument: InstrumentRecipe) -> str:
    """Return the name of the filter that an item does not pass."""
    if instrument.domains and item.domain not in instrument.domains:
        return "domains"
    if instrument.items and item.item_id not in instrument.items:
        return "items"
    is_of_type = not instrument.response_types or item.response_type in instrument.response_types
    return "max_items" if is_of_type else "response_types"


def _take_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    domains: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        domains.setdefault(item.domain, {}).setdefault(item.response_type, []).append(item)
    mixed = [_in_turns(list(by_type.values())) for by_type in domains.values()]
    taken = {item.item_id for item in _in_turns(mixed)[:limit]}
    return [item for item in items if item.item_id in taken]


def _in_turns(groups: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for turn in zip_longest(*groups) for item in turn if item is not None]
