"""pytest tests/engines/test_packed.py

Toy models with random weights. Every figure is compared with plain forwards and plain `generate` of the same model over
the whole prompt, one cell at a time.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_toys import (
    END,
    ITEMS,
    LIKERT,
    LIMIT,
    OPEN,
    PERSONAS,
    SHORT,
    STOPS,
    YESNO,
    Plain,
    by_id,
    groups,
    make_lively_model,
    said,
    settings,
)
from toy_models import FAMILIES, make_toy_tokenizer

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Cell, Group
from polypersona.engines.packed import PackedEngine
from polypersona.engines.registry import load_engine
from polypersona.records import Persona, seed_from


@pytest.fixture(scope="module")
def models(lively_models: dict[str, Path]) -> dict[str, Path]:
    return lively_models


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_plain_generation_one_by_one(models: dict[str, Path], family: str) -> None:
    plain = Plain(models[family])
    answers = by_id(PackedEngine(settings(models[family], slots=3, rationale=True)).answer(groups()))
    dispositions = set()
    for persona in PERSONAS:
        for item in ITEMS:
            answer = answers[f"{persona.persona_id}/{item.item_id}"]
            ids = plain.prompt(persona, item)
            assert answer.prompt_tokens == len(ids)
            if item.is_closed:
                ids += encode(plain.tokenizer, render_choice(answer.label))
            tokens = plain.written(ids)
            written = answer.rationale if item.is_closed else answer.text
            assert written == plain.text(tokens)
            assert answer.new_tokens == len(tokens)
            if not item.is_closed and written:
                assert answer.disposition == ("complete" if tokens[-1] in STOPS else "truncated")
            dispositions.add(tokens[-1] == 2)
    if family == "llama":
        assert dispositions == {True, False}


@pytest.mark.parametrize("family", FAMILIES)
def test_option_probabilities_equal_unshared_forwards(models: dict[str, Path], family: str) -> None:
    plain = Plain(models[family])
    answers = by_id(PackedEngine(settings(models[family], temperature=0.8)).answer(groups()))
    spread = set()
    for persona in PERSONAS:
        for item in (LIKERT, YESNO):
            answer = answers[f"{persona.persona_id}/{item.item_id}"]
            totals = plain.option_log_probs(persona, item)
            seed = seed_from(7, persona.persona_id, item.item_id)
            choice, probs = choose_option(totals, seed, is_greedy=False)
            assert answer.option_probs == pytest.approx(probs, abs=1e-5)
            assert sum(answer.option_probs) == pytest.approx(1, abs=1e-12)
            assert (answer.code, answer.label) == (item.codes[choice], item.options[choice])
            assert answer.text == render_choice(answer.label)
            assert (answer.disposition, answer.rationale, answer.new_tokens) == ("complete", "", 0)
            spread.add(round(probs[-1], 3))
    assert len(spread) > 3


def test_greedy_takes_the_likeliest_option(models: dict[str, Path]) -> None:
    for answer in PackedEngine(settings(models["llama"])).answer(groups(items=(LIKERT,))):
        assert LIKERT.codes.index(answer.code) == max(range(5), key=answer.option_probs.__getitem__)


def test_neither_slots_nor_order_nor_company_changes_an_answer(models: dict[str, Path]) -> None:
    base = settings(models["llama"], temperature=0.8, rationale=True)
    expected = by_id(PackedEngine(base).answer(groups()))
    turned = [Group(group.persona, group.cells[::-1]) for group in groups()[::-1]]
    alone = [Group(group.persona, (cell,)) for group in groups() for cell in group.cells]
    for slots, asked in ((1, groups()), (3, turned), (64, alone)):
        for answer in PackedEngine(replace(base, slots=slots)).answer(asked):
            other = expected[answer.assignment_id]
            assert (answer.code, answer.text, answer.disposition) == (other.code, other.text, other.disposition)
            if other.option_probs:
                assert answer.option_probs == pytest.approx(other.option_probs, abs=1e-4)


def test_the_same_cells_twice_give_the_same_bytes(models: dict[str, Path]) -> None:
    base = settings(models["qwen2"], temperature=0.8, rationale=True)
    engine = PackedEngine(base)
    first = engine.answer(groups())
    assert engine.answer(groups()) == first == PackedEngine(base).answer(groups())


def common(prompts: list[list[int]]) -> int:
    return next(at for at in range(len(prompts[0])) if len({prompt[at] for prompt in prompts}) > 1)


def test_reused_tokens_are_those_the_personas_cells_share(models: dict[str, Path]) -> None:
    plain = Plain(models["llama"])
    answers = PackedEngine(settings(models["llama"])).answer(groups())
    prompts = [[plain.prompt(persona, item) for item in ITEMS] for persona in PERSONAS]
    for_all = common([prompt for own in prompts for prompt in own])
    assert for_all > len(encode(plain.tokenizer, build_messages(PERSONAS[0], SHORT)[0]["content"]))
    for number, own in enumerate(prompts):
        shared = common(own)
        part = answers[number * len(ITEMS) : (number + 1) * len(ITEMS)]
        # A persona's first cell reuses what all personas share, the others what its own cells do.
        assert [answer.reused_prompt_tokens for answer in part] == [for_all, shared, shared, shared]
        assert [answer.prompt_tokens for answer in part] == [len(prompt) for prompt in own]
        assert shared > len(plain.prompt(Persona("x"), SHORT)) / 2
    alone = PackedEngine(settings(models["llama"])).answer(groups(PERSONAS[:1]))
    assert [answer.reused_prompt_tokens for answer in alone] == [0, *[common(prompts[0])] * 3]


def test_the_draws_of_one_item_share_all_but_its_last_token(models: dict[str, Path]) -> None:
    cells = tuple(Cell(f"draw{draw}", LIKERT, seed_from(draw)) for draw in range(40))
    answers = PackedEngine(settings(models["llama"], temperature=0.8, slots=16)).answer([Group(PERSONAS[0], cells)])
    assert answers[1].reused_prompt_tokens == answers[1].prompt_tokens - 1
    assert len({answer.option_probs[0] for answer in answers}) <= 3
    assert len({answer.code for answer in answers}) > 1


def test_a_prompt_too_long_ends_as_error_and_the_others_complete(models: dict[str, Path]) -> None:
    long = replace(OPEN, item_id="long", stem="Why? " * 400)
    engine = PackedEngine(settings(models["llama"]))
    answers = engine.answer(groups(items=(long, LIKERT, OPEN)))
    for number in range(len(PERSONAS)):
        first, *others = answers[number * 3 : number * 3 + 3]
        assert (first.disposition, first.text, first.code) == ("error", "", None)
        assert str(first.prompt_tokens) in first.error
        assert "512" in first.error
        assert [*map(said, others)] == [*map(said, engine.answer(groups((PERSONAS[number],), (LIKERT, OPEN))))]
    assert [answer.disposition for answer in engine.answer(groups(items=(long,)))] == ["error"] * 3
    assert engine.answer([Group(PERSONAS[0], ())]) == []


def test_the_context_is_used_to_its_last_token_and_no_further(models: dict[str, Path]) -> None:
    plain = Plain(models["llama"])
    room = 512 - LIMIT
    fitting = next(
        item
        for words in range(1, 600)
        if len(plain.prompt(PERSONAS[1], item := replace(SHORT, stem="x" + " is" * words))) == room
    )
    answer, beyond = PackedEngine(settings(models["llama"])).answer(
        groups((PERSONAS[1],), (fitting, replace(fitting, item_id="beyond", stem=fitting.stem + " is")))
    )
    assert answer.disposition != "error"
    assert answer.text == plain.text(plain.written(plain.prompt(PERSONAS[1], fitting)))
    assert (beyond.disposition, beyond.prompt_tokens) == ("error", room + 1)


def test_a_sliding_window_bounds_the_prompt(tmp_path: Path, models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["mistral"])
    model.config.sliding_window = 160
    model.save_pretrained(tmp_path)
    make_toy_tokenizer().save_pretrained(tmp_path)
    plain, engine = Plain(tmp_path), PackedEngine(settings(tmp_path))
    long = replace(OPEN, item_id="long", stem="Why? " * 60)
    assert 160 < len(plain.prompt(PERSONAS[1], long)) < 400
    answers = engine.answer(groups((PERSONAS[1],), (long, SHORT)))
    assert answers[0].disposition == "error"
    assert "160" in answers[0].error
    ids = plain.prompt(PERSONAS[1], SHORT)
    assert len(ids) + LIMIT <= 160
    assert answers[1].text == plain.text(plain.written(ids))


@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "phi"])
def test_rounded_and_quantised_models_answer_near_the_exact_one(tmp_path: Path, family: str) -> None:
    folder = make_lively_model(family, tmp_path, factor=2.0)
    exact = [answer for answer in PackedEngine(settings(folder)).answer(groups()) if answer.option_probs]
    assert len({answer.option_probs for answer in exact}) == len(exact)
    for precision, bound in ((("bf16", "none"), 0.02), (("bf16", "nf4"), 0.06), (("bf16", "int8"), 0.06)):
        dtype, quantization = precision
        answers = PackedEngine(settings(folder, dtype=dtype, quantization=quantization, slots=3)).answer(groups())
        assert {answer.disposition for answer in answers} <= {"complete", "truncated", "item_nonresponse"}
        rounded = [answer for answer in answers if answer.option_probs]
        for one, other in zip(exact, rounded, strict=True):
            assert other.option_probs == pytest.approx(one.option_probs, abs=bound)
            assert other.option_probs != one.option_probs


def test_an_adapter_is_merged_in_fp32(tmp_path: Path, models: dict[str, Path]) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path)
    plain = Plain(models["llama"])
    without = plain.option_log_probs(PERSONAS[0], LIKERT)
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path).eval()
    engine = PackedEngine(settings(models["llama"], adapter=str(tmp_path)))
    answers = engine.answer(groups((PERSONAS[0],)))
    expected = choose_option(plain.option_log_probs(PERSONAS[0], LIKERT), 0, is_greedy=True)[1]
    assert answers[0].option_probs == pytest.approx(expected, abs=1e-5)
    assert answers[0].option_probs != pytest.approx(choose_option(without, 0, is_greedy=True)[1], abs=1e-3)
    assert answers[1].text == plain.text(plain.written(plain.prompt(PERSONAS[0], OPEN)))
    quantised = PackedEngine(settings(models["llama"], adapter=str(tmp_path), quantization="nf4", dtype="bf16"))
    assert quantised.answer(groups())[0].option_probs is not None


def test_closed_text_is_written_and_coded(models: dict[str, Path]) -> None:
    engine = PackedEngine(settings(models["llama"], closed="text"))
    plain = Plain(models["llama"])
    answer = engine.answer(groups((PERSONAS[0],), (LIKERT,)))[0]
    assert answer.text == plain.text(plain.written(plain.prompt(PERSONAS[0], LIKERT)))
    assert (answer.option_probs, answer.code, answer.disposition) == (None, None, "invalid")
    # A random model names no option; one that is made to write a given answer does.
    script = [*encode(plain.tokenizer, "Strongly agree. I see it."), END]
    engine = PackedEngine(settings(models["llama"], closed="text", max_new_tokens=60))
    engine._tokens._sampler.draw = lambda logits, seeds, steps, _: (
        [script[at - 1] for at in steps],
        [True] * len(steps),
    )
    answer = engine.answer(groups((PERSONAS[0],), (LIKERT,)))[0]
    assert (answer.code, answer.label, answer.disposition) == (5, "Strongly agree", "complete")
    assert (answer.text, answer.rationale) == ("Strongly agree. I see it.", "I see it.")
    assert answer.new_tokens == len(script)


def test_the_engine_asks_as_the_options_are_shown(models: dict[str, Path]) -> None:
    plain = Plain(models["llama"])
    order = (4, 2, 0, 1, 3)
    cell = Cell("a", LIKERT, 1, order)
    seen = set()
    for show in ("labels", "letters", "none"):
        answer = PackedEngine(settings(models["llama"], show_options=show)).answer([Group(PERSONAS[0], (cell,))])[0]
        ids = encode_prompt(plain.tokenizer, build_messages(PERSONAS[0], LIKERT, show, order))
        assert answer.prompt_tokens == len(ids)
        choices = plain.choices(LIKERT, show, order)
        if show == "letters":  # the letter alone is scored
            assert [plain.tokenizer.decode(choice[:1]) for choice in choices] == ["C", "D", "B", "E", "A"]
            choices = [choice[:1] for choice in choices]
        choice, probs = choose_option(plain.log_probs(ids, choices), 1, is_greedy=True)
        assert answer.option_probs == pytest.approx(probs, abs=1e-5)
        assert (answer.code, answer.label) == (LIKERT.codes[choice], LIKERT.options[choice])
        letter = f"{'ABCDE'[order.index(choice)]}) " if show == "letters" else ""
        assert answer.text == f"{letter}{render_choice(answer.label)}"
        seen.add(answer.option_probs)
    assert len(seen) == 3


def rewrite(engine: PackedEngine, change: Any) -> None:
    """Let an engine's decoder give other logits."""
    decoder = engine._tokens._decoder
    whole = decoder.logits
    decoder.logits = lambda hidden: change(whole(hidden))


