"""pytest tests/decoding/test_conversations.py

Several turns in one slot against plain forwards over the whole conversation so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from toy_prompts import (
    CASES,
    END,
    ENDS,
    GREEDY,
    Forwards,
    farthest,
    lively_model,
    make_prompt,
    outcomes,
    token_engine,
    tokens,
)

from polypersona.decoding.batching import TokenEngine
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import NOT_FINITE, Prompt, PromptGroup, Written
from polypersona.decoding.sampling import SamplingSettings

NUM_TURNS = 3
DAMAGED = 7


@cache
def model_of(family: str, is_damaged: bool = False) -> Any:
    model = lively_model(family)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[DAMAGED] = 0.99 * head[END]  # never the likeliest
        if is_damaged:
            model.get_input_embeddings().weight[DAMAGED] = float("nan")
    return model


@dataclass
class Conversation:
    """Three turns of random kinds; records what was asked in full and what came of it."""

    index: int
    shared: list[int]
    damaged_turn: int = -1
    asked: list[Prompt] = field(default_factory=list)
    came: list[Written] = field(default_factory=list)

    def begin(self) -> Prompt:
        self.asked, self.came = [], []
        return self.ask(self.shared, 0)

    def ask(self, before: list[int], num_taken_back: int) -> Prompt:
        """Return the next turn: all tokens in the first, only what is new later."""
        turn = len(self.asked)
        prompt = make_prompt(Random(f"{self.index}/{turn}"), [])
        prompt = replace(prompt, options=sound(prompt.options), choices=sound(prompt.choices))
        ids = [*sound([prompt.ids])[0], *[DAMAGED] * (turn == self.damaged_turn)]
        self.asked.append(replace(prompt, ids=[*before, *ids]))
        return replace(
            prompt, ids=[*before, *ids] if turn == 0 else ids, follow=self.follow, num_taken_back=num_taken_back
        )

    def follow(self, written: Written) -> Prompt | None:
        self.came.append(written)
        prompt = self.asked[-1]
        if len(self.asked) == NUM_TURNS:
            return None
        said = [*(prompt.chosen(written.choice) if written.choice is not None else ()), *written.tokens]
        if said and said[-1] in ENDS and written.tokens:
            said.pop()
        num_taken_back = min(len(said), self.index % 3)
        whole = [*prompt.ids, *said]
        return self.ask(whole[: len(whole) - num_taken_back], num_taken_back)


def sound(parts: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(token if token != DAMAGED else 8 for token in part) for part in parts)


def conversations(count: int = 40, *, damaged: bool = False) -> list[Conversation]:
    random, found = Random(2), []
    root = tokens(random, 5)
    shared = [[*root, *tokens(random, random.randint(1, 30))] for _ in range(count // 3 + 1)]
    for index in range(count):
        turn = index // 4 % NUM_TURNS if damaged and index % 4 == 1 else -1
        found.append(Conversation(index, list(sound([shared[index // 3]])[0]), turn))
    return found


def hold(engine: TokenEngine | PlainTokenEngine, held: list[Conversation]) -> list[Written]:
    """Run the conversations, three a group, and return what came of their first turns."""
    groups = []
    for start in range(0, len(held), 3):
        part = held[start : start + 3]
        groups.append(PromptGroup(tuple(one.begin() for one in part), len(part[0].shared), 200))
    return [written for group in engine.run(groups) for written in group]


@pytest.mark.parametrize(("family", "decoder"), CASES)
def test_three_turns_equal_plain_forwards_over_the_whole_conversation(family: str, decoder: str) -> None:
    model, held = model_of(family), conversations()
    first = hold(token_engine(model, decoder), held)
    assert [one.came[0] for one in held] == first
    for turn in range(NUM_TURNS):
        came, asked = [one.came[turn] for one in held], [one.asked[turn] for one in held]
        expected = Forwards(model).answer(asked)
        assert outcomes(came) == outcomes(expected)
        assert farthest(came, expected) < 1e-4
    ended = [one for one in held for written in one.came[:-1] if written.is_ended]
    assert ended
    for one in held:
        # What an earlier turn computed is not computed again: all but its last token, and what was taken back.
        for turn in (1, 2):
            before = one.came[turn].num_reused
            assert before >= len(one.asked[turn - 1].ids) - 2
            assert before < len(one.asked[turn].ids)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings(0.9, top_k=30, repetition_penalty=1.2)])
def test_the_plain_engine_holds_the_same_conversations(sampling: SamplingSettings) -> None:
    packed, plain = conversations(), conversations()
    hold(token_engine(model_of("llama"), "native", sampling), packed)
    hold(PlainTokenEngine(model_of("llama"), sampling, "cpu", ENDS), plain)
    for one, other in zip(packed, plain, strict=True):
        assert outcomes(one.came) == outcomes(other.came)
        assert [list(prompt.ids) for prompt in one.asked] == [list(prompt.ids) for prompt in other.asked]


@pytest.mark.parametrize(("family", "decoder"), CASES)
def test_a_conversation_that_breaks_midway_ends_and_leaves_the_others_alone(family: str, decoder: str) -> None:
    damaged, whole = conversations(damaged=True), conversations()
    engine = token_engine(model_of(family, True), decoder)
    hold(engine, damaged)
    hold(token_engine(model_of(family), decoder), whole)
    broken = 0
    for one, other in zip(damaged, whole, strict=True):
        if one.damaged_turn < 0:
            assert outcomes(one.came) == outcomes(other.came)
            continue
        broken += 1
        *before, last = one.came
        assert len(before) == one.damaged_turn
        assert outcomes(before) == outcomes(other.came[: one.damaged_turn])
        assert (last.error, last.choice, last.tokens) == (NOT_FINITE, None, [])
    assert broken >= 9
    again = conversations()
    hold(engine, again)
    assert [outcomes(one.came) for one in again] == [outcomes(one.came) for one in whole]
