"""Rows and batches: the loss sees the answer's tokens, all of them and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import FAMILIES, make_toy_model, make_toy_tokenizer

from polypersona.chatml import encode_prompt
from polypersona.errors import DatasetError
from polypersona.models.loading import load_base_model
from polypersona.recipe_sections import FinetuneSettings
from polypersona.records import Example
from polypersona.training.encoding import EncodedRow, collate, encode_examples, num_shared_tokens
from polypersona.training.job import TrainingJob
from polypersona.training.trainable import build_trainable

ROWS = (EncodedRow((5, 6, 7, 8, 9, 10), 2), EncodedRow((11, 12, 13), 1), EncodedRow((20, 21, 22, 23), 3))


def example(question: str, answer: str) -> Example:
    roles = ("system", "user", "assistant")
    texts = ("You are a survey respondent.", question, answer)
    return Example("e1", tuple({"role": r, "content": t} for r, t in zip(roles, texts, strict=True)), {})


def test_the_answer_and_its_end_of_turn_are_what_is_learnt() -> None:
    tokenizer = make_toy_tokenizer()
    row = encode_examples(tokenizer, [example("How satisfied?", "Satisfied.")], 512).rows[0]
    assert tokenizer.decode(row.ids[-row.num_answer :]) == "Satisfied.<|im_end|>"
    assert tokenizer.decode(row.ids[: -row.num_answer]).endswith("<|im_start|>assistant\n")
    assert list(row.ids[: -row.num_answer]) == encode_prompt(tokenizer, example("How satisfied?", "").messages[:-1])


def test_a_long_prompt_loses_its_head_and_is_counted_and_the_answer_stays_whole() -> None:
    tokenizer = make_toy_tokenizer()
    whole = encode_examples(tokenizer, [example("satisfied " * 40, "Yes.")], 512)
    cut = encode_examples(tokenizer, [example("satisfied " * 40, "Yes.")], 48)
    assert (whole.num_shortened, cut.num_shortened) == (0, 1)
    assert len(cut.rows[0].ids) == 48
    assert cut.rows[0].ids == whole.rows[0].ids[-48:]
    assert cut.rows[0].num_answer == whole.rows[0].num_answer


def test_an_answer_that_leaves_no_room_for_its_prompt_is_refused() -> None:
    with pytest.raises(DatasetError, match="'e1'"):
        encode_examples(make_toy_tokenizer(), [example("How?", "money is tight " * 40)], 64)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_example_without_an_answer_is_named(answer: str) -> None:
    with pytest.raises(DatasetError, match="'e1' has an empty answer"):
        encode_examples(make_toy_tokenizer(), [example("How?", answer)], 64)


def test_what_is_learnt_is_exactly_the_answers() -> None:
    batch = collate(ROWS, pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0], [20, 21, 22, 23, 0, 0]]
    assert batch.targets.tolist() == [9, 10, 13, 21, 22, 23]
    assert batch.ids.flatten()[batch.sources + 1].tolist() == batch.targets.tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_a_limited_head_leave_the_loss_of_each_row_as_the_model_has_it(
    family: str, attention: Any, tmp_path: Path
) -> None:
    base = str(make_toy_model(family, tmp_path / family))
    settings = FinetuneSettings(
        epochs=1, learning_rate=1e-3, rank=2, alpha=4, dropout=0, batch_size=4, accumulation=1, max_length=64
    )
    trainable = build_trainable(TrainingJob(base, base, settings, seed=7, attention=attention), "cpu")
    model = load_base_model(base, dtype="fp32")
    expected = 0.0
    for row in ROWS:  # by itself: no padding, no limited head, the library's own loss
        prompt = len(row.ids) - row.num_answer
        labels = torch.tensor([[-100] * prompt + list(row.ids[prompt:])])
        expected += model(input_ids=torch.tensor([row.ids]), labels=labels).loss.item() * row.num_answer
    loss = trainable.summed_loss(collate(ROWS, 0))
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in trainable.parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_that_all_rows_share_is_computed_once_and_changes_nothing(family: str, tmp_path: Path) -> None:
    base = str(make_toy_model(family, tmp_path / family))
    settings = FinetuneSettings(
        epochs=1, learning_rate=1e-3, rank=2, alpha=4, dropout=0, batch_size=4, accumulation=1, max_length=64
    )
    trainable = build_trainable(TrainingJob(base, base, settings, seed=7), "cpu")
    head = tuple(range(30, 42))
    rows = [EncodedRow(head + row.ids, row.num_answer) for row in ROWS]
    assert trainable.shares_prompts
    assert num_shared_tokens(rows) == len(head)
    losses, gradients = [], []
    for shared in (0, len(head)):
        batch = collate(rows, 0, shared)
        trainable.model.zero_grad()
        loss = trainable.summed_loss(batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad.clone() for parameter in trainable.parameters])
    assert batch.ids.shape == (1, len(head) + 3 * 6)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert max(float((one - other).abs().max()) for one, other in zip(*gradients, strict=True)) <= 1e-5
    assert num_shared_tokens(ROWS) == 0