def test_what_is_not_finite_ends_its_own_cells_alone(tmp_path: Path, models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    tokenizer = make_toy_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[encode(tokenizer, "~")[-1]] = float("nan")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bad = [replace(item, item_id=f"bad.{item.item_id}", stem="Do ~ you?") for item in (LIKERT, OPEN)]
    for slots in (2, 64):
        base = settings(tmp_path, temperature=0.8, rationale=True, slots=slots)
        expected = PackedEngine(base).answer(groups())
        found = PackedEngine(base).answer(groups(items=(bad[0], *ITEMS[:2], bad[1], *ITEMS[2:])))
        failed = [answer for answer in found if "/bad." in answer.assignment_id]
        assert [(answer.disposition, answer.text) for answer in failed] == [("error", "")] * 6
        assert all("not finite" in answer.error for answer in failed)
        assert [said(answer) for answer in found if "/bad." not in answer.assignment_id] == [*map(said, expected)]


def test_logits_that_are_never_finite_end_every_cell(models: dict[str, Path]) -> None:
    engine = PackedEngine(settings(models["llama"], temperature=0.8, rationale=True))
    rewrite(engine, lambda logits: logits * float("nan"))
    answers = engine.answer(groups())
    assert {answer.disposition for answer in answers} == {"error"}
    assert {answer.error for answer in answers} == {"the model's logits are not finite"}


def make_other_model(name: str, folder: Path) -> Path:
    """A model of a family that the seven base models are not of."""
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GraniteConfig

    ends = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0, "vocab_size": 384}
    config = {
        "bloom": lambda: BloomConfig(hidden_size=64, n_layer=2, n_head=4, **ends),
        "gpt2": lambda: GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=512, **ends),
        "granite": lambda: GraniteConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=128,
            logits_scaling=8.0, embedding_multiplier=6.0, residual_multiplier=0.4, **ends,
        ),
    }[name]()  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    make_toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "decoder"), [("bloom", "plain"), ("granite", "plain"), ("gpt2", "stock")])
