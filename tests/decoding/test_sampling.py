"""pytest tests/engines/test_sampling.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.decoding.sampling import SamplingSettings, choose_option, sample_tokens, uniform
from polypersona.records import seed_from

DRAWS = 20_000
LOGITS = (1.0, -0.5, 2.0, 0.0, 0.5, -2.0, 1.5, -1.0)
SEEDS = [seed_from("sampling", number) for number in range(DRAWS)]


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
    tokens = sample_tokens(logits, SEEDS, [1] * DRAWS, SamplingSettings(temperature))
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
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
    tokens = sample_tokens(torch.zeros(DRAWS, 2), SEEDS, [1] * DRAWS, SamplingSettings()).numpy()
    assert abs(np.corrcoef(chosen, tokens)[0, 1]) < 0.03


def test_a_row_is_drawn_alike_whatever_stands_beside_it() -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(3))
    chosen = SamplingSettings(0.9, top_k=40, top_p=0.9, min_p=0.01)
    together = sample_tokens(logits, SEEDS[:64], range(64), chosen).tolist()
    alone = [int(sample_tokens(logits[i : i + 1], SEEDS[i : i + 1], [i], chosen)) for i in range(64)]
    turned = sample_tokens(logits.flip(0), SEEDS[:64][::-1], range(63, -1, -1), chosen).tolist()
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
    tokens = sample_tokens(torch.tensor(row).expand(draws, -1), SEEDS[:draws], [1] * draws, chosen)
    shares = np.bincount(tokens.numpy(), minlength=len(row)) / draws
    assert (shares[expected == 0] == 0).all()
    assert np.abs(shares - expected).max() < 0.13


def test_of_tied_tokens_top_k_keeps_the_first_and_never_more_than_k() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).expand(1000, -1)
    tokens = sample_tokens(logits, SEEDS[:1000], [1] * 1000, SamplingSettings(top_k=2))
    assert set(tokens.tolist()) == {1, 2}


@settings(deadline=None)
@given(logit_rows)
def test_temperature_zero_takes_the_likeliest(row: list[float]) -> None:
    token = int(sample_tokens(torch.tensor([row]), [5], [1], SamplingSettings(0.0)))
    assert row[token] == max(row)
    assert int(sample_tokens(torch.tensor([row]), [5], [1], SamplingSettings(1e-3, top_k=1))) == row.index(max(row))


def test_an_end_of_the_distribution_without_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polypersona.decoding.sampling.uniform", lambda *_: 1.0)
    logits = torch.tensor([[0.1] * 7 + [-1e9] * 3])
    assert int(sample_tokens(logits, [1], [1], SamplingSettings())) == 6
    monkeypatch.setattr("polypersona.decoding.sampling.uniform", lambda *_: 0.0)
    assert int(sample_tokens(logits.flip(-1), [1], [1], SamplingSettings())) == 3
