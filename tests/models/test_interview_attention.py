"""pytest tests/models/test_interview_attention.py"""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polypersona.models.interview_attention import INTERVIEW_ATTENTION, PackedRow, pack_batch


def make_model(attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=96, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    return model


def make_rows(num_rows: int, num_turns: int, seed: int = 1) -> list[PackedRow]:
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(97) for _ in range(rng.randint(low, high))]

    rows = []
    for _ in range(num_rows):
        turns = [(tokens(1, 9), tokens(1, 12)) for _ in range(num_turns)]
        rows.append(PackedRow(tokens(1, 30), turns, [rng.randint(1, len(answer)) for _, answer in turns]))
    return rows


def packed_logits(model: LlamaForCausalLM, rows: list[PackedRow]) -> torch.Tensor:
    batch = pack_batch(rows)
    hidden = model.model(
        input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, interviews=batch.layout
    ).last_hidden_state[0]
    return model.lm_head(hidden[batch.sources])


def plain_logits(model: LlamaForCausalLM, rows: list[PackedRow]) -> torch.Tensor:
    parts = []
    for row in rows:
        for question, answer in row.turns:
            before = len(row.card) + len(question)
            ids = torch.tensor([row.card + question + answer])
            parts.append(model(input_ids=ids, use_cache=False).logits[0, before - 1 : before - 1 + len(answer)])
    return torch.cat(parts)


@pytest.mark.parametrize(("num_rows", "num_turns"), [(1, 1), (1, 5), (5, 3), (7, 11)])
def test_a_packed_batch_gives_the_logits_of_every_turn_alone(num_rows: int, num_turns: int) -> None:
    rows = make_rows(num_rows, num_turns)
    with torch.no_grad():
        packed = packed_logits(make_model(INTERVIEW_ATTENTION), rows)
        alone = plain_logits(make_model("sdpa"), rows)
    assert packed.shape == alone.shape
    assert (packed.softmax(-1) - alone.softmax(-1)).abs().max() <= 1e-5
    assert alone.log_softmax(-1).std() > 0.5


def test_a_packed_batch_gives_the_gradients_of_every_turn_alone() -> None:
    rows = make_rows(4, 5)
    answers = torch.tensor([token for row in rows for _, answer in row.turns for token in answer])
    gradients = []
    for attention, logits_of in ((INTERVIEW_ATTENTION, packed_logits), ("sdpa", plain_logits)):
        model = make_model(attention)
        torch.nn.functional.cross_entropy(logits_of(model, rows), answers).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-5, name
        assert gradient.abs().max() > 1e-4, name


def test_what_another_turn_or_respondent_says_changes_nothing() -> None:
    rows = make_rows(3, 4)
    model = make_model(INTERVIEW_ATTENTION)
    kept = rows[1].turns[2]
    before = sum(len(a) for _, a in rows[0].turns) + sum(len(a) for _, a in rows[1].turns[:2])
    other = make_rows(3, 4, seed=2)
    turns = [*rows[1].turns[:2], kept, other[1].turns[3]]
    mixed = [rows[0], PackedRow(rows[1].card, turns, [1, 1, 1, 1]), other[2]]
    with torch.no_grad():
        one, two = packed_logits(model, rows), packed_logits(model, mixed)
    own = slice(before, before + len(kept[1]))
    assert (one[own] - two[own]).abs().max() <= 1e-5
    assert one.shape != two.shape or (one - two).abs().max() > 0.1


def test_sources_stand_before_exactly_the_answers_tokens() -> None:
    rows = make_rows(6, 9)
    batch = pack_batch(rows)
    assert len(batch.ids) == len(batch.positions) == sum(map(len, rows))
    answers = [token for row in rows for _, answer in row.turns for token in answer]
    assert batch.ids[batch.sources + 1].tolist() == answers
    heads = [
        place < head
        for row in rows
        for (_, a), head in zip(row.turns, row.heads, strict=True)
        for place in range(len(a))
    ]
    assert batch.is_head.tolist() == heads
    assert len(set(batch.sources.tolist())) == len(batch.sources)


def test_a_turn_is_numbered_as_if_it_followed_its_card() -> None:
    row = PackedRow([1, 2, 3], [([4, 5], [6]), ([7], [8, 9])], [1, 1])
    batch = pack_batch([row, PackedRow([1], [([2], [3])], [1])])
    assert batch.ids.tolist() == [1, 2, 3, 1, 4, 5, 6, 7, 8, 9, 2, 3]
    assert batch.positions.tolist() == [0, 1, 2, 0, 3, 4, 5, 3, 4, 5, 1, 2]
    assert batch.sources.tolist() == [5, 7, 8, 10]
