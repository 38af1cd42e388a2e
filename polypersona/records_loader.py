"""Records made elsewhere → examples of this project, Algorithm 1's load and validate.

Takes a file or a folder of splits; schema variations are handled, and a record that cannot be taken is kept aside with
its file, row and field. The messages are rendered again by `chatml` from the persona and the question, so that
training sees what generation will. Knows no teacher and no recipe.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypersona.chatml import ShowOptions, build_messages, render_answer, shown_place
from polypersona.coding import code_answer, split_rationale
from polypersona.errors import DatasetError
from polypersona.examples import describe_cell
from polypersona.readback import misread_options
from polypersona.record_fields import Fields, RecordProblem, read_fields
from polypersona.record_files import RawRecord, Rejection, find_split_files, read_records
from polypersona.records import Assignment, AttributeValue, Example, Item, Persona, digest

# Scales a closed question is given where its records name no options: those that fit every one of its references.
STANDARD_SCALES: tuple[tuple[str, ...], ...] = (
    ("No", "Yes"),
    ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree"),
    ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree"),
)
SINGLE_FILE = "all"


@dataclass(frozen=True, slots=True)
class LoadedRecords:
    """What a source gave. `splits` has train, validation and test, or one entry `all` where it brings no splits.

    `ignored` counts the records that have a field nothing was made of, by its name.
    """

    splits: dict[str, list[Example]]
    rejected: tuple[Rejection, ...]
    ignored: dict[str, int]
    num_scales_added: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """The fields of a record, and where it stands."""

    split: str
    raw: RawRecord
    fields: Fields


def source_files(source: str) -> dict[str, Path]:
    """Return split → file of a source; a single file is `all`.

    Raises:
        DatasetError: there is no such file or folder, or the folder lacks a split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return find_split_files(path)
    if not path.exists():
        raise DatasetError(f"dataset.source: there is no {source}.", "Name a file or folder of records.")
    return {SINGLE_FILE: path}


def hash_source(source: str) -> str:
    """Return the digest of the source's files, in the order of the splits."""
    state = hashlib.blake2b(digest_size=8)
    for split, path in source_files(source).items():
        state.update(f"{split}\0{path.stat().st_size}\0".encode())
        state.update(path.read_bytes())
    return state.hexdigest()


def load_records(source: str, show: ShowOptions) -> LoadedRecords:
    """Return the examples of a source, and what was kept aside.

    Raises:
        DatasetError: no such source, a file that cannot be read, or no usable record in a file.
    """
    placed: list[_Placed] = []
    rejected: list[Rejection] = []
    ignored: Counter[str] = Counter()
    files = source_files(source)
    for split, path in files.items():
        for record in read_records(path):
            if isinstance(record, Rejection):
                rejected.append(record)
                continue
            try:
                fields = read_fields(record.content)
            except RecordProblem as problem:
                rejected.append(Rejection(record.file, record.row, problem.field, problem.reason))
                continue
            placed.append(_Placed(split, record, fields))
            ignored.update(fields.ignored)
    placed, num_scales_added = _add_scales(_tell_items_apart(_agree_on_types(placed)))
    splits: dict[str, list[Example]] = {split: [] for split in files}
    for row in placed:
        try:
            splits[row.split].append(_build_example(row.fields, show))
        except RecordProblem as problem:
            rejected.append(Rejection(row.raw.file, row.raw.row, problem.field, problem.reason))
    _refuse_unusable(files, splits, rejected)
    order = {path.name: number for number, path in enumerate(files.values())}
    rejected.sort(key=lambda problem: (order[problem.file], problem.row))
    return LoadedRecords(splits, tuple(rejected), dict(sorted(ignored.items())), num_scales_added)


def _refuse_unusable(files: dict[str, Path], splits: dict[str, list[Example]], rejected: Sequence[Rejection]) -> None:
    for split, path in files.items():
        if not splits[split]:
            first = next((f" The first problem: {problem}." for problem in rejected if problem.file == path.name), "")
            raise DatasetError(
                f"{path} holds no usable record.{first}",
                "A record needs a persona, a question and an answer (`reference` or an assistant message).",
            )


