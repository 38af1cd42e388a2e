"""Domain files of a questionbank → items in bank order, and every problem with its place and remedy.

The format is `questionbank/schema.json`; what a schema cannot say (ids that fit their place, options that an answer can
tell apart, nothing twice in a bank) is checked here too. Raises nothing for a faulty file: a fault is a `Problem`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from polypersona.coding import missing_answer
from polypersona.errors import nearest
from polypersona.gates import asking_order, gates_of
from polypersona.readback import misread_options
from polypersona.records import Gate, Item, ResponseType
from polypersona.resources import resource

SHIPPED = "questionbank"
SCHEMA_FILE = "schema.json"
# The order of the domains in the PolyPersona paper; domains of other banks follow by name.
DOMAINS = (
    "demographics", "healthcare", "education", "work_experience", "technology",
    "consumer_preferences", "finance", "social_issues", "environment", "lifestyle",
)  # fmt: skip
BANK_TYPES: tuple[ResponseType, ...] = ("likert", "open", "yesno", "agreement")

_ITEM_DEPTH = 3  # an item's place in a file: items, response type, position
_MAX_SHOWN = 60
_ADD_OPTIONS = "Add the options, low to high, or move the item to `open`."
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "object": "an object with named fields",
    "string": "a text",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a domain file. `item` and `field` are empty where the fault is the whole file's."""

    file: str
    item: str
    field: str
    message: str
    hint: str

    def __str__(self) -> str:
        place = [self.file]
        place += [f"item {self.item!r}"] if self.item else []
        place += [f"field {self.field!r}"] if self.field else []
        return f"{', '.join(place)}: {self.message}"


def check_bank(paths: Iterable[str | Path] = (SHIPPED,)) -> list[Problem]:
    """Return every problem of the files, read as one bank; empty where there is none."""
    return read_bank(paths)[1]


def read_bank(paths: Iterable[str | Path]) -> tuple[tuple[Item, ...], list[Problem]]:
    """Return the items that could be read, in bank order, and everything that is wrong with the files.

    Bank order is by domain, response type and place in the file, but an item follows the gates it depends on.
    """
    placed: list[tuple[str, Item]] = []
    problems: list[Problem] = []
    for path in paths:
        files = _domain_files(path)
        if not files:
            problems.append(Problem(str(path), "", "", "the folder holds no domain file.", "Name a folder of *.json."))
        for file in files:
            data = _parse(file)
            found, faults = ([], [data]) if isinstance(data, Problem) else _check_file(str(file), data)
            placed += [(str(file), item) for item in found]
            problems += faults
    problems += _repetitions(placed)
    problems += _gate_problems(placed)
    return tuple(asking_order(sorted((item for _, item in placed), key=_bank_order))), problems


def _bank_order(item: Item) -> tuple[int, str, int]:
    rank = DOMAINS.index(item.domain) if item.domain in DOMAINS else len(DOMAINS)
    return rank, item.domain, BANK_TYPES.index(item.response_type)


def _domain_files(path: str | Path) -> list[Path]:
    folder = resource(SHIPPED) if str(path) == SHIPPED else Path(path)
    if not folder.is_dir():
        return [folder]
    return sorted(file for file in folder.glob("*.json") if file.name != SCHEMA_FILE)


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice; the standard parser would keep the last one silently."""


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _parse(file: Path) -> Any:
    """Return the file's JSON, or the `Problem` that keeps it from being read."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeated_keys)
    except FileNotFoundError:
        return Problem(str(file), "", "", "there is no such file.", "Name a domain file or a folder of them.")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return Problem(str(file), "", "", f"this is not valid JSON ({where}).", "Mend the file at that place.")
    except _RepeatedKeyError as error:
        return Problem(str(file), "", str(error), "the key stands twice in one object.", "Remove one of the two.")
    except (OSError, ValueError, RecursionError) as error:
        return Problem(str(file), "", "", f"the file cannot be read: {error}.", "Name a readable UTF-8 file.")


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads((resource(SHIPPED) / SCHEMA_FILE).read_text(encoding="utf-8")))


