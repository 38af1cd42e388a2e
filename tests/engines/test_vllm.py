"""pytest tests/engines/test_vllm.py: how the vLLM engine answers, with a toy model behind vLLM's real signatures."""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import pytest
import vllm_double
from toy_models import CHATML, make_toy_tokenizer

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice, shown_place
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Cell, Group
from polypersona.engines.token_questions import token_questions
from polypersona.records import Item, Persona, seed_from

SCALE = ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree")
LIKERT = Item("care.likert.01", "healthcare", "I am satisfied with the care.", "likert", SCALE)
YESNO = Item("care.yesno.01", "healthcare", "Do you go?", "yesno", ("No", "Yes"), codes=(0, 1))
OPEN = Item("care.open.01", "healthcare", "How do you feel about the care?", "open")
LONG = Item("care.open.02", "healthcare", "Why is it so? " * 60, "open")
END = 2
# Ends a prompt behind "assistant" and begins an answer with a blank, as the templates of several models do.
CHATML_WITH_BLANK = CHATML.replace("'\n' + message['content']", "' ' + message['content']").replace(
    "assistant\n", "assistant"
)
PERSONAS = (Persona("a", {"age": 44, "occupation": "nurse"}), Persona("b", text="I am a retired bus driver."))


def groups_of(*items, personas=PERSONAS, order=None):
    return [
        Group(
            persona,
            tuple(
                Cell(
                    f"{persona.persona_id}/{item.item_id}",
                    item,
                    seed_from(persona.persona_id, item.item_id),
                    order if item is LIKERT else None,
                )
                for item in items
            ),
        )
        for persona in personas
    ]


def softmax(logits):
    weights = np.exp(np.asarray(logits) - max(logits))
    return weights / weights.sum()


def whole_text_log_prob(vllm, ids, start=0):
    """Log probability of ids[start:], token by token, from full forwards."""
    return sum(vllm.log_probs(ids[:place])[ids[place]] for place in range(start, len(ids)))


# --- scored options ---


@pytest.mark.parametrize("order", [None, (3, 0, 4, 1, 2)])
def test_a_letter_is_one_token_of_one_request(build_vllm, vllm, vllm_tokenizer, order):
    (answer,) = build_vllm(show_options="letters").answer(groups_of(LIKERT, personas=PERSONAS[:1], order=order))
    ((ids, params),) = vllm.calls[0]
    prompt = encode_prompt(vllm_tokenizer, build_messages(PERSONAS[0], LIKERT, "letters", order))
    starts = [
        encode(vllm_tokenizer, render_choice(label, "letters", shown_place(index, order)))[0]
        for index, label in enumerate(SCALE)
    ]
    assert ids == prompt
    assert params.given == {
        "max_tokens": 1, "temperature": 0.0, "logprob_token_ids": starts, "allowed_token_ids": starts,
        "detokenize": False,
    }  # fmt: skip
    log_probs = [vllm.log_probs(prompt)[token] for token in starts]
    np.testing.assert_allclose(answer.option_probs, softmax(log_probs), rtol=1e-12)
    index, _ = choose_option(log_probs, seed_from("a", LIKERT.item_id), is_greedy=False)
    assert (answer.code, answer.label) == (index + 1, SCALE[index])
    letter = "ABCDE"[shown_place(index, order)]
    assert answer.text == f"{letter}) {SCALE[index]}."
    assert (answer.prompt_tokens, answer.new_tokens, answer.disposition) == (len(prompt), 0, "complete")


@pytest.mark.parametrize("show", ["labels", "none"])
def test_whole_options_have_the_probability_of_their_texts(build_vllm, vllm, vllm_tokenizer, show):
    answers = build_vllm(show_options=show).answer(groups_of(LIKERT, YESNO))
    for answer, (persona, item) in zip(
        answers, [(persona, item) for persona in PERSONAS for item in (LIKERT, YESNO)], strict=True
    ):
        prompt = encode_prompt(vllm_tokenizer, build_messages(persona, item, show))
        options = [encode(vllm_tokenizer, render_choice(label)) for label in item.options]
        totals = [whole_text_log_prob(vllm, prompt + option, len(prompt)) for option in options]
        np.testing.assert_allclose(answer.option_probs, softmax(totals), rtol=1e-9)
        index, _ = choose_option(totals, seed_from(persona.persona_id, item.item_id), is_greedy=False)
        assert answer.code == item.codes[index]
    assert all(params.allowed_token_ids is None for _, params in vllm.calls[0])  # it would hide the others' share
    assert len(vllm.calls) == 1


