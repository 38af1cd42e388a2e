"""Examples: how a training row is built from a persona, an item and an answer, and how it is read back.

The file format is JSON Lines, one `{"id", "messages", "metadata"}` a line, which `datasets.load_dataset("json")` loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from polypersona.chatml import ShowOptions, build_messages
from polypersona.engines.base import Answer
from polypersona.errors import DatasetError
from polypersona.records import Assignment, Example, Item, Persona
from polypersona.storage import RunDirectory

SPLITS = ("train", "validation", "test")


def build_example(persona: Persona, item: Item, answer: Answer, show: ShowOptions) -> Example:
    """Return the row that teaches this answer. Its id is the assignment's."""
    system, user = build_messages(persona, item, show)
    metadata = describe_cell(persona, item) | {
        "reference": answer.text,
        "rationale": answer.rationale,
        "code": answer.code,
        "label": answer.label,
    }
    messages = (system, user, {"role": "assistant", "content": answer.text})
    return Example(Assignment(persona.persona_id, item.item_id).assignment_id, messages, metadata)


def describe_cell(persona: Persona, item: Item) -> dict[str, Any]:
    """Return the metadata that persona and item alone decide; `example_persona` and `example_item` read it back."""
    described = {
        "persona_id": persona.persona_id,
        "persona": {"attributes": dict(persona.attributes), "text": persona.text},
        "weight": persona.weight,
        "domain": item.domain,
        "item_id": item.item_id,
        "question": item.stem,
        "question_type": item.response_type,
        "options": list(item.options),
        "codes": list(item.codes),
        "scale": item.scale,
        "reverse": item.reverse,
        "construct": item.construct,
    }
    return described | ({"shown": list(item.shown)} if item.shown else {})


def example_persona(example: Example) -> Persona:
    """Return the persona of a row."""
    stored = example.metadata["persona"]
    attributes = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored["attributes"].items()
    }
    return Persona(
        example.metadata["persona_id"], attributes, stored.get("text", ""), float(example.metadata.get("weight", 1.0))
    )


def example_item(example: Example) -> Item:
    """Return the item of a row, without its routing: a row's question was asked."""
    stored = example.metadata
    return Item(
        item_id=stored["item_id"],
        domain=stored["domain"],
        stem=stored["question"],
        response_type=stored["question_type"],
        options=tuple(stored.get("options") or ()),
        codes=tuple(stored.get("codes") or ()),
        scale=stored.get("scale") or "ordered",
        reverse=bool(stored.get("reverse")),
        construct=stored.get("construct") or "",
        shown=tuple(stored.get("shown") or ()),
    )


def render_examples(examples: Iterable[Example]) -> bytes:
    """Return the rows as JSON Lines."""
    lines = (
        json.dumps({"id": row.id, "messages": list(row.messages), "metadata": dict(row.metadata)}, ensure_ascii=False)
        for row in examples
    )
    return "".join(line + "\n" for line in lines).encode()


def load_examples(run: RunDirectory, split: str) -> list[Example]:
    """Return the rows of one split of a run.

    Raises:
        DatasetError: the split is empty, or a line of it is no example.
        StorageError: the dataset stage has not run.
    """
    name = f"dataset/{split}.jsonl"
    rows = []
    for number, line in enumerate(run.read(name).splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append(Example(row["id"], tuple(row["messages"]), row["metadata"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{run.path(name)}, line {number}: this is no example.", "Delete the dataset folder and run again."
            ) from error
    if not rows:
        raise DatasetError(f"{run.path(name)} is empty.", "Raise dataset.records or its share.")
    return rows