def _check_file(file: str, data: Any) -> tuple[list[Item], list[Problem]]:
    errors = sorted(_validator().iter_errors(data), key=lambda error: [str(part) for part in error.absolute_path])
    problems = list(dict.fromkeys(found for error in errors for found in _schema_problems(file, data, error)))
    broken = {tuple(error.absolute_path)[:_ITEM_DEPTH] for error in errors}
    if any(len(place) < _ITEM_DEPTH for place in broken):
        return [], problems
    items = [
        _build_item(data["domain"], response_type, row)
        for response_type in BANK_TYPES
        for index, row in enumerate(data["items"].get(response_type, ()))
        if ("items", response_type, index) not in broken
    ]
    if not items and not broken:
        problems.append(Problem(file, "", "items", "the file has no item.", "Add one, or remove the file."))
    return items, problems + [found for item in items for found in _item_problems(file, item)]


def _build_item(domain: str, response_type: ResponseType, row: Mapping[str, Any]) -> Item:
    return Item(
        item_id=row["id"],
        domain=domain,
        stem=row["stem"],
        response_type=response_type,
        options=tuple(row.get("options", ())),
        codes=tuple(int(code) for code in row.get("codes", ())),
        scale=row["scale"],
        reverse=row["reverse"],
        construct=row["construct"],
        source=row["source"],
        missing={int(code): label for code, label in row.get("missing", {}).items()},
        asked_if=_build_gates(row.get("asked_if", ())),
    )


