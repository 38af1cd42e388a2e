"""pytest tests/decoding/test_exactness.py

Packed decoding of toy models with random weights against the same model's plain forwards over whole prompts. Slots are
few and chunks small, so that slots are filled again, moved and shared all the time.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from toy_models import FAMILIES
from toy_prompts import (
    CASES,
    DECODERS,
    END,
    GREEDY,
    Expected,
    Forwards,
    farthest,
    flat,
    group_of,
    lively_model,
    make_groups,
    make_prompts,
    outcomes,
    run_flat,
    token_engine,
    tokens,
)

from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import Prompt, PromptGroup

COUNT = 520


@cache
def model_of(family: str) -> Any:
    return lively_model(family)


@cache
def case_of(family: str) -> tuple[list[PromptGroup], list[Expected]]:
    groups = make_groups(COUNT, seed=FAMILIES.index(family))
    return groups, Forwards(model_of(family)).answer(flat(groups))


@pytest.mark.parametrize(("family", "decoder"), CASES)
def test_greedy_answers_and_option_probabilities_equal_plain_forwards(family: str, decoder: str) -> None:
    groups, expected = case_of(family)
    found = run_flat(token_engine(model_of(family), decoder), groups)
    assert len(found) == COUNT
    assert {one.error for one in found} == {""}
    assert outcomes(found) == outcomes(expected)
    assert farthest(found, expected) < 1e-4
    written = [(one, prompt) for one, prompt in zip(found, flat(groups), strict=True) if prompt.max_new_tokens]
    assert all(one.is_ended == (one.tokens[-1] == END) for one, _ in written)
    # The models answer in many ways, so equality says something.
    assert len({tuple(one.tokens) for one, _ in written}) > 0.5 * len(written)
    assert {one.is_ended for one, _ in written} == {True, False}
    assert max(abs(total) for one in found for total in one.log_probs) > 20
    assert len({one.choice for one in found}) > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_engine_and_generate_write_the_same(family: str) -> None:
    groups, expected = case_of(family)
    model, groups = model_of(family), groups[:6]
    plain = [one for group in PlainTokenEngine(model, GREEDY, "cpu", frozenset({END})).run(groups) for one in group]
    assert outcomes(plain) == outcomes(expected[: len(plain)])
    assert farthest(plain, expected[: len(plain)]) < 1e-4
    for prompt, one in zip(flat(groups), plain, strict=True):
        ids = [*prompt.ids, *(prompt.chosen(one.choice) if one.choice is not None else ())]
        if prompt.max_new_tokens:
            out = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                max_new_tokens=prompt.max_new_tokens, eos_token_id=END, pad_token_id=0,
            )  # fmt: skip
            assert out[0, len(ids) :].tolist() == one.tokens


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (6, 2, 32), (8, 1, 16), (3, 3, 48)])
def test_any_grouping_of_query_heads_is_exact(decoder: str, heads: int, key_heads: int, size: int) -> None:
    changes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": size}
    model = lively_model("llama", **changes)
    groups = make_groups(60, seed=5)
    expected = Forwards(model).answer(flat(groups))
    found = run_flat(token_engine(model, decoder, slots=4), groups)
    assert outcomes(found) == outcomes(expected)
    assert farthest(found, expected) < 1e-4


@pytest.mark.parametrize("decoder", DECODERS)
def test_prompts_that_share_nothing_or_all_but_one_token_are_exact(decoder: str) -> None:
    random, model = Random(4), model_of("llama")
    nothing = [group_of(make_prompts(random, 3, []), num_shared=0) for _ in range(5)]
    beginning = tokens(random, 50)
    everything = [group_of([Prompt([*beginning, last], last, 6) for last in range(10, 40)])]
    alone = [group_of(make_prompts(random, 1, tokens(random, length))) for length in (1, 15, 16, 17, 31, 32, 33, 64)]
    for groups in (nothing, everything, alone, [*nothing, *everything, *alone], alone[:1]):
        found = run_flat(token_engine(model, decoder), groups)
        expected = Forwards(model).answer(flat(groups))
        assert outcomes(found) == outcomes(expected)
        assert farthest(found, expected) < 1e-4


@pytest.mark.parametrize(("family", "decoder"), CASES)
def test_in_bf16_option_probabilities_are_near_the_exact_ones(family: str, decoder: str) -> None:
    """Rounded weights make another model: the exact probabilities are those of the rounded weights in fp32.

    A model's own bf16 forward rounds as much as the packed one, so that neither is the other's measure; both are held
    to the fp32 forward, and the packed one may not be farther from it than the model's own by more than a little.
    """
    model = lively_model(family, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(0.25)
    prompts = make_prompts(Random(9), 160, tokens(Random(8), 30))
    prompts = [prompt for prompt in prompts if prompt.options]
    exact = Forwards(lively_copy(model)).answer(prompts)
    own = Forwards(model).answer(prompts)
    found = run_flat(token_engine(model, decoder, slots=16), [group_of(prompts)])
    shares = [probabilities(one.log_probs) for one in found]
    differences = [(share - probabilities(one.log_probs)).abs().max() for share, one in zip(shares, exact, strict=True)]
    limits = [
        (probabilities(a.log_probs) - probabilities(b.log_probs)).abs().max() for a, b in zip(own, exact, strict=True)
    ]
    assert float(max(differences)) < 2e-2
    assert float(torch.stack(differences).mean()) < 1.5 * float(torch.stack(limits).mean())
    assert max(float(share.max()) for share in shares) > 0.4


def lively_copy(model: Any) -> Any:
    import copy

    return copy.deepcopy(model).float()


def probabilities(log_probs: list[float]) -> torch.Tensor:
    return torch.tensor(log_probs, dtype=torch.float64).softmax(0)
