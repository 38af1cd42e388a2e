"""The loss on choices: rows that are trees of one card's questions teach what the examples teach one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_models import make_toy_model

from polypersona.chatml import encode_prompt, encode_text, render_choice
from polypersona.engines.base import Answer
from polypersona.errors import DatasetError
from polypersona.examples import build_example
from polypersona.models.loading import load_tokenizer
from polypersona.recipe_sections import FinetuneSettings
from polypersona.records import Assignment, Example, Item, Persona
from polypersona.training.choices import QUESTIONS_PER_ROW, ChoiceRow, bound_sizes, encode_choices, num_rows
from polypersona.training.encoding import collate
from polypersona.training.job import TrainingJob
from polypersona.training.loop import Listeners, Place, train
from polypersona.training.sampling import draw_epoch, training_order
from polypersona.training.trainable import Trainable, build_trainable
from polypersona.training.validation import validation_loss

ITEMS = tuple(
    Item(f"i{number}", "survey", stem, "likert", options)
    for number, (stem, options) in enumerate(
        (
            ("Do you vote?", ("Always", "Not so often", "Not at all")),
            ("Do you trust people?", ("A lot", "A little", "Not at all")),
            ("Is it easy?", ("Yes", "No")),
            ("How important is it?", ("Very important", "Somewhat important", "Not so important", "Not at all")),
            ("Are you well?", ("Yes", "No")),
        )
    )
)
SETTINGS = FinetuneSettings(
    epochs=30, learning_rate=1e-2, rank=4, alpha=8, dropout=0.0, batch_size=2, accumulation=1, max_length=512,
    loss="options", validation_rows=0,
)  # fmt: skip


def make_example(number: int, item: Item, option: int, weight: float = 1.0, show: str = "labels") -> Example:
    persona = Persona(f"p{number}", {"age": "18–29" if number % 2 else "60 or more", "gender": "Female"})
    label = item.options[option]
    text = render_choice(label, show, option)  # type: ignore[arg-type]
    cell = Assignment(persona.persona_id, item.item_id).assignment_id
    example = build_example(persona, item, Answer(cell, text, "complete", code=option + 1, label=label), show)  # type: ignore[arg-type]
    return Example(example.id, example.messages, {**example.metadata, "sampling_weight": weight})


EXAMPLES = [make_example(n, item, n % len(item.options), 0.5 + n % 3) for n in range(6) for item in ITEMS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")


def make_job(base: Path) -> TrainingJob:
    return TrainingJob(str(base), str(base), SETTINGS, seed=3)


@pytest.fixture(scope="module")
def trainable(base: Path) -> Trainable:
    """A model whose adapter has an effect."""
    found = build_trainable(make_job(base), "cpu")
    with torch.no_grad():
        for parameter in found.parameters:
            parameter.normal_(0, 0.2)
    return found


def test_a_row_teaches_what_its_examples_teach_one_by_one(base: Path, trainable: Trainable) -> None:
    tokenizer = load_tokenizer(str(base))
    rows = encode_choices(tokenizer, EXAMPLES, 512, seed=3)
    whole = sum(float(row.weight) / row.num_answer * _loss(trainable, row) for row in rows)
    assert whole == pytest.approx(_loss_one_by_one(trainable, tokenizer, EXAMPLES), rel=1e-4)


def test_the_validation_loss_is_the_mean_over_the_people_of_all_cards(base: Path, trainable: Trainable) -> None:
    # Two cards, one of many people; the first three questions are theirs alone.
    examples = [make_example(0, item, 0, 90.0) for item in ITEMS] + [make_example(1, item, 1) for item in ITEMS[3:]]
    tokenizer = load_tokenizer(str(base))
    rows = encode_choices(tokenizer, examples, 512, seed=3)
    assert sorted(row.num_answer for row in rows) == [1, 2, 4]
    mean = _loss_one_by_one(trainable, tokenizer, examples) / (5 * 90.0 + 2)
    for batch_size in (1, 3):
        assert validation_loss(trainable, rows, 0, batch_size) == pytest.approx(mean, rel=1e-4)


def _loss_one_by_one(trainable: Trainable, tokenizer: Any, examples: Sequence[Example]) -> float:
    alone = 0.0
    for example in examples:
        prompt = encode_prompt(tokenizer, example.messages[:-1])
        scores = []
        for label in example.metadata["options"]:
            option = encode_text(tokenizer, render_choice(label))
            with torch.no_grad():
                logits = trainable.model(input_ids=torch.tensor([[*prompt, *option]])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(option)))
        chosen = example.metadata["options"].index(example.metadata["label"])
        alone -= example.metadata["sampling_weight"] * float(torch.tensor(scores).log_softmax(0)[chosen])
    return alone


def _loss(trainable: Trainable, row: ChoiceRow) -> float:
    with torch.no_grad():
        return float(trainable.summed_loss(collate([row], 0)))


def test_a_card_is_computed_once_for_its_questions(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    rows = encode_choices(tokenizer, EXAMPLES, 512, seed=3)
    assert len(rows) == num_rows(EXAMPLES, "options", 3) == 2 * -(-len(ITEMS) // QUESTIONS_PER_ROW)
    prompts = {tuple(encode_prompt(tokenizer, example.messages[:-1])) for example in EXAMPLES}
    assert sum(len(row.ids) for row in rows) < 0.8 * sum(map(len, prompts))
    assert sum(row.weight for row in rows) == pytest.approx(sum(e.metadata["sampling_weight"] for e in EXAMPLES))


def test_lettered_options_are_told_apart_by_the_letter_alone(base: Path) -> None:
    [row] = encode_choices(load_tokenizer(str(base)), [make_example(1, ITEMS[3], 2, show="letters")], 512, seed=3)
    assert [len(option) for option in row.questions[0].options] == [1, 1, 1, 1]
    assert row.questions[0].weights == (0.0, 0.0, 1.0, 0.0)


def test_training_on_choices_learns_the_shares(base: Path, tmp_path: Path) -> None:
    outcome = train(make_job(base), EXAMPLES, [], Place(tmp_path), Listeners())
    first, last = outcome.log[0]["loss"], outcome.log[-1]["loss"]
    assert last < 0.8 * first


def test_an_answer_that_is_no_choice_is_refused(base: Path) -> None:
    example = make_example(1, ITEMS[0], 0)
    bare = Example(example.id, example.messages, {**example.metadata, "options": [], "label": ""})
    with pytest.raises(DatasetError, match="no choice among options"):
        encode_choices(load_tokenizer(str(base)), [bare], 512, seed=3)


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=60), st.integers(0, 2**32))
def test_an_epoch_draws_each_row_by_its_weight_rounded_up_or_down(weights: list[float], seed: int) -> None:
    drawn = Counter(draw_epoch(weights, random.Random(seed)))
    step = sum(weights) / len(weights)
    assert abs(sum(drawn.values()) - len(weights)) <= 1
    assert all(abs(drawn[index] - weight / step) < 1 + 1e-6 for index, weight in enumerate(weights))


def test_a_weighted_order_has_the_steps_of_a_plain_one_and_repeats_with_its_seed() -> None:
    lengths, weights = [10] * 40, [0.1] * 20 + [1.9] * 20
    order = training_order(lengths, 8, 5, 2, weights)
    assert len(order) == len(training_order(lengths, 8, 5, 2)) == 80
    assert order == training_order(lengths, 8, 5, 2, weights) != training_order(lengths, 8, 6, 2, weights)
    assert sum(index >= 20 for index in order) == pytest.approx(76, abs=8)


@pytest.mark.parametrize("show", ["labels", "letters"])
def test_no_row_is_longer_than_its_bound(show: str) -> None:
    examples = [make_example(n, item, n % len(item.options), show=show) for n in range(6) for item in ITEMS]
    rows = encode_choices(load_tokenizer("tiny"), examples, 512, seed=3)
    bound = bound_sizes(examples, "options", seed=3)
    assert max(len(row.ids) for row in rows) <= bound.tokens
    assert max(sum(map(len, one.options)) for row in rows for one in row.questions) <= bound.answer_tokens
    assert bound.answer_tokens < bound.tokens < 4 * 512
    alone = bound_sizes(examples, "tokens", seed=3)
    assert alone.tokens < bound.tokens - bound.answer_tokens < 2 * alone.tokens  # the card counts once
