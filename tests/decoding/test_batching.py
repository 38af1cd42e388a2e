"""pytest tests/decoding/test_batching.py

Sizes, order, earlier runs, tight memory and damage: what may change the speed and must not change an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from toy_models import VOCABULARY
from toy_prompts import (
    CASES,
    DECODERS,
    ENDS,
    Forwards,
    farthest,
    flat,
    group_of,
    lively_model,
    make_decoder,
    make_groups,
    make_prompts,
    outcomes,
    run_flat,
    token_engine,
    tokens,
)

from polypersona.decoding import batching
from polypersona.decoding.batching import BatchSettings, TokenEngine
from polypersona.decoding.cache import KeyValueCache
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import NOT_FINITE, Prompt, PromptGroup, Written
from polypersona.decoding.sampling import SamplingSettings
from polypersona.errors import EngineError, ModelError

SAMPLED = SamplingSettings(0.9, top_k=40, top_p=0.95)
PENALISED = SamplingSettings(0.9, repetition_penalty=1.3)
SIZES = [
    {"slots": 16, "chunk_tokens": 512, "refill": 0.25},
    {"slots": 3, "chunk_tokens": 64, "refill": 0.01},
    {"slots": 64, "chunk_tokens": 1024, "refill": 1.0},
]
FEW = [case for case in CASES if case[0] not in ("mistral", "qwen2")]


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    return lively_model(family, dtype=dtype)


def test_slots_and_chunks_change_no_answer() -> None:
    groups, model = make_groups(2000, seed=1), model_of("llama")
    first, *others = [run_flat(token_engine(model, "native", SAMPLED, **sizes), groups) for sizes in SIZES]
    for other in others:
        differ = sum(a != b for a, b in zip(outcomes(first), outcomes(other), strict=True))
        assert differ <= 2
        assert farthest(first, other) < 1e-4
    assert len({tuple(one.tokens) for one in first}) > 500


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [SamplingSettings(0.0), SAMPLED])
@pytest.mark.parametrize(("family", "decoder"), CASES)
def test_slots_chunks_and_refill_change_no_answer_of_any_decoder(
    family: str, decoder: str, sampling: SamplingSettings
) -> None:
    groups, model = make_groups(800, seed=2), model_of(family)
    first, *others = [run_flat(token_engine(model, decoder, sampling, **sizes), groups) for sizes in SIZES]
    for other in others:
        assert sum(a != b for a, b in zip(outcomes(first), outcomes(other), strict=True)) <= 1


class Recorder:
    """A decoder that notes the tokens of every call."""

    def __init__(self, decoder: Any) -> None:
        self._decoder, self.calls = decoder, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def hidden(self, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        self.calls.append(ids.tolist())
        return self._decoder.hidden(ids, *args)


@pytest.mark.parametrize(("family", "decoder"), FEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_settings_give_the_same_whatever_ran_before(family: str, decoder: str, dtype: torch.dtype) -> None:
    model, groups = model_of(family, dtype), make_groups(40, seed=3)
    recorder, sizes = Recorder(make_decoder(model, decoder)), BatchSettings(slots=64, chunk_tokens=128)
    engine = TokenEngine(recorder, SAMPLED, ENDS, sizes)
    fresh = engine.run(groups)
    # The last of ten does not fit the first chunk; when it follows depends on how many slots there are.
    ten = [group_of([Prompt([3, 4, 5, *tokens(Random(seed), 15)], seed, 8) for seed in range(10)])]
    small = TokenEngine(recorder, SAMPLED, ENDS, sizes).run(ten)
    recorder.calls.clear()
    assert TokenEngine(recorder, SAMPLED, ENDS, sizes).run(ten) == small
    computed = list(recorder.calls)
    assert engine.run(groups) == fresh
    # Longer, wider, more at once and behind another root: the cache that is left is larger.
    engine.run([group_of(make_prompts(Random(4), size, tokens(Random(5), 90)), more=70) for size in (1, *[5] * 14)])
    kept = engine._cache
    assert engine.run(groups) == fresh
    recorder.calls.clear()
    assert engine.run(ten) == small
    assert engine._cache is kept
    # Not by chance: the same tokens are computed together.
    assert recorder.calls == computed


@pytest.mark.parametrize(("family", "decoder"), FEW)
def test_a_group_is_answered_alike_beside_any_others(family: str, decoder: str) -> None:
    groups, others = make_groups(60, seed=6), make_groups(60, seed=7)
    engine = token_engine(model_of(family), decoder, SAMPLED)
    alone = [engine.run([group])[0] for group in groups]
    mixed = [found for pair in zip(groups, others, strict=False) for found in engine.run(pair)[:1]]
    together = engine.run(groups)
    for group, rest, whole in zip(alone, mixed, together, strict=False):
        assert outcomes(group) == outcomes(whole) == outcomes(rest)
        assert max(farthest(group, whole), farthest(rest, whole)) < 1e-4


def test_nothing_asked_is_nothing_answered() -> None:
    engine = token_engine(model_of("llama"))
    assert engine.run([]) == []
    with_nothing_to_do = [PromptGroup((Prompt([3, 4, 5], 1, 0, ((6,), (7,))),), 2, 8)]
    assert engine.run(with_nothing_to_do)[0][0].tokens == []


def test_what_sharing_saved_is_counted() -> None:
    root, random = [9, 8, 7], Random(1)
    groups = [group_of(make_prompts(random, 3, [*root, first, *tokens(random, 10)]), 14) for first in (20, 21)]
    for found in token_engine(model_of("llama")).run(groups):
        assert [one.num_reused for one in found] == [3, 14, 14]


class Spy(KeyValueCache):
    """Every cache that is made, with its bytes and how many live at once."""

    sizes: list[int] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sizes.append(self.num_bytes)


@pytest.mark.parametrize("decoder", ["stock", "native"])
def test_keys_and_values_stay_within_their_bound_and_answers_stay_the_same(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, groups = model_of("mistral"), make_groups(80, seed=8)
    free = token_engine(model, decoder, SAMPLED, slots=64)
    expected = run_flat(free, groups)
    whole = free._cache.num_bytes
    monkeypatch.setattr(batching, "KeyValueCache", Spy)
    per_token = free._decoder.shape.bytes_per_token()
    # 64 shared and 64 own tokens at most: one slot, the root's place and one more.
    for bound in (whole, whole // 2, whole // 5, 4 * 64 * per_token, 3 * 64 * per_token):
        Spy.sizes = []
        engine = token_engine(model, decoder, SAMPLED, slots=64, max_cache_bytes=bound)
        found = run_flat(engine, groups)
        assert outcomes(found) == outcomes(expected)
        assert farthest(found, expected) < 1e-4
        assert Spy.sizes
        assert 0 < max(Spy.sizes) <= bound
        assert max(Spy.sizes) > 0.6 * bound
    engine = token_engine(model, decoder, SAMPLED, max_cache_bytes=3 * 64 * per_token - 1)
    with pytest.raises(ModelError, match=r"need 98,304 bytes; the bound is 98,303") as caught:
        engine.run(groups)
    assert caught.value.hint
    assert max(Spy.sizes) <= 3 * 64 * per_token


@pytest.mark.parametrize("decoder", ["stock", "native"])
def test_a_conversation_longer_than_its_group_allows_is_refused(decoder: str) -> None:
    engine = token_engine(model_of("llama"), decoder)
    prompt = Prompt([3, 4, 5, 6], 1, 10)
    with pytest.raises(EngineError, match=r"needs room for 12 tokens .* allows 11"):
        engine.run([PromptGroup((prompt,), 2, 11)])
    longer = Prompt([3, 4, 5, 6], 1, 1, follow=lambda _: prompt)
    with pytest.raises(EngineError, match="needs room for"):
        engine.run([PromptGroup((longer,), 2, 12)])
    assert engine.run([PromptGroup((prompt,), 2, 12)])[0][0].tokens


class Failing:
    """A decoder that is out of memory at chosen calls."""

    def __init__(self, decoder: Any, fails: Callable[[int], bool]) -> None:
        self._decoder, self._fails, self.calls = decoder, fails, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def hidden(self, *args: Any) -> torch.Tensor:
        self.calls += 1
        if self._fails(self.calls):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._decoder.hidden(*args)


@pytest.mark.parametrize("decoder", ["stock", "native"])
def test_out_of_memory_halves_the_slots_for_good(decoder: str, caplog: pytest.LogCaptureFixture) -> None:
    model, groups = model_of("llama"), make_groups(80, seed=9)
    expected = run_flat(token_engine(model, decoder, SAMPLED, slots=16, chunk_tokens=600), groups)
    failing = Failing(make_decoder(model, decoder), lambda call: call in (5, 30))
    engine = TokenEngine(failing, SAMPLED, ENDS, BatchSettings(16, 600))
    with caplog.at_level(logging.WARNING):
        found = run_flat(engine, groups)
    assert outcomes(found) == outcomes(expected)
    assert [record.message for record in caplog.records] == [
        "Out of memory with 16 slots; going on with 8.", "Out of memory with 8 slots; going on with 4.",
    ]  # fmt: skip
    assert engine.settings == BatchSettings(4, 256)
    assert engine._cache.num_slots == 4
    calls = failing.calls
    assert run_flat(engine, groups) == found
    assert failing.calls > calls
    assert engine.settings.slots == 4


def test_with_one_slot_out_of_memory_is_an_error_and_small_chunks_never_grow() -> None:
    failing = Failing(make_decoder(model_of("llama"), "native"), lambda _: True)
    engine = TokenEngine(failing, SAMPLED, settings=BatchSettings(4, 64))
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(make_groups(5))
    assert engine.settings == BatchSettings(1, 64)
    assert failing.calls == 3


def damaged_prompts(groups: list[PromptGroup], token: int) -> list[bool]:
    return [
        any(token in part for part in (prompt.ids, *prompt.options)) for group in groups for prompt in group.prompts
    ]


@pytest.mark.parametrize(("family", "decoder"), FEW)
@pytest.mark.parametrize("sampling", [SamplingSettings(0.0), SAMPLED])
def test_numbers_that_are_not_finite_end_their_own_prompts_alone(
    family: str, decoder: str, sampling: SamplingSettings
) -> None:
    groups = make_groups(100, seed=10)
    # A token that stands in some prompts' own part and in some shared beginnings, and that no sound prompt writes.
    counts = {token: damaged_prompts(groups, token).count(True) for token in range(3, VOCABULARY)}
    whole = token_engine(model_of(family), decoder, sampling)
    expected = run_flat(whole, groups)
    written = {token for one in expected for token in one.tokens}
    chosen = {token for prompt in flat(groups) for choice in prompt.choices for token in choice}
    token = next(token for token, count in counts.items() if 9 < count < 40 and token not in written | chosen)
    model = lively_model(family)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    engine = token_engine(model, decoder, sampling)
    are_damaged = damaged_prompts(groups, token)
    for _ in range(2):
        found = run_flat(engine, groups)
        for one, before, is_damaged, prompt in zip(found, expected, are_damaged, flat(groups), strict=True):
            if not is_damaged:
                assert (one.error, one.choice, one.tokens) == ("", before.choice, before.tokens)
            elif token in prompt.ids:
                assert (one.error, one.choice, one.tokens, one.log_probs) == (NOT_FINITE, None, [], [])
    sound = [group for group in groups if not any(damaged_prompts([group], token))]
    assert outcomes(run_flat(engine, sound)) == outcomes(run_flat(whole, sound))


def test_damage_in_what_all_groups_share_is_forgotten_with_it() -> None:
    for decoder in DECODERS:
        model = lively_model("llama")
        with torch.no_grad():
            model.get_input_embeddings().weight[5] = float("nan")
        random, engine = Random(3), token_engine(model, decoder)
        beginning = [5, *tokens(random, 70)]
        bad = [group_of(make_prompts(random, size, [*beginning, size])) for size in (1, *range(10, 30))]
        assert {one.error for one in run_flat(engine, bad)} == {NOT_FINITE}
        good = [group for group in make_groups(60, seed=11) if not any(damaged_prompts([group], 5))]
        kept = engine._cache
        found = run_flat(engine, good)
        assert outcomes(found) == outcomes(Forwards(lively_model("llama")).answer(flat(good)))
        assert engine._cache is kept
        # Where nothing is common to all, nothing is copied over what stood in a group's place.
        assert {one.error for one in run_flat(engine, bad)} == {NOT_FINITE}
        apart = [group_of(make_prompts(random, 4, [at, *[9] * (at - 10)])) for at in range(10, 40)]
        apart = [group for group in apart if not any(damaged_prompts([group], 5))]
        found = run_flat(engine, apart)
        assert outcomes(found) == outcomes(Forwards(lively_model("llama")).answer(flat(apart)))
        assert engine._cache is kept


@pytest.mark.parametrize("sampling", [SAMPLED, PENALISED, SamplingSettings(1.3, min_p=0.02), SamplingSettings(1.0)])
def test_sampled_texts_equal_those_of_the_plain_engine(sampling: SamplingSettings) -> None:
    groups, ends = make_groups(60, seed=12), ENDS
    plain = PlainTokenEngine(model_of("qwen2"), sampling, "cpu", ends).run(groups)
    for decoder in DECODERS:
        found = token_engine(model_of("qwen2"), decoder, sampling).run(groups)
        for one, other in zip(found, plain, strict=True):
            assert outcomes(one) == outcomes(other)
            assert [written.is_ended for written in one] == [written.is_ended for written in other]


def test_a_stop_string_ends_a_text() -> None:
    model, groups = model_of("llama"), make_groups(40, seed=13)

    def is_stopped(written: list[int]) -> bool:
        return len(written) >= 2 and written[-1] % 5 == 0

    engine = TokenEngine(make_decoder(model, "native"), SAMPLED, ENDS, BatchSettings(5, 96), is_stopped)
    plain = PlainTokenEngine(model, SAMPLED, "cpu", ENDS, is_stopped).run(groups)
    found = engine.run(groups)
    assert [outcomes(one) for one in found] == [outcomes(one) for one in plain]
    stopped = [one for group in found for one in group if one.is_ended and one.tokens[-1] != 2]
    assert len(stopped) > 3
    assert all(is_stopped(one.tokens) for one in stopped)
    assert Written() not in stopped
