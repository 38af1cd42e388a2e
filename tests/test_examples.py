"""Examples are read back as they were built, and no answer is lost to training."""

import pytest
from toy_models import make_toy_tokenizer

from polypersona.chatml import encode_prompt
from polypersona.engines.base import Answer
from polypersona.errors import DatasetError
from polypersona.examples import (
    build_example,
    encode_examples,
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


def test_every_example_has_answer_tokens_after_its_prompt():
    tokenizer = make_toy_tokenizer()
    ((prompt, answer),) = encode_examples(tokenizer, [example()], 512)
    assert prompt == encode_prompt(tokenizer, example().messages[:-1])
    assert tokenizer.decode(answer) == "Yes. I rest.<|im_end|>"


def test_an_example_without_an_answer_is_named():
    with pytest.raises(DatasetError, match=f"Example {example().id} has an empty answer"):
        encode_examples(make_toy_tokenizer(), [example(), example(" ")], 512)


def test_an_example_whose_answer_would_be_cut_is_named_with_the_length_it_needs():
    tokenizer = make_toy_tokenizer()
    long = example(persona=Persona("p2", PERSONA.attributes, "I moved. " * 20))
    ((prompt, answer),) = encode_examples(tokenizer, [long], 2000)
    needed = len(prompt) + len(answer)
    assert len(encode_examples(tokenizer, [example(), long], needed)) == 2
    with pytest.raises(DatasetError, match=rf"Example {long.id} has {needed} tokens.*max_length to {needed} or more"):
        encode_examples(tokenizer, [example(), long], needed - 1)
