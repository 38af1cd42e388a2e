"""pytest tests/decoding/test_sampling.py"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.decoding import sampling
from polypersona.decoding.choice import choose_option, uniform, uniforms
from polypersona.decoding.native import load_kernels
from polypersona.decoding.sampling import SamplingSettings, TokenSampler
from polypersona.records import seed_from

DRAWS = 20_000
LOGITS = (1.0, -0.5, 2.0, 0.0, 0.5, -2.0, 1.5, -1.0)
SEEDS = [seed_from("sampling", number) for number in range(DRAWS)]


needs_compiler = pytest.mark.skipif(load_kernels(torch.float32) is None, reason="there is no C compiler")


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the compiled sampler and without."""
    if request.param == "torch":
        monkeypatch.setattr(sampling, "load_kernels", lambda _: None)


def draw(
    logits: torch.Tensor, seeds: Sequence[int], steps: Sequence[int], chosen: SamplingSettings, **history: Any
) -> list[int]:
    tokens, are_finite = TokenSampler(chosen).draw(logits, seeds, steps, **history)
    assert all(are_finite)
    return tokens


def chi_square_p(counts: np.ndarray, probs: np.ndarray) -> float:
    """Upper tail of χ² with len − 1 degrees of freedom (an odd number here), by its closed form."""
    expected = probs * counts.sum()
    value = float(((counts - expected) ** 2 / expected).sum())
    half, degrees = torch.tensor(value / 2, dtype=torch.float64), len(probs) - 1
    return float(torch.special.gammaincc(torch.tensor(degrees / 2, dtype=torch.float64), half))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def plain_filter(logits: np.ndarray, chosen: SamplingSettings) -> np.ndarray:
    """The probabilities that remain, by the definitions and with plain loops; of ties the earlier token wins."""
    probs = softmax(logits.astype(np.float64) / chosen.temperature)
    ranked = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
    if chosen.top_k:
        ranked = ranked[: chosen.top_k]
    if chosen.top_p < 1:
        total, before, kept = sum(probs[ranked]), 0.0, []
        for token in ranked:
            if before < chosen.top_p * total:
                kept.append(token)
            before += probs[token]
        ranked = kept
    ranked = [token for token in ranked if probs[token] >= chosen.min_p * probs.max()]
    left = np.zeros_like(probs)
    left[ranked] = probs[ranked]
    return left / left.sum()


def test_uniform_is_a_function_of_seed_and_step_in_the_unit_interval() -> None:
    values = np.array([uniform(seed, step) for seed in SEEDS[:500] for step in range(20)])
    assert values.min() >= 0
    assert values.max() < 1
    assert len(set(values.tolist())) == len(values)
    assert chi_square_p(np.histogram(values, 16, (0, 1))[0], np.full(16, 1 / 16)) > 1e-4
    steps = values.reshape(500, 20)
    assert abs(np.corrcoef(steps[:, :-1].ravel(), steps[:, 1:].ravel())[0, 1]) < 0.04
    assert [uniform(seed, 3) for seed in reversed(SEEDS[:9])] == [uniform(seed, 3) for seed in SEEDS[:9]][::-1]


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_uniform_never_leaves_the_unit_interval(seed: int, step: int) -> None:
    assert 0 <= uniform(seed, step) < 1


def test_neighbouring_seeds_are_unrelated() -> None:
    values = np.array([uniform(seed, 1) for seed in range(DRAWS)])
    assert chi_square_p(np.histogram(values, 16, (0, 1))[0], np.full(16, 1 / 16)) > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor(LOGITS).expand(DRAWS, -1)
    tokens = draw(logits, SEEDS, [1] * DRAWS, SamplingSettings(temperature))
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert chi_square_p(counts, softmax(np.array(LOGITS) / temperature)) > 1e-4
    assert chi_square_p(counts, softmax(np.array(LOGITS) / (temperature * 1.15))) < 1e-4


def test_options_are_drawn_from_their_probabilities() -> None:
    log_probs = [-3.0, -1.2, -2.0, -0.9, -5.0]
    drawn = [choose_option(log_probs, seed, is_greedy=False) for seed in SEEDS]
    counts = np.bincount([index for index, _ in drawn], minlength=5)
    probs = softmax(np.array(log_probs))
    assert chi_square_p(counts, probs) > 1e-4
    assert drawn[0][1] == pytest.approx(probs.tolist(), abs=1e-15)
    assert choose_option(log_probs, 1, is_greedy=True)[0] == 3