@pytest.mark.parametrize("show", ["labels", "letters"])
def test_options_and_rationales_stand_behind_what_the_template_puts_before_an_answer(
    build_vllm, vllm, monkeypatch, show
):
    tokenizer = make_toy_tokenizer(CHATML_WITH_BLANK)
    monkeypatch.setattr("polypersona.engines.vllm.load_tokenizer", lambda *_, **__: tokenizer)
    (answer,) = build_vllm(show_options=show, rationale=True).answer(groups_of(YESNO, personas=PERSONAS[:1]))
    prompt = encode_prompt(tokenizer, build_messages(PERSONAS[0], YESNO, show))
    options = [encode(tokenizer, " " + render_choice(label, show, index)) for index, label in enumerate(YESNO.options)]
    start = next(place for place, tokens in enumerate(zip(*options, strict=False)) if len(set(tokens)) > 1)
    assert {tuple(ids) for ids, _ in vllm.calls[0]} >= {(*prompt, *options[0][:start])}
    ends = [option[: start + 1] if show == "letters" else option for option in options]
    totals = [whole_text_log_prob(vllm, prompt + end, len(prompt) + start) for end in ends]
    np.testing.assert_allclose(answer.option_probs, softmax(totals), rtol=1e-9)
    ((ids, _),) = vllm.calls[1]
    assert ids == prompt + options[YESNO.options.index(answer.label)]


def test_temperature_zero_takes_the_likeliest_option(build_vllm):
    for answer, item in zip(
        build_vllm(temperature=0.0).answer(groups_of(LIKERT, YESNO)), [LIKERT, YESNO] * 2, strict=True
    ):
        assert answer.label == item.options[int(np.argmax(answer.option_probs))]


def test_more_options_than_a_request_may_name_are_asked_for_in_several(build_vllm, vllm):
    item = Item("x.single.01", "x", "Which?", "single", tuple(f"{chr(192 + n)}" for n in range(150)))
    options = [[n, 300] for n in range(150)]
    assert [len(question.tokens) for question in token_questions(options, by_first_token=True, max_tokens=128)] == [
        128,
        22,
    ]
    (answer,) = build_vllm(show_options="none").answer([Group(PERSONAS[0], (Cell("x", item, 5),))])
    assert answer.disposition == "complete"
    assert math.isclose(sum(answer.option_probs), 1.0)


# --- written text ---


@pytest.mark.parametrize("show", ["labels", "letters"])
def test_a_rationale_continues_from_the_option_chosen(build_vllm, vllm, vllm_tokenizer, show):
    answers = build_vllm(show_options=show, rationale=True).answer(groups_of(LIKERT))
    assert len(vllm.calls) == 2
    for answer, persona, (ids, params) in zip(answers, PERSONAS, vllm.calls[1], strict=True):
        prompt = encode_prompt(vllm_tokenizer, build_messages(persona, LIKERT, show))
        choice = render_choice(answer.label, show, SCALE.index(answer.label))
        assert ids == prompt + encode(vllm_tokenizer, choice)
        assert params.seed == seed_from(persona.persona_id, LIKERT.item_id)
        assert answer.text == f"{choice} {answer.rationale}".strip()
        assert answer.new_tokens >= 1
    assert any(answer.rationale for answer in answers)


def test_an_open_answer_ends_at_its_end_of_turn_or_is_truncated(build_vllm, vllm_tokenizer, vllm):
    groups = groups_of(OPEN, personas=[Persona(f"p{n}", {"age": 20 + n}) for n in range(12)])
    answers = build_vllm(max_new_tokens=4).answer(groups)
    ended = {answer.disposition: answer for answer in answers if answer.text}
    assert {"complete", "truncated"} <= set(ended)
    assert ended["truncated"].new_tokens == 4
    assert all("<|im_end|>" not in answer.text for answer in answers)
    params = vllm.calls[0][0][1]
    assert params.given == {
        "max_tokens": 4, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
        "seed": groups[0].cells[0].seed, "stop": None, "detokenize": False, "stop_token_ids": [0, 1, END],
        "ignore_eos": True,
    }  # fmt: skip


def test_sampling_options_reach_vllm(build_vllm, vllm):
    build_vllm(temperature=1.2, top_k=7, top_p=0.9, min_p=0.05, repetition_penalty=1.1).answer(groups_of(OPEN))
    params = vllm.calls[0][0][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty) == (
        1.2, 7, 0.9, 0.05, 1.1,
    )  # fmt: skip


def test_a_stop_string_ends_the_text_before_it(build_vllm, vllm):
    plain = build_vllm(max_new_tokens=30).answer(groups_of(OPEN))
    text = max((answer.text for answer in plain), key=len)
    stop = text[len(text) // 2 :][:2]
    stopped = build_vllm(max_new_tokens=30, stop=(stop,)).answer(groups_of(OPEN))
    answer = next(one for one, other in zip(stopped, plain, strict=True) if other.text == text)
    assert answer.text == text[: text.index(stop)].strip()
    assert answer.disposition == "complete"
    assert vllm.calls[-1][0][1].detokenize is True


def test_a_written_closed_answer_is_coded_from_its_text(build_vllm, vllm, monkeypatch):
    engine = build_vllm(closed="text", show_options="letters")
    monkeypatch.setattr(engine, "_tokenizer", _Saying(engine._tokenizer, "B) Disagree. The queue is long."))
    (answer,) = engine.answer(groups_of(LIKERT, personas=PERSONAS[:1]))
    assert (answer.code, answer.label, answer.rationale) == (2, "Disagree", "The queue is long.")
    assert answer.option_probs is None
    monkeypatch.setattr(engine, "_tokenizer", _Saying(engine._tokenizer, "Perhaps on Sunday."))
    (answer,) = engine.answer(groups_of(LIKERT, personas=PERSONAS[:1]))
    assert (answer.code, answer.disposition) == (None, "invalid")


class _Saying:
    """A tokenizer that decodes everything to one text."""

    def __init__(self, tokenizer, text):
        self._tokenizer, self._text = tokenizer, text

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments, **keywords):
        return self._tokenizer(*arguments, **keywords)

    def decode(self, ids, **options):
        return self._text


