"""pytest tests/engines/test_packed_writing.py: letters, stop strings and the shape of what the packed engine writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed_toys import END, ITEMS, LIKERT, OPEN, PERSONAS, SHORT, Plain, groups, settings

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Cell, Group
from polypersona.engines.packed import PackedEngine
from polypersona.records import Item, seed_from

ORDER = (4, 2, 0, 1, 3)


def let_write(engine: PackedEngine, text: str, *, ends: bool = True) -> list[int]:
    """Let the engine write a text, whatever its model says, and return its tokens."""
    script = [*encode(engine._cells.tokenizer, text), *([END] if ends else [])]
    engine._tokens._sampler.draw = lambda logits, seeds, steps, _: (
        [script[at - 1] if at <= len(script) else 99 for at in steps],
        [True] * len(steps),
    )
    return script


def test_a_letter_is_scored_by_its_token_and_answered_with_its_label(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["llama"])
    engine = PackedEngine(settings(lively_models["llama"], show_options="letters", temperature=0.8))
    ids = encode_prompt(plain.tokenizer, build_messages(PERSONAS[0], LIKERT, "letters", ORDER))
    letters = [encode(plain.tokenizer, letter) for letter in ("C", "D", "B", "E", "A")]  # of the options in item order
    expected = choose_option(plain.log_probs(ids, letters), 0, is_greedy=True)[1]
    cells = tuple(Cell(f"d{draw}", LIKERT, seed_from(draw), ORDER) for draw in range(60))
    codes = set()
    for answer in engine.answer([Group(PERSONAS[0], cells)]):
        place = LIKERT.codes.index(answer.code)
        assert answer.option_probs == pytest.approx(expected, abs=1e-5)
        assert answer.text == f"{'CDBEA'[place]}) {render_choice(LIKERT.options[place])}"
        assert (answer.label, answer.new_tokens) == (LIKERT.options[place], 0)
        codes.add(answer.code)
    assert len(codes) > 1


def test_options_whose_letters_are_no_tokens_of_their_own_are_scored_whole(lively_models: dict[str, Path]) -> None:
    engine = PackedEngine(settings(lively_models["llama"], show_options="letters"))
    whole = engine._cells.tokenizer
    engine._cells.tokenizer = lambda text, **options: whole(" " + text if text[1:2] == ")" else text, **options)
    cell = Cell("c", LIKERT, 1)
    prompt = engine._cells.prompt([5, 6, 7], cell)
    first = {choice[0] for choice in prompt.options}
    assert len(first) == 1  # a blank stands before every letter
    assert not prompt.choices
    assert all(len(option) > 2 for option in prompt.options)


@pytest.mark.parametrize(
    ("written", "code", "label", "rationale", "disposition"),
    [
        ("B) Neutral. I see it.", 3, "Neutral", "I see it.", "complete"),
        ("B", 3, "Neutral", "", "complete"),
        ("Agree. I do.", 4, "Agree", "I do.", "complete"),
        ("B) Agree.", None, "", "", "invalid"),
        ("I prefer not to answer.", None, "", "", "refusal"),
        ("", None, "", "", "item_nonresponse"),
    ],
)
def test_a_closed_answer_with_letters_is_written_and_read_by_the_order_shown(
    lively_models: dict[str, Path], written: str, code: int, label: str, rationale: str, disposition: str
) -> None:
    options = {"closed": "text", "show_options": "letters", "max_new_tokens": 60}
    engine = PackedEngine(settings(lively_models["llama"], **options))
    script = let_write(engine, written)
    answer = engine.answer([Group(PERSONAS[0], (Cell("c", LIKERT, 1, ORDER),))])[0]
    assert (answer.text, answer.code, answer.label) == (written, code, label)
    assert (answer.rationale, answer.disposition, answer.option_probs) == (rationale, disposition, None)
    assert answer.new_tokens == len(script)


@pytest.mark.parametrize(
    ("stop", "text", "written"),
    [
        (("END",), "It is fine.", "It is fine. END"),
        (("\n",), "It is fine. END", "It is fine. END\n"),
        (("never", "fine"), "It is", "It is fine"),
        (("is f", "fine"), "It", "It is f"),  # the one that begins first
        (("It",), "", "It"),
        (("not there",), "It is fine. END\nQuestion: no", "It is fine. END\nQuestion: no"),
    ],
)
def test_a_stop_string_cuts_the_text_and_ends_the_row(
    lively_models: dict[str, Path], stop: tuple[str, ...], text: str, written: str
) -> None:
    engine = PackedEngine(settings(lively_models["llama"], stop=stop, max_new_tokens=80))
    script = let_write(engine, "It is fine. END\nQuestion: no")
    answer = engine.answer([Group(PERSONAS[0], (Cell("c", OPEN, 1),))])[0]
    assert answer.text == text
    assert answer.disposition == ("complete" if text else "item_nonresponse")
    if stop == ("not there",):
        assert answer.new_tokens == len(script)
    else:
        ended = engine._cells.tokenizer.decode(script[: answer.new_tokens])
        before = engine._cells.tokenizer.decode(script[: answer.new_tokens - 1])
        assert any(end in ended for end in stop)
        assert not any(end in before for end in stop)
        assert ended.startswith(written)


def test_stop_strings_end_real_answers_where_they_first_appear(lively_models: dict[str, Path]) -> None:
    folder = lively_models["llama"]
    whole = PackedEngine(settings(folder, max_new_tokens=30)).answer(groups(items=(OPEN, SHORT)))
    stop = next(answer.text for answer in whole if len(answer.text) > 3)[2]
    cut = PackedEngine(settings(folder, max_new_tokens=30, stop=(stop,))).answer(groups(items=(OPEN, SHORT)))
    for one, other in zip(whole, cut, strict=True):
        assert stop not in other.text
        if stop in one.text:
            assert other.text == one.text.split(stop)[0].strip()
            assert other.new_tokens < one.new_tokens
            assert other.disposition in ("complete", "item_nonresponse")
    assert any(one.text != other.text for one, other in zip(whole, cut, strict=True))


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_repetition_penalty_is_that_of_plain_generation(lively_models: dict[str, Path], family: str) -> None:
    plain = Plain(lively_models[family])
    options = {"rationale": True, "max_new_tokens": 16}
    engine = PackedEngine(settings(lively_models[family], repetition_penalty=1.7, slots=3, **options))
    without = PackedEngine(settings(lively_models[family], slots=3, **options))
    asked = groups()
    answers, others = engine.answer(asked), without.answer(asked)
    for place, answer in enumerate(answers):
        persona, item = PERSONAS[place // len(ITEMS)], ITEMS[place % len(ITEMS)]
        ids = plain.prompt(persona, item)
        if item.is_closed:
            ids += encode(plain.tokenizer, render_choice(answer.label))
        written = plain.written(ids, 16, repetition_penalty=1.7)
        assert (answer.rationale if item.is_closed else answer.text) == plain.text(written)
        assert answer.new_tokens == len(written)
    assert [answer.text for answer in answers] != [answer.text for answer in others]
    for answer, other in zip(answers, others, strict=True):  # scores know no penalty
        assert answer.option_probs == (other.option_probs and pytest.approx(other.option_probs, abs=1e-5))


def test_min_p_keeps_what_is_likely_enough(lively_models: dict[str, Path]) -> None:
    folder = lively_models["llama"]
    plain = Plain(folder)
    ids = plain.prompt(PERSONAS[0], SHORT)
    with torch.no_grad():
        probs = (plain.model(torch.tensor([ids])).logits[0, -1].double() / 2.0).softmax(-1)
    allowed = set((probs >= 0.3 * probs.max()).nonzero()[:, 0].tolist())
    assert 1 < len(allowed) < 300
    cells = tuple(Cell(f"d{draw}", SHORT, seed_from(draw)) for draw in range(300))
    options = {"temperature": 2.0, "max_new_tokens": 1}
    for min_p, expected in ((0.3, True), (0.0, False)):
        engine = PackedEngine(settings(folder, min_p=min_p, **options))
        drawn: list[int] = []
        whole = engine._tokens._sampler.draw
        engine._tokens._sampler.draw = lambda *args, whole=whole, drawn=drawn: (
            drawn.extend(whole(*args)[0]) or whole(*args)
        )
        engine.answer([Group(PERSONAS[0], cells)])
        assert len(drawn) == 300
        assert (set(drawn) <= allowed) is expected
        if expected:
            assert len(set(drawn)) > len(allowed) / 2


def test_an_item_with_more_options_than_letters_is_refused_by_name(lively_models: dict[str, Path]) -> None:
    from polypersona.errors import QuestionbankError

    item = Item("x.single.01", "x", "Which?", "single", tuple(f"Option {n}" for n in range(27)))
    engine = PackedEngine(settings(lively_models["llama"], show_options="letters"))
    with pytest.raises(QuestionbankError, match="no letter"):
        engine.answer([Group(PERSONAS[0], (Cell("c", item, 1),))])
