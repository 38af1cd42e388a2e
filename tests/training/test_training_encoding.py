"""Rows and batches: the loss sees the answer's tokens, all of them and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_models import FAMILIES, make_toy_model, make_toy_tokenizer

from polypersona.chatml import encode_prompt
from polypersona.errors import DatasetError
from polypersona.models.loading import load_base_model
from polypersona.records import Example
from polypersona.training.encoding import IGNORED, EncodedRow, collate, encode_examples

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


def test_labels_cover_exactly_the_answers() -> None:
    batch = collate(ROWS, pad_id=0)
    assert batch["logits_to_keep"] == 4
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 9, 10],
        [IGNORED, IGNORED, IGNORED, 13],
        [IGNORED, 21, 22, 23],
    ]
    assert batch["input_ids"][1].tolist() == [0, 0, 0, 11, 12, 13]
    assert batch["position_ids"][1].tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_limited_head_and_left_padding_leave_loss_and_gradients_as_they_are(family: str, tmp_path: Path) -> None:
    model = load_base_model(str(make_toy_model(family, tmp_path / family)), dtype="fp32")
    model.requires_grad_(requires_grad=True)
    losses, gradients = [], []
    for is_limited in (True, False):
        model.zero_grad()
        loss = model(**collate(ROWS, 0, is_head_limited=is_limited), use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(next(model.parameters()).grad.clone())
    # Each row by itself, without any padding: the sum over answer tokens is the same.
    model.zero_grad()
    alone = sum(
        model(**collate([row], 0, is_head_limited=False), use_cache=False).loss.item() * row.num_answer for row in ROWS
    )
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0] == pytest.approx(alone / sum(row.num_answer for row in ROWS), abs=1e-5)
    assert torch.isfinite(gradients[0]).all()
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-6