def _build_gates(asked_if: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[Gate, ...]:
    rows = [asked_if] if isinstance(asked_if, Mapping) else asked_if
    return tuple(Gate(row["item"], tuple(int(code) for code in row["codes"])) for row in rows)


def _item_problems(file: str, item: Item) -> Iterator[Problem]:
    """Yield what a schema cannot say of one item."""
    prefix = f"{item.domain}.{item.response_type}."
    if not item.item_id.startswith(prefix):
        message = f"the id does not begin with {prefix!r}, the file's domain and the list the item stands in."
        yield Problem(file, item.item_id, "id", message, "Move the item, or give it an id of its place.")
    if len(item.codes) != len(item.options):
        message = f"there are {len(item.codes)} codes for {len(item.options)} options."
        yield Problem(file, item.item_id, "codes", message, "Give each option one code, or leave `codes` out.")
        return
    shared = sorted(set(item.codes) & set(item.missing))
    if shared:
        message = f"the code {shared[0]} is an option's code too."
        yield Problem(file, item.item_id, "missing", message, "Give the missing answer another code.")
    misread = misread_options(item)
    for label in item.options:
        if label in misread:
            message = f"the option {label!r} {misread[label]}."
            yield Problem(file, item.item_id, "options", message, "Word the options differently.")
        elif (missing := missing_answer(label)) is not None:
            message = f"the option {label!r} is worded as {missing.replace('_', ' ')}."
            yield Problem(file, item.item_id, "options", message, "Move it to `missing`, or word it differently.")


def _repetitions(placed: Sequence[tuple[str, Item]]) -> Iterator[Problem]:
    """Yield ids, stems and domains that stand in two places."""
    seen: dict[tuple[str, str], str] = {}
    homes: dict[str, str] = {}
    told: set[tuple[str, str]] = set()
    for file, item in placed:
        here = f"{item.item_id!r} in {file}"
        for field, value in (("id", item.item_id), ("stem", " ".join(item.stem.casefold().split()))):
            if (field, value) in seen:
                message = f"the {field} is that of {seen[field, value]} too."
                yield Problem(file, item.item_id, field, message, f"Give each item its own {field}.")
            seen.setdefault((field, value), here)
        if homes.setdefault(item.domain, file) != file and (file, item.domain) not in told:
            told.add((file, item.domain))
            message = f"the domain {item.domain!r} stands in {homes[item.domain]} too."
            yield Problem(file, "", "domain", message, "Put a domain into one file.")


def _gate_problems(placed: Sequence[tuple[str, Item]]) -> Iterator[Problem]:
    """Yield gates that no answer can open: of no closed item, of no code of it, or not before the item."""
    items = [item for _, item in placed]
    by_id = {item.item_id: item for item in reversed(items)}
    for place, (file, item) in enumerate(placed):
        for gate in item.asked_if:
            found = by_id.get(gate.item_id)
            where = (file, item.item_id, "asked_if")
            if found is None:
                message = f"the bank has no sound item {gate.item_id!r}.{nearest(gate.item_id, by_id)}"
                yield Problem(*where, message, "Name an earlier closed item of the bank.")
            elif not found.is_closed:
                message = f"{gate.item_id!r} is an open item, whose answers have no codes; allowed is a closed one."
                yield Problem(*where, message, "Name an earlier closed item of the bank.")
            elif unknown := sorted(set(gate.codes) - set(found.codes)):
                message = (
                    f"{gate.item_id!r} has no code {unknown[0]}; its codes are {', '.join(map(str, found.codes))}."
                )
                yield Problem(*where, message, "Name codes of that item.")
            elif _is_later(items, place, found) or item.item_id in {*gates_of(items, {gate.item_id}), gate.item_id}:
                message = f"{gate.item_id!r} does not come before the item; allowed is an earlier one."
                yield Problem(*where, message, "Put that item first, or leave the condition out.")


def _is_later(items: Sequence[Item], place: int, gate: Item) -> bool:
    """Return whether the gate stands behind the item in the item's own list, where the file's author set the order."""
    item = items[place]
    return (gate.domain, gate.response_type) == (item.domain, item.response_type) and gate in items[place + 1 :]


def _schema_problems(file: str, data: Any, error: Any) -> Iterator[Problem]:
    """Yield one break of the schema, a jsonschema `ValidationError`, in the words of a questionbank."""
    path = list(error.absolute_path)
    item = _item_name(data, path)
    parts = [str(part) for part in (path[_ITEM_DEPTH:] if item else path)]
    if error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                hint = _ADD_OPTIONS if name == "options" else f"Add `{name}`."
                yield Problem(file, item, ".".join([*parts, name]), "the field is missing.", hint)
    elif error.validator == "additionalProperties":
        properties, patterns = error.schema.get("properties", {}), error.schema.get("patternProperties", {})
        for name in error.instance:
            if name not in properties and not any(re.search(pattern, name) for pattern in patterns):
                message = f"there is no such field here.{nearest(name, properties)}"
                hint = f"Allowed here: {', '.join(properties) or 'whole numbers of up to four digits'}."
                yield Problem(file, item, ".".join([*parts, name]), message, hint)
    else:
        yield Problem(file, item, ".".join(parts), *_wording(error))


def _item_name(data: Any, path: Sequence[str | int]) -> str:
    """Return the id of the item a path leads into, its place in the list where it has none, or an empty string."""
    if len(path) < _ITEM_DEPTH:
        return ""
    row = data[path[0]][path[1]][path[2]]
    name = row.get("id") if isinstance(row, dict) else None
    return name if isinstance(name, str) and name.strip() else f"{path[1]} number {int(path[2]) + 1}"


def _wording(error: Any) -> tuple[str, str]:
    """Return message and hint for a value the schema does not allow."""
    got = json.dumps(error.instance, ensure_ascii=False)
    got = got if len(got) <= _MAX_SHOWN else f"{got[:_MAX_SHOWN]}…"
    if error.validator == "type":
        return f"got {got}, allowed is {_TYPES[error.validator_value]}.", "Mend the value."
    if error.validator == "minItems" and error.absolute_path[-1] == "options":
        return f"got {len(error.instance)} options, a closed item has at least {error.validator_value}.", _ADD_OPTIONS
    if error.validator == "maxItems":
        return f"got {len(error.instance)} options, allowed are at most {error.validator_value}.", "Remove some."
    if error.validator == "uniqueItems":
        return f"got {got}, in which one stands twice.", "Make them distinct."
    if error.validator in ("minimum", "maximum"):
        return f"got {got}, the {error.validator} is {error.validator_value}.", "Mend the value."
    allowed = error.schema["description"]
    if error.validator == "enum":
        allowed = f"{' or '.join(error.validator_value)} ({allowed})"
    return f"got {got}, allowed is {allowed}.", "Mend the value."