def test_a_model_that_cannot_be_packed_is_asked_cell_by_cell_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, decoder: str
) -> None:
    folder = make_other_model(name, tmp_path)
    plain = Plain(folder)
    with caplog.at_level(logging.WARNING):
        engine = PackedEngine(settings(folder, rationale=True))
        answers = by_id(engine.answer(groups(PERSONAS[:2])))
    assert engine.decoder == decoder
    warnings = [record.getMessage() for record in caplog.records if "generation flags" not in record.getMessage()]
    if decoder == "plain":
        assert len(warnings) == 1
        assert warnings[0].startswith(f"A {type(plain.model).__name__} cannot be packed (")
        assert warnings[0].endswith("it is asked cell by cell, which takes several times as long.")
    else:
        assert not warnings
    probabilities = set()
    for persona in PERSONAS[:2]:
        for item in ITEMS:
            answer, ids = answers[f"{persona.persona_id}/{item.item_id}"], plain.prompt(persona, item)
            if item.is_closed:
                probs = choose_option(plain.option_log_probs(persona, item), 0, is_greedy=True)[1]
                assert answer.option_probs == pytest.approx(probs, abs=1e-5)
                probabilities.add(round(probs[0], 4))
                ids += encode(plain.tokenizer, render_choice(answer.label))
            tokens = plain.written(ids)
            assert (answer.rationale if item.is_closed else answer.text) == plain.text(tokens)
            assert answer.new_tokens == len(tokens)
    assert len(probabilities) > 1


def test_a_closed_engine_holds_no_weights(models: dict[str, Path]) -> None:
    engine = load_engine(settings(models["llama"]))
    assert (engine.name, engine.reproduces) == ("packed", "bytes")
    engine.close()
    engine.close()
    assert not any(isinstance(value, torch.nn.Module) for value in vars(engine).values())