def _build_example(fields: Fields, show: ShowOptions) -> Example:
    item = Item(
        item_id=fields.item_id,
        domain=fields.domain,
        stem=fields.question,
        response_type=fields.response_type,
        options=fields.options,
        codes=fields.codes,
        scale=fields.scale,
        reverse=fields.reverse,
        construct=fields.construct,
        shown=fields.shown,
    )
    if misread := misread_options(item):
        label = next(iter(misread))
        raise RecordProblem("options", f"the option {label!r} {misread[label]}")
    persona = Persona(fields.persona_id, fields.attributes, fields.text, fields.weight)
    order = item.shown or None
    code = code_answer(item, fields.reference, order) if item.is_closed else None
    if item.is_closed and code is None:
        raise RecordProblem("reference", f"{fields.reference[:60]!r} names none of the options {list(item.options)}")
    label, rationale = split_rationale(item, fields.reference, order) if item.is_closed else ("", "")
    answer = fields.reference
    if item.is_closed and show == "letters":
        answer = render_answer(label, rationale, show, shown_place(item.options.index(label), order))
    metadata = describe_cell(persona, item) | {
        "reference": answer,
        "rationale": rationale,
        "code": code,
        "label": label,
        "source_id": fields.source_id,
    }
    system, user = build_messages(persona, item, show)
    messages = (system, user, {"role": "assistant", "content": answer})
    return Example(Assignment(persona.persona_id, item.item_id).assignment_id, messages, metadata)


def _tell_items_apart(placed: Sequence[_Placed]) -> list[_Placed]:
    """Add the content's digest to an item id that stands for several questions: it is a counter, not an id."""
    contents: dict[str, set[str]] = {}
    for row in placed:
        contents.setdefault(row.fields.item_id, set()).add(_item_digest(row.fields))
    return [
        replace(row, fields=replace(row.fields, item_id=f"{row.fields.item_id}.{_item_digest(row.fields)}"))
        if len(contents[row.fields.item_id]) > 1
        else row
        for row in placed
    ]


def _item_digest(fields: Fields) -> str:
    return digest(fields.domain, fields.response_type, fields.question, fields.options, fields.codes, size=4)


def _add_scales(placed: Sequence[_Placed]) -> tuple[list[_Placed], int]:
    """Give closed questions without options the standard scale that all their references are on, if there is one.

    A question that fits none stays without options: its answers are text.
    """
    references: dict[str, list[str]] = {}
    for row in placed:
        if row.fields.response_type in ("likert", "agreement", "yesno") and not row.fields.options:
            references.setdefault(row.fields.item_id, []).append(row.fields.reference)
    scales = {item_id: scale for item_id, texts in references.items() if (scale := _fitting_scale(texts))}
    with_scales = [
        replace(row, fields=replace(row.fields, options=scales[row.fields.item_id]))
        if row.fields.item_id in scales and not row.fields.options
        else row
        for row in placed
    ]
    return with_scales, len(scales)


def _fitting_scale(references: Sequence[str]) -> tuple[str, ...]:
    for scale in STANDARD_SCALES:
        item = Item("", "", "", "single", scale)
        if all(code_answer(item, text) is not None for text in references):
            return scale
    return ()


def _agree_on_types(placed: Sequence[_Placed]) -> list[_Placed]:
    """Give each attribute one type over all records, as a table needs: lists, else numbers, else text."""
    kinds: dict[str, set[type]] = {}
    for row in placed:
        for name, value in row.fields.attributes.items():
            kinds.setdefault(name, set()).add(type(value))
    mixed = {name: found for name, found in kinds.items() if len(found) > 1}
    if not mixed:
        return list(placed)
    return [
        replace(
            row,
            fields=replace(
                row.fields,
                attributes={
                    name: _as_one_of(value, mixed[name]) if name in mixed else value
                    for name, value in row.fields.attributes.items()
                },
            ),
        )
        for row in placed
    ]


def _as_one_of(value: AttributeValue, kinds: set[type]) -> AttributeValue:
    if tuple in kinds:
        return value if isinstance(value, tuple) else (_as_text(value),)
    if kinds <= {int, float}:
        return float(value) if isinstance(value, int) else value
    return _as_text(value)


def _as_text(value: Any) -> str:
    return str(value)
