"""pytest tests/engines/test_calibration.py: a model biased on purpose, and what calibration gives back."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_toys import ITEMS, LIKERT, OPEN, PERSONAS, YESNO, Plain, groups, settings

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Answer, Cell, Group
from polypersona.engines.packed import PackedEngine
from polypersona.records import Persona, seed_from

LETTERS = "ABCDE"
BIAS = (1.6, 0.4, 0.0, -0.3, 0.8)  # added to the logits of A, B, C, D, E


def total_variation(one: Any, other: Any) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def shift_logits(engine: PackedEngine, by_token: dict[int, float]) -> None:
    """Let the model add numbers to the logits of some tokens, whatever it is asked."""
    decoder, bias = engine._tokens._decoder, torch.zeros(384)
    for token, number in by_token.items():
        bias[token] = number
    whole = decoder.logits
    decoder.logits = lambda hidden: whole(hidden) + bias


class Reader:
    """A model that knows what it thinks of every label, and likes some letters better than others.

    It stands in the decoder's place: its logits of a letter are what it thinks of the option that the prompt shows
    there, plus the letter's bias. It reads the order off the prompt's tokens.
    """

    def __init__(self, engine: PackedEngine, plain: Plain, opinion: dict[str, float], bias: Any) -> None:
        self.tokenizer, self.opinion, self.bias = plain.tokenizer, opinion, bias
        self.letters = [encode(plain.tokenizer, letter)[0] for letter in LETTERS]
        engine._tokens.run = self.run

    def run(self, groups: Any) -> Any:
        from polypersona.decoding.plain import PlainTokenEngine
        from polypersona.decoding.sampling import SamplingSettings

        engine = PlainTokenEngine(self, SamplingSettings(), "cpu")
        return engine.run(groups)

    def __call__(self, input_ids: torch.Tensor) -> Any:
        text = self.tokenizer.decode(input_ids[0])
        shown = text.split("Options: ")[1].split("<|im_end|>")[0].split("; ")
        logits = torch.zeros(1, input_ids.shape[1], 384)
        for place, entry in enumerate(shown):
            logits[..., self.letters[place]] = self.opinion[entry.strip()[3:]] + self.bias[place]
        return type("Out", (), {"logits": logits})


def score(engine: PackedEngine, cells: tuple[Cell, ...]) -> list[Answer]:
    return engine.answer([Group(PERSONAS[0], cells)])


def test_permute_recovers_what_a_model_thinks_that_likes_some_letters_better(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["llama"])
    opinion = dict(zip(LIKERT.options, (0.3, 1.2, -0.5, 2.0, 0.9), strict=True))
    truth = torch.softmax(torch.tensor(list(opinion.values()), dtype=torch.float64), 0).tolist()
    orders = list(itertools.islice(itertools.permutations(range(5)), 0, 120, 7))
    cells = tuple(Cell(f"c{place}", LIKERT, place, order) for place, order in enumerate(orders))
    shifts = {}
    for calibration in ("none", "permute"):
        engine = PackedEngine(settings(lively_models["llama"], show_options="letters", calibration=calibration))
        Reader(engine, plain, opinion, BIAS)
        shifts[calibration] = [total_variation(answer.option_probs, truth) for answer in score(engine, cells)]
    assert max(shifts["permute"]) < 1e-6
    assert min(shifts["none"]) > 0.05
    assert sum(shifts["none"]) / len(cells) == pytest.approx(0.246, abs=0.001)  # what the bias moves, measured


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_permute_takes_a_bias_of_letters_out_of_a_real_model(lively_models: dict[str, Path], family: str) -> None:
    folder = lively_models[family]
    plain = Plain(folder)
    bias = {encode(plain.tokenizer, letter)[0]: number for letter, number in zip(LETTERS, BIAS, strict=True)}
    cells = tuple(Cell(f"c{place}", item, place) for place, item in enumerate((LIKERT, YESNO)))
    moved: dict[str, list[float]] = {}
    for calibration in ("none", "permute", "content_free"):
        pair = []
        for shift in ({}, bias):
            engine = PackedEngine(settings(folder, show_options="letters", calibration=calibration))
            shift_logits(engine, shift)
            pair.append(score(engine, cells))
        moved[calibration] = [total_variation(a.option_probs, b.option_probs) for a, b in zip(*pair, strict=True)]
        assert all(sum(answer.option_probs) == pytest.approx(1) for answer in pair[1])
    assert min(moved["none"]) > 0.02
    assert max(moved["permute"]) < 1e-5
    assert max(moved["content_free"]) < 1e-5


def test_permute_averages_the_log_probabilities_of_all_rotations(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["qwen2"])
    order = (3, 1, 4, 0, 2)
    for show in ("letters", "labels"):
        engine = PackedEngine(settings(lively_models["qwen2"], show_options=show, calibration="permute"))
        answer = score(engine, (Cell("c", LIKERT, 5, order),))[0]
        totals = torch.zeros(5, dtype=torch.float64)
        for turn in range(5):
            turned = order[turn:] + order[:turn]
            ids = encode_prompt(plain.tokenizer, build_messages(PERSONAS[0], LIKERT, show, turned))
            choices = plain.choices(LIKERT, show, turned)
            totals += torch.tensor(plain.log_probs(ids, [c[:1] for c in choices] if show == "letters" else choices))
        choice, probs = choose_option((totals / 5).tolist(), 5, is_greedy=True)
        assert answer.option_probs == pytest.approx(probs, abs=1e-5)
        assert answer.code == LIKERT.codes[choice]
        letter = f"{LETTERS[order.index(choice)]}) " if show == "letters" else ""
        assert answer.text == f"{letter}{render_choice(answer.label)}"


def test_content_free_takes_out_what_a_label_gets_whatever_is_asked(lively_models: dict[str, Path]) -> None:
    folder = lively_models["llama"]
    plain = Plain(folder)
    favoured = encode(plain.tokenizer, "Yes")[0]
    assert favoured != encode(plain.tokenizer, "No")[0]
    cells = tuple(Cell(persona.persona_id, YESNO, 1) for persona in PERSONAS)
    found: dict[str, list[tuple[float, ...]]] = {}
    for calibration in ("none", "content_free"):
        for shift in (0.0, 2.0):
            engine = PackedEngine(settings(folder, calibration=calibration))
            shift_logits(engine, {favoured: shift})
            answers = engine.answer([Group(p, (cell,)) for p, cell in zip(PERSONAS, cells, strict=True)])
            found[f"{calibration} {shift}"] = [answer.option_probs for answer in answers]
    odds = [
        math.log(b[1] / b[0]) - math.log(a[1] / a[0]) for a, b in zip(found["none 0.0"], found["none 2.0"], strict=True)
    ]
    assert odds == pytest.approx([2.0] * 3, abs=0.01)  # the prior, as the probabilities show it
    for one, other in zip(found["content_free 0.0"], found["content_free 2.0"], strict=True):
        assert one == pytest.approx(other, abs=1e-3)  # the labels' later tokens move a little
        assert total_variation(one, found["none 0.0"][0]) > 0.01


def test_content_free_divides_by_the_same_options_after_no_question(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["mistral"])
    engine = PackedEngine(settings(lively_models["mistral"], calibration="content_free"))
    nobody, nothing = Persona("x", text="N/A"), replace(LIKERT, stem="N/A")
    for persona, answer in zip(PERSONAS, engine.answer(groups(items=(LIKERT,))), strict=True):
        own, empty = plain.option_log_probs(persona, LIKERT), plain.option_log_probs(nobody, nothing)
        probs = choose_option([a - b for a, b in zip(own, empty, strict=True)], 0, is_greedy=True)[1]
        assert answer.option_probs == pytest.approx(probs, abs=1e-5)


@pytest.mark.parametrize("calibration", ["none", "permute", "content_free"])
def test_the_choice_is_drawn_from_the_probabilities_that_are_given(
    lively_models: dict[str, Path], calibration: str
) -> None:
    options = {"length_norm": True, "temperature": 0.8, "calibration": calibration}
    engine = PackedEngine(settings(lively_models["llama"], **options))
    cells = tuple(Cell(f"d{draw}", LIKERT, seed_from(draw)) for draw in range(600))
    answers = score(engine, cells)
    probs = answers[0].option_probs
    for cell, answer in zip(cells, answers, strict=True):
        assert answer.option_probs == pytest.approx(probs, abs=1e-6)
        drawn, _ = choose_option([math.log(prob) for prob in answer.option_probs], cell.seed, is_greedy=False)
        assert answer.code == LIKERT.codes[drawn]
    counts = Counter(answer.code for answer in answers)
    chi = sum((counts[code] - 600 * prob) ** 2 / (600 * prob) for code, prob in zip(LIKERT.codes, probs, strict=True))
    assert chi < 25


def test_length_norm_weighs_an_option_by_its_number_of_tokens(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["llama"])
    answer = PackedEngine(settings(lively_models["llama"], length_norm=True)).answer(groups(items=(LIKERT,)))[0]
    totals, choices = plain.option_log_probs(PERSONAS[0], LIKERT), plain.choices(LIKERT)
    assert len({len(choice) for choice in choices}) > 2
    weighed = [total / len(choice) for total, choice in zip(totals, choices, strict=True)]
    choice, probs = choose_option(weighed, 0, is_greedy=True)
    assert answer.option_probs == pytest.approx(probs, abs=1e-5)
    assert answer.code == LIKERT.codes[choice]


@pytest.mark.parametrize("show", ["labels", "letters"])
@pytest.mark.parametrize("calibration", ["permute", "content_free"])
def test_a_rationale_continues_from_the_calibrated_choice(
    lively_models: dict[str, Path], calibration: str, show: str
) -> None:
    plain = Plain(lively_models["llama"])
    options = {"show_options": show, "calibration": calibration, "rationale": True}
    engine = PackedEngine(settings(lively_models["llama"], **options))
    answers = engine.answer(groups(PERSONAS[:2]))
    rationales = set()
    for (persona, item), answer in zip(itertools.product(PERSONAS[:2], ITEMS), answers, strict=True):
        ids = encode_prompt(plain.tokenizer, build_messages(persona, item, show))
        assert answer.prompt_tokens == len(ids)
        if item.is_closed:
            ids += plain.choices(item, show)[item.codes.index(answer.code)]
        tokens = plain.written(ids)
        assert (answer.rationale if item.is_closed else answer.text) == plain.text(tokens)
        assert answer.new_tokens == len(tokens)
        rationales.add(answer.rationale)
    assert len(rationales) > 1


def test_a_rotation_that_does_not_fit_ends_its_cell_alone(lively_models: dict[str, Path]) -> None:
    engine = PackedEngine(settings(lively_models["llama"], calibration="permute"))
    long = replace(LIKERT, item_id="long", stem="Why? " * 400)
    answers = engine.answer(groups(PERSONAS[:1], (long, YESNO, OPEN)))
    assert [answer.disposition == "error" for answer in answers] == [True, False, False]
    assert "512" in answers[0].error


def test_damaged_weights_end_calibrated_cells_as_errors(lively_models: dict[str, Path]) -> None:
    for calibration in ("permute", "content_free"):
        engine = PackedEngine(settings(lively_models["llama"], calibration=calibration, rationale=True))
        shift_logits(engine, {5: float("nan")})
        assert {answer.disposition for answer in engine.answer(groups())} == {"error"}
