"""pytest tests/engines/test_endpoint.py: what the endpoint engine asks a real server, and how it reads the answers."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pytest
from endpoint_server import ADA, CLOSED, KEY, OPEN, Step, ask, cells, completion, refusal, scored, serve, settings_for

from polypersona.chatml import build_messages
from polypersona.engines import endpoint_client
from polypersona.engines.base import Cell, Group
from polypersona.engines.endpoint import check_settings
from polypersona.engines.registry import load_engine
from polypersona.errors import EngineError
from polypersona.records import Persona, seed_from


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.01)
    with serve() as running:
        yield running


def test_a_cell_is_asked_with_the_renderers_messages_and_the_recipes_sampling(server):
    settings = settings_for(server, sampling={"temperature": 0.4, "top_p": 0.9, "max_new_tokens": 33, "stop": ("END",)})
    server.default = Step(body=completion("I like it."))
    (answer,) = ask(settings, cells(1))
    (body,) = server.bodies
    system, user = build_messages(ADA, OPEN, "labels")
    assert body["messages"][0] == system
    assert body["messages"][1]["content"].startswith(user["content"] + "\n")
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("toy", 0.4, 0.9, 33)
    assert body["seed"] == seed_from(0) % 2**31
    assert body["stop"] == ["END"]
    assert set(body) == {"model", "messages", "seed", "temperature", "top_p", "max_tokens", "stop"}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (answer.text, answer.disposition, answer.error) == ("I like it.", "complete", "")
    assert (answer.prompt_tokens, answer.reused_prompt_tokens, answer.new_tokens) == (90, 64, 3)


def test_a_model_tuned_on_the_prompts_gets_them_as_they_are(server):
    ask(settings_for(server, instruct=False, limit_parameter="max_completion_tokens"), cells(1, CLOSED))
    assert tuple(server.bodies[0]["messages"]) == build_messages(ADA, CLOSED, "labels")
    assert server.bodies[0]["max_completion_tokens"] == 96
    assert "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize(
    ("body", "disposition", "code", "rationale"),
    [
        (completion("Agree. She listens."), "complete", 3, "She listens."),
        (completion("Agree. She lis", "length"), "complete", 3, "She lis"),
        (completion("Perhaps."), "invalid", None, ""),
        (completion("I prefer not to answer."), "refusal", None, ""),
        (completion(None, refusal="I cannot help with that."), "refusal", None, ""),
        (completion("Agr", "content_filter"), "refusal", None, ""),
        (completion(""), "item_nonresponse", None, ""),
        (completion(None), "item_nonresponse", None, ""),
    ],
)
def test_a_written_closed_answer_is_coded(server, body, disposition, code, rationale):
    server.default = Step(body=body)
    (answer,) = ask(settings_for(server), cells(1, CLOSED))
    assert (answer.disposition, answer.code, answer.rationale) == (disposition, code, rationale)
    assert answer.option_probs is None


@pytest.mark.parametrize(
    ("text", "disposition", "code", "rationale"),
    [
        ("A", "complete", 3, ""),
        ("A) Agree. She listens.", "complete", 3, "She listens."),
        ("B", "complete", 1, ""),
        ("Agree. She listens.", "complete", 3, "She listens."),
        ("B) Agree.", "invalid", None, ""),  # letter and label name different options
        ("D", "invalid", None, ""),
    ],
)
def test_a_written_letter_is_read_by_the_order_shown(server, text, disposition, code, rationale):
    server.default = Step(body=completion(text))
    (answer,) = ask(settings_for(server, show_options="letters"), cells(1, CLOSED, (2, 0, 1)))
    assert "A) Agree; B) Disagree; C) Neither" in server.bodies[0]["messages"][1]["content"]
    assert (answer.disposition, answer.code, answer.rationale, answer.text) == (disposition, code, rationale, text)
    server.default = Step(body=completion("A"))
    assert ask(settings_for(server), cells(1, CLOSED, (2, 0, 1)))[0].disposition == "invalid"  # no letter was shown


def test_an_open_answer_that_the_limit_cut_is_truncated(server):
    server.default = Step(body=completion("I think that", "length"))
    (answer,) = ask(settings_for(server), cells(1))
    assert (answer.disposition, answer.text) == ("truncated", "I think that")


def test_a_reply_without_usage_counts_nothing(server):
    server.default = Step(body={**completion(), "usage": None})
    (answer,) = ask(settings_for(server), cells(1))
    assert (answer.disposition, answer.prompt_tokens, answer.new_tokens) == ("complete", 0, 0)


def test_letters_are_scored_renormalised_and_drawn_in_the_items_own_order(server):
    order = (2, 0, 1)  # shown: A) Agree; B) Disagree; C) Neither
    top = {"A": math.log(0.3), " A": math.log(0.1), "B": math.log(0.08), "I": math.log(0.3), "a": math.log(0.2)}
    server.default = Step(body=scored(top))
    settings = settings_for(server, closed="score", show_options="letters", sampling={"temperature": 0.8})
    answers = ask(settings, cells(400, CLOSED, order))
    body = server.bodies[0]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 20, 1, 1.0)
    assert "A) Agree; B) Disagree; C) Neither" in body["messages"][1]["content"]
    assert answers[0].option_probs == pytest.approx((0.08 / 0.48, 0.0, 0.4 / 0.48))
    assert {answer.disposition for answer in answers} == {"complete"}
    counts = Counter(answer.code for answer in answers)
    assert set(counts) == {1, 3}
    assert counts[1] == pytest.approx(400 / 6, abs=4 * math.sqrt(400 * 5 / 36))
    assert {answer.text for answer in answers} == {"A) Agree.", "B) Disagree."}
    again = ask(settings, cells(20, CLOSED, order))
    assert [answer.code for answer in again] == [answer.code for answer in answers[:20]]


def test_a_temperature_of_zero_takes_the_likeliest_letter(server):
    server.default = Step(body=scored({"B": -1.0, "C": -1.1, "A": -9999.0}))
    settings = settings_for(server, closed="score", show_options="letters", sampling={"temperature": 0.0})
    assert {answer.code for answer in ask(settings, cells(20, CLOSED))} == {2}


def test_where_no_letter_is_likely_the_answer_is_invalid_and_a_filtered_one_a_refusal(server):
    settings = settings_for(server, closed="score", show_options="letters")
    server.default = Step(body=scored({"As": -0.1, "I": -2.0}, "As"))
    (answer,) = ask(settings, cells(1, CLOSED))
    assert (answer.disposition, answer.text, answer.option_probs) == ("invalid", "As", None)
    server.default = Step(body=completion("", "content_filter"))
    assert ask(settings, cells(1, CLOSED))[0].disposition == "refusal"


def test_a_server_without_log_probabilities_cannot_score(server):
    with pytest.raises(EngineError, match="no log probabilities") as caught:
        ask(settings_for(server, closed="score", show_options="letters"), cells(1, CLOSED))
    assert "closed: text" in caught.value.hint


def test_a_reply_without_log_probabilities_among_others_is_an_error_of_its_cell(server):
    engine = load_engine(settings_for(server, closed="score", show_options="letters", concurrency=1))
    server.default = Step(body=scored({"A": -0.1}))
    server.steps = [Step(body=completion("A"))]
    answers = engine.answer(cells(3, CLOSED))
    assert [answer.disposition for answer in answers] == ["error", "complete", "complete"]
    assert answers[0].error == "the reply has no log probabilities"
    server.steps = [Step(body=completion("A"))]
    assert engine.answer(cells(1, CLOSED))[0].disposition == "error"
    engine.close()


def test_half_a_character_in_a_reply_is_a_question_mark(server):
    server.steps = [Step(body=completion("I like it. \ud83d")), Step(400, {"error": {"message": "no \udc00"}})]
    said, failed = ask(settings_for(server, concurrency=1), cells(2))
    assert said.text == "I like it. ?"
    assert failed.error.startswith("HTTP 400: no ?")


def test_an_item_of_more_options_than_the_protocol_shows_is_an_error_of_its_cell(server):
    item = replace(CLOSED, options=tuple(f"Option {n}" for n in range(21)), codes=tuple(range(21)))
    server.default = Step(body=scored({"A": -0.1}))
    (answer,) = ask(settings_for(server, closed="score", show_options="letters"), cells(1, item))
    assert (answer.disposition, answer.error) == ("error", "the item has 21 options; an endpoint can score 20")


REFUSED = [
    ({"sampling": {"top_k": 5}}, "top_k"),
    ({"sampling": {"min_p": 0.1}}, "min_p"),
    ({"sampling": {"repetition_penalty": 1.1}}, "repetition_penalty"),
    ({"sampling": {"stop": ("a", "b", "c", "d", "e")}}, "stop has 5 texts"),
    ({"closed": "score"}, "show_options is labels"),
    ({"closed": "score", "show_options": "none"}, "show_options is none"),
    ({"closed": "score", "show_options": "letters", "rationale": True}, "rationale"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_what_the_protocol_does_not_have_is_refused_by_name(server, options, named):
    with pytest.raises(EngineError, match=named) as caught:
        check_settings(settings_for(server, **options))
    assert caught.value.hint


def test_a_missing_key_names_its_variable_and_a_server_without_keys_gets_none(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EngineError, match="OPENAI_API_KEY is not set"):
        load_engine(settings_for(server))
    assert ask(settings_for(server, key_variable=None), cells(1))[0].disposition == "complete"
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("value", ["sk-two words", "sk-schlüssel", "sk-a\nb"])
def test_a_key_that_is_none_is_refused_without_showing_it(server, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(EngineError, match="OPENAI_API_KEY") as caught:
        load_engine(settings_for(server))
    assert value not in repr(caught.value)


def test_the_key_is_in_no_answer_error_or_representation(server):
    server.steps = [refusal(400, f"Incorrect API key provided: {KEY}. {'x' * 170} {KEY}")]
    server.default = Step(body=completion(f"Your header was Bearer {KEY}."))
    settings = settings_for(server, concurrency=1)
    engine = load_engine(settings)
    answers = engine.answer(cells(2))
    server.default = Step(body={"echo": KEY})
    answers += engine.answer(cells(1))
    engine.close()
    assert [answer.disposition for answer in answers] == ["error", "complete", "error"]
    assert answers[1].text == "Your header was Bearer ***."
    shown = repr(answers) + repr(engine) + repr(settings) + repr(engine._client) + repr(engine._client._http.headers)
    assert KEY not in shown
    assert KEY[:12] not in shown


def test_a_persona_that_no_encoding_holds_is_still_asked(server):
    group = Group(Persona("odd", {"name": "\ud800"}), (Cell("a", OPEN, 1),))
    assert ask(settings_for(server), [group])[0].disposition == "complete"


def test_an_engine_ends_its_thread(server):
    before = threading.active_count()
    engine = load_engine(settings_for(server))
    assert engine.name == "endpoint"
    assert engine.reproduces == "none"
    assert engine.answer([]) == []
    engine.close()
    engine.close()
    assert threading.active_count() == before


def test_written_answers_load_no_torch(server):
    code = (
        "import sys; from polypersona.engines.base import *; from polypersona.engines.registry import load_engine\n"
        f"load_engine(EngineSettings('endpoint', 7, closed='text', endpoint=EndpointSettings({server.url!r}, 'x')))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray')))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