def test_the_draw_of_an_option_says_nothing_of_the_first_token() -> None:
    chosen = np.array([choose_option([0.0, 0.0], seed, is_greedy=False)[0] for seed in SEEDS])
    tokens = draw(torch.zeros(DRAWS, 2), SEEDS, [1] * DRAWS, SamplingSettings())
    assert abs(np.corrcoef(chosen, tokens)[0, 1]) < 0.03


def test_a_row_is_drawn_alike_whatever_stands_beside_it() -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(3))
    chosen = SamplingSettings(0.9, top_k=40, top_p=0.9, min_p=0.01)
    together = draw(logits, SEEDS[:64], range(64), chosen)
    alone = [draw(logits[i : i + 1], SEEDS[i : i + 1], [i], chosen)[0] for i in range(64)]
    turned = draw(logits.flip(0), SEEDS[:64][::-1], range(63, -1, -1), chosen)
    assert together == alone == turned[::-1]


logit_rows = st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 0.5001, 1.0, 3.0]), min_size=2, max_size=12)
filters = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.33, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.45, 0.95]),
)


@settings(max_examples=150, deadline=None)
@given(logit_rows, filters)
def test_a_filtered_token_is_never_drawn_and_every_other_can_be(row: list[float], chosen: SamplingSettings) -> None:
    expected = plain_filter(np.array(row), chosen)
    draws = 400
    tokens = draw(torch.tensor(row).expand(draws, -1), SEEDS[:draws], [1] * draws, chosen)
    shares = np.bincount(tokens, minlength=len(row)) / draws
    assert (shares[expected == 0] == 0).all()
    assert np.abs(shares - expected).max() < 0.13


@pytest.mark.parametrize("size", [5, 300])
@pytest.mark.usefixtures("way")
def test_of_tied_tokens_top_k_keeps_the_first_and_never_more_than_k(size: int) -> None:
    logits = torch.full((1000, size), -1.0)
    logits[:, 1:4] = 2.0
    tokens = draw(logits, SEEDS[:1000], [1] * 1000, SamplingSettings(top_k=2))
    assert set(tokens) == {1, 2}
    one = draw(logits, SEEDS[:1000], [1] * 1000, SamplingSettings(top_p=0.3))
    assert set(one) == ({1} if size == 5 else {1, 2, 3, *one})


@settings(deadline=None)
@given(logit_rows)
def test_temperature_zero_takes_the_likeliest(row: list[float]) -> None:
    for chosen in (SamplingSettings(0.0), SamplingSettings(1e-6), SamplingSettings(1e-3, top_k=1)):
        assert row[draw(torch.tensor([row]), [5], [1], chosen)[0]] == max(row)
    assert draw(torch.tensor([row]), [5], [1], SamplingSettings(0.0))[0] == row.index(max(row))


def test_an_end_of_the_distribution_without_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.1] * 7 + [-1e9] * 3])
    monkeypatch.setattr(sampling, "uniforms", lambda *_: np.ones(1))
    assert draw(logits, [1], [1], SamplingSettings()) == [6]
    assert draw(logits.flip(-1), [1], [1], SamplingSettings()) == [9]
    monkeypatch.setattr(sampling, "uniforms", lambda *_: np.zeros(1))
    assert draw(logits.flip(-1), [1], [1], SamplingSettings()) == [3]
    assert draw(logits, [1], [1], SamplingSettings()) == [0]


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_many_numbers_are_those_of_one_by_one(pairs: list[tuple[int, int]]) -> None:
    seeds, steps = zip(*pairs, strict=True)
    assert uniforms(seeds, steps).tolist() == [uniform(seed, step) for seed, step in pairs]


