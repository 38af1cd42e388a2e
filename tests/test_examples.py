"""Examples are read back as they were built."""

import pytest

from polypersona.engines.base import Answer
from polypersona.errors import DatasetError, StorageError
from polypersona.examples import (
    build_example,
    example_item,
    example_persona,
    load_examples,
    render_examples,
)
from polypersona.records import Assignment, Item, Persona
from polypersona.storage import RunDirectory

PERSONA = Persona("p1", {"age": 34, "values": ("family", "security")}, "I moved.", 1.5)
ITEM = Item(
    "health.likert.01", "health", "I feel well.", "likert", ("No", "Yes"), (0, 1), reverse=True, construct="health"
)


def example(text="Yes. I rest.", persona=PERSONA):
    return build_example(persona, ITEM, Answer("x", text, "complete", "I rest.", 1, "Yes"), "labels")


def test_a_row_is_read_back_as_it_was_built(tmp_path):
    run = RunDirectory.at(tmp_path)
    run.write("dataset/train.jsonl", render_examples([example()]))
    (loaded,) = load_examples(run, "train")
    assert example_persona(loaded) == PERSONA
    assert example_item(loaded) == ITEM
    assert loaded.id == Assignment("p1", "health.likert.01").assignment_id
    assert loaded.metadata["reference"] == loaded.messages[2]["content"] == "Yes. I rest."


def test_rows_are_read_back_in_order_whatever_their_texts_hold(tmp_path):
    run = RunDirectory.at(tmp_path)
    odd = ["Yes.", "Yes. \u2028two\u0085lines\x0b", 'Yes. "quoted" \\', "Yes. ünïcode 🙂", "Yes.\nNo."]
    rows = [example(text) for text in odd]
    data = render_examples(rows)
    assert data.count(b"\n") == len(odd)
    run.write("dataset/train.jsonl", data)
    assert [row.messages[2]["content"] for row in load_examples(run, "train")] == odd


def test_a_persona_keeps_the_type_of_each_attribute(tmp_path):
    persona = Persona("p9", {"age": 34, "height": 1.5, "is_member": True, "name": "Ann", "values": ("a", "b")}, "", 0.5)
    run = RunDirectory.at(tmp_path)
    run.write("dataset/test.jsonl", render_examples([example(persona=persona)]))
    (loaded,) = load_examples(run, "test")
    assert example_persona(loaded) == persona
    assert type(example_persona(loaded).attributes["is_member"]) is bool


def test_a_split_that_is_empty_broken_or_not_there_is_named(tmp_path):
    run = RunDirectory.at(tmp_path)
    with pytest.raises(StorageError, match=r"There is no .*/dataset/test\.jsonl"):
        load_examples(run, "test")
    run.write("dataset/test.jsonl", b"")
    with pytest.raises(DatasetError, match=r"dataset/test\.jsonl is empty"):
        load_examples(run, "test")
    for broken in (b"{", b"[]", b'{"id": "x"}', b"\xff", b""):
        run.write("dataset/test.jsonl", render_examples([example()]) + broken + b"\n")
        with pytest.raises(DatasetError, match=r"dataset/test\.jsonl, line 2: this is no example"):
            load_examples(run, "test")