# --- order, sharing, failures ---


def test_answers_come_in_the_order_of_the_cells_and_prompts_persona_by_persona(build_vllm, vllm, vllm_tokenizer):
    groups = groups_of(OPEN, LIKERT, YESNO)
    answers = build_vllm(show_options="letters").answer(groups)
    assert [answer.assignment_id for answer in answers] == [c.assignment_id for g in groups for c in g.cells]
    expected = [
        encode_prompt(vllm_tokenizer, build_messages(group.persona, cell.item, "letters"))
        for group in groups
        for cell in group.cells
    ]
    assert [ids for ids, _ in vllm.calls[0]] == expected


def test_what_the_prefix_cache_saved_is_reported(build_vllm):
    first, second = build_vllm().answer(groups_of(OPEN, LIKERT, personas=PERSONAS[:1]))
    assert first.reused_prompt_tokens == 0
    assert 16 <= second.reused_prompt_tokens < second.prompt_tokens


def test_a_cells_choice_depends_on_no_other_cell(build_vllm):
    together = build_vllm(rationale=True).answer(groups_of(OPEN, LIKERT, YESNO))
    for group, answers in zip(groups_of(OPEN, LIKERT, YESNO), (together[:3], together[3:]), strict=True):
        for cell, answer in zip(group.cells, answers, strict=True):
            (alone,) = build_vllm(rationale=True).answer([Group(group.persona, (cell,))])
            assert alone == answer._replace(reused_prompt_tokens=0)


def test_a_prompt_without_room_is_an_error_of_its_cell_alone(build_vllm, vllm):
    answers = build_vllm().answer(groups_of(LONG, OPEN))
    assert [answer.disposition == "error" for answer in answers] == [True, False, True, False]
    assert "vLLM has room for 512" in answers[0].error
    assert len(vllm.calls[0]) == 2


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("refuse", "vLLM refuses the request: this prompt is refused"),
        ("error", "vLLM ended the request with 'error'"),
        ("abort", "vLLM ended the request with 'abort'"),
        ("nan", "the model's logits are not finite"),
    ],
)
def test_a_request_that_fails_is_an_error_of_its_cell_alone(build_vllm, vllm, vllm_tokenizer, behaviour, says):
    bad = encode_prompt(vllm_tokenizer, build_messages(PERSONAS[0], YESNO, "letters"))
    vllm.behaviour = lambda ids, params: behaviour if ids == bad else ""
    answers = build_vllm(show_options="letters").answer(groups_of(LIKERT, YESNO, OPEN))
    assert [answer.error for answer in answers] == ["", says, "", "", "", ""]
    assert answers[1].disposition == "error"
    assert answers[1].prompt_tokens == len(bad)


def test_a_failed_cell_gets_no_rationale(build_vllm, vllm):
    vllm.behaviour = lambda ids, params: "error" if params.logprob_token_ids else ""
    answers = build_vllm(show_options="letters", rationale=True).answer(groups_of(LIKERT))
    assert {answer.disposition for answer in answers} == {"error"}
    assert len(vllm.calls) == 1


def test_a_missing_output_stops_the_shard(build_vllm, monkeypatch):
    engine = build_vllm()
    monkeypatch.setattr(vllm_double.LLM, "_complete", lambda *_: None)
    monkeypatch.setattr(engine._llm, "generate", lambda *_, **__: [])
    with pytest.raises(RuntimeError, match="0 outputs to 2 requests"):
        engine.answer(groups_of(OPEN))


def test_the_death_of_vllms_engine_ends_the_process_at_once(build_vllm, vllm):
    engine = build_vllm()
    vllm.behaviour = lambda ids, params: "die"
    child = os.fork()
    if not child:
        try:
            engine.answer(groups_of(OPEN))
        finally:
            os._exit(77)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_a_death_is_told_before_the_end(build_vllm, vllm, monkeypatch, caplog):
    engine = build_vllm()
    vllm.behaviour = lambda ids, params: "die"
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as caught:
        engine.answer(groups_of(OPEN))
    assert caught.value.code == 1
    assert "vLLM's engine died (EngineCore encountered an issue)" in caplog.text