@pytest.mark.parametrize("chosen", [
    SamplingSettings(0.8, top_k=30), SamplingSettings(1.0, top_p=0.85), SamplingSettings(1.2, 60, 0.9, 0.01),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("way")
def test_filtered_tokens_of_a_large_vocabulary_follow_the_renormalised_softmax(
    chosen: SamplingSettings, dtype: torch.dtype
) -> None:
    row = (torch.randn(700, generator=torch.Generator().manual_seed(5)) * 2).to(dtype)
    shares = plain_filter(row.double().numpy(), chosen)
    counts = np.bincount(draw(row.expand(DRAWS, -1), SEEDS, [1] * DRAWS, chosen), minlength=700)
    possible = shares > 0
    assert counts[~possible].sum() == 0
    often = possible & (shares * DRAWS > 8)
    pooled = [np.append(part[often], part[possible & ~often].sum()) for part in (counts, shares)]
    kept = pooled[1] > 0
    assert chi_square_p(pooled[0][kept], pooled[1][kept]) > 1e-4


@needs_compiler
@settings(max_examples=60)
@given(
    st.integers(1, 5), st.integers(2, 900), st.integers(0, 2**31), st.sampled_from(["none", "some", "many"]), filters,
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_the_compiled_sampler_draws_as_torch_does(
    rows: int, size: int, seed: int, ties: str, chosen: SamplingSettings, is_rounded: bool, has_impossible: bool
) -> None:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3
    logits = {"none": logits, "some": logits.round(decimals=1), "many": logits.clamp(-0.5, 0.5).round()}[ties]
    if has_impossible:
        logits[:, 1::3] = -torch.inf
    if is_rounded:
        logits = logits.bfloat16()
    chosen = replace(chosen, top_k=1 + seed % (size - 1))
    found = [draw(logits, SEEDS[:rows], [step] * rows, chosen) for step in range(5)]
    with mock.patch.object(sampling, "load_kernels", return_value=None):
        assert [draw(logits, SEEDS[:rows], [step] * rows, chosen) for step in range(5)] == found


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 16, 17, 384, 4096, 32003])
@pytest.mark.parametrize("top_k", [1, 2, 50, 3000])
def test_the_compiled_sampler_draws_as_torch_does_from_vocabularies_of_any_size(
    dtype: torch.dtype, size: int, top_k: int
) -> None:
    logits = (torch.randn(6, size, generator=torch.Generator().manual_seed(size)) * 2).to(dtype)
    chosen = SamplingSettings(1.1, min(top_k, size - 1), 0.97, 0.001)
    found = draw(logits, SEEDS[:6], range(6), chosen)
    with mock.patch.object(sampling, "load_kernels", return_value=None):
        assert draw(logits, SEEDS[:6], range(6), chosen) == found


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(2, 400), st.integers(0, 2**31), st.booleans())
def test_only_the_largest_stay_and_of_ties_the_lowest_ids(rows: int, size: int, seed: int, is_tied: bool) -> None:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    if is_tied:
        logits = logits.round()
    count = 1 + seed % (size - 1)
    kept = sampling._only_largest(logits, count)
    for row, left in zip(logits.tolist(), kept.tolist(), strict=True):
        ranked = sorted(range(size), key=lambda token: (-row[token], token))[:count]
        assert [token for token in range(size) if left[token] == row[token]] == sorted(ranked)
        assert left.count(-float("inf")) == size - count


histories = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=20), min_size=1, max_size=4)


@given(histories, st.sampled_from([0.7, 1.1, 2.0]), st.integers(0, 2**31))
def test_the_repetition_penalty_is_that_of_transformers(history: list[list[int]], penalty: float, seed: int) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(len(history), 12, generator=torch.Generator().manual_seed(seed))
    process = RepetitionPenaltyLogitsProcessor(penalty)
    expected = torch.cat([process(torch.tensor([row]), logits[at : at + 1].clone()) for at, row in enumerate(history)])
    assert torch.equal(sampling._penalised(logits, history, penalty), expected)
    chosen = SamplingSettings(0.0, repetition_penalty=penalty)
    steps = [1] * len(history)
    assert draw(logits, steps, steps, chosen, history=history) == expected.argmax(-1).tolist()
    assert TokenSampler(chosen).needs_history
    assert not TokenSampler(SamplingSettings()).needs_history


@pytest.mark.parametrize("chosen", [SamplingSettings(0.0), SamplingSettings(), SamplingSettings(0.7, top_k=5),
                                    SamplingSettings(top_p=0.5, min_p=0.1)])  # fmt: skip
@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.usefixtures("way")
def test_a_row_that_is_not_finite_says_so_and_no_other(chosen: SamplingSettings, damage: float) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    whole, _ = TokenSampler(chosen).draw(logits, SEEDS[:6], [1] * 6)
    logits[2, 7] = damage
    logits[4] = damage
    tokens, are_finite = TokenSampler(chosen).draw(logits, SEEDS[:6], [1] * 6)
    assert are_finite == [True, True, False, True, False, True]
    assert [tokens[row] for row in (0, 1, 3, 5)] == [whole[row] for row in (0, 1, 3, 5)]
    none = torch.full((1, 300), -torch.inf)
    assert TokenSampler(chosen).draw(none, [1], [1])[1] == [False]
    logits = torch.randn(2, 300)
    logits[:, ::2] = -torch.inf  # an impossible token is no damage
    assert all(token % 2 for token in draw(logits, [1, 2], [1, 1], chosen))
