"""An answer's text becomes the option it names and nothing else; how a cell ended is told from its text."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.chatml import render_answer
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.questionbank import load_bank
from polypersona.readback import misread_options
from polypersona.records import Item

LIKERT = Item(
    "x.likert.01", "x", "I like it.", "likert",
    ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree"),
)  # fmt: skip
YES_NO = Item("x.yesno.01", "x", "Do you?", "yesno", ("No", "Yes"))
AMOUNT = Item("x.single.01", "x", "How much?", "single", ("Not at all", "Not much", "A lot", "I don't know yet"))
CODED = Item("x.single.02", "x", "Which?", "single", ("First", "Second", "Third"), (10, 20, 97))
OPEN = Item("x.open.01", "x", "Why?", "open")
HELP = Item(
    "x.single.03", "x", "Who helps you?", "single", ("None", "Don't know yet", "Prefer not to say", "No", "N/A")
)
CLOSED = [item for item in load_bank() if item.is_closed]


@pytest.mark.parametrize(
    ("item", "text", "code"),
    [
        (LIKERT, "Strongly agree", 5),
        (LIKERT, "Strongly agree.", 5),
        (LIKERT, "STRONGLY AGREE!", 5),
        (LIKERT, "strongly   agree, because I do", 5),
        (LIKERT, "Agree", 4),
        (LIKERT, "Agree. I strongly agree with my friends.", 4),
        (LIKERT, "Agree strongly", 4),
        (LIKERT, "Disagree", 2),
        (LIKERT, "Strongly disagree: never.", 1),
        (LIKERT, "Neither agree nor disagree.", 3),
        (LIKERT, '"Agree." I do.', 4),
        (LIKERT, "**Agree** - I do.", 4),
        (LIKERT, "'Agree'", 4),
        (LIKERT, "  - Agree", 4),
        (LIKERT, "Agreeable", None),
        (LIKERT, "Agree's not the word", None),
        (LIKERT, "I agree", None),
        (LIKERT, "Somewhat agree", None),
        (LIKERT, "Neither", None),
        (LIKERT, "", None),
        (LIKERT, "...", None),
        (LIKERT, "A", None),
        (LIKERT, "A)", 1),
        (LIKERT, "(e) because", 5),
        (LIKERT, "D. I do.", 4),
        (LIKERT, "B: Disagree", 2),
        (LIKERT, "F)", None),
        (LIKERT, "B)ecause", None),
        (YES_NO, "No.", 1),
        (YES_NO, "Yes, I do", 2),
        (YES_NO, "Nobody knows", None),
        (YES_NO, "Yesterday", None),
        (AMOUNT, "A lot. It matters.", 3),
        (AMOUNT, "Not much", 2),
        (AMOUNT, "I don’t know yet", 4),
        (AMOUNT, "I don't know", None),
        (CODED, "Third", 97),
        (CODED, "C)", 97),
        (OPEN, "Anything", None),
    ],
)
def test_an_answer_is_read_as_the_option_that_opens_it(item, text, code):
    assert code_answer(item, text) == code


@pytest.mark.parametrize(
    ("text", "order", "code"),
    [
        ("A)", None, 1),
        ("A)", (4, 3, 2, 1, 0), 5),
        ("B. It suits me.", (2, 0, 1, 3, 4), 1),
        ("A) Agree", (3, 0, 1, 2, 4), 4),
    ],
)
def test_a_letter_names_the_option_the_prompt_showed_beside_it(text, order, code):
    assert code_answer(LIKERT, text, order) == code


@pytest.mark.parametrize(
    ("text", "label", "rationale"),
    [
        ("Agree. I do.", "Agree", "I do."),
        ("Strongly agree, for I do.", "Strongly agree", "for I do."),
        ('"Agree." Because I do.', "Agree", "Because I do."),
        ("**Agree** — because I do.", "Agree", "because I do."),
        ('Agree. "Enough" is a word.', "Agree", '"Enough" is a word.'),
        ("D) Agree. I do.", "Agree", "I do."),
        ("D) I do.", "Agree", "I do."),
        ("Agree", "Agree", ""),
        ("I cannot tell.", "", "I cannot tell."),
    ],
)
def test_a_rationale_is_what_follows_the_option(text, label, rationale):
    assert split_rationale(LIKERT, text) == (label, rationale)


@given(st.data())
def test_every_answer_this_project_renders_is_read_back(data):
    item = data.draw(st.sampled_from(CLOSED))
    index = data.draw(st.integers(0, len(item.options) - 1))
    rationale = data.draw(st.sampled_from(["", "I do.", "Agree with me.", "No. Yes.", "A) is mine."]))
    text = render_answer(item.options[index], rationale)
    assert code_answer(item, text) == item.codes[index]
    assert split_rationale(item, text) == (item.options[index], rationale)


@given(st.text(max_size=40))
def test_no_text_breaks_the_coding(text):
    assert code_answer(LIKERT, text) in (None, *LIKERT.codes)
    assert disposition_of(LIKERT, text) in ("complete", "refusal", "item_nonresponse", "invalid")


@pytest.mark.parametrize(
    ("item", "text", "disposition"),
    [
        (LIKERT, "Agree.", "complete"),
        (LIKERT, "Perhaps.", "invalid"),
        (LIKERT, "  ", "item_nonresponse"),
        (LIKERT, "N/A", "item_nonresponse"),
        (LIKERT, "Don't know.", "item_nonresponse"),
        (LIKERT, "Don’t know.", "item_nonresponse"),
        (YES_NO, "No answer", "item_nonresponse"),
        (YES_NO, "No.", "complete"),
        (LIKERT, "I prefer not to say.", "refusal"),
        (LIKERT, "Agree. But I'd rather not say why.", "refusal"),
        (LIKERT, "I refuse to answer.", "refusal"),
        (OPEN, "I decline to answer.", "refusal"),
        (OPEN, "I can't answer that question.", "refusal"),
        (OPEN, "I can’t answer this, sorry", "refusal"),
        (OPEN, "I cannot answer", "refusal"),
        (OPEN, "As an AI language model, I have no home.", "refusal"),
        (OPEN, "As an AI, I have no home.", "refusal"),
        (OPEN, "I'm an AI and have no home.", "refusal"),
        (OPEN, "I’m just a language model.", "refusal"),
        (OPEN, "As an AI engineer I work from home.", "complete"),
        (OPEN, "I use a language model at work.", "complete"),
        (OPEN, "As an aide, I help.", "complete"),
        (OPEN, "I can't answer emails in the evening.", "complete"),
        (OPEN, "My work.", "complete"),
        (OPEN, "None of it helps me.", "complete"),
        (OPEN, "None", "item_nonresponse"),
        (HELP, "None.", "complete"),
        (HELP, "none. Nobody does.", "complete"),
        (HELP, "A) None.", "complete"),
        (HELP, "N/A", "complete"),
        (HELP, "No answer", "item_nonresponse"),
        (HELP, "No comment.", "item_nonresponse"),
        (HELP, "Don't know.", "item_nonresponse"),
        (HELP, "Prefer not to say. It is private.", "complete"),
        (HELP, "None. I prefer not to say more.", "refusal"),
        (HELP, "I prefer not to say.", "refusal"),
    ],
)
def test_a_disposition_is_told_from_the_text(item, text, disposition):
    assert disposition_of(item, text) == disposition


@pytest.mark.parametrize(
    ("item", "text", "disposition"),
    [
        (OPEN, "I would say that", "truncated"),
        (LIKERT, "Agree. I would say", "complete"),
        (LIKERT, "Well I would say", "invalid"),
        (OPEN, "", "item_nonresponse"),
    ],
)
def test_a_length_stop_truncates_an_open_answer_only(item, text, disposition):
    assert disposition_of(item, text, is_truncated=True) == disposition


@pytest.mark.parametrize("show", ["labels", "letters"])
def test_the_words_of_an_option_are_read_as_it_and_labels_that_differ_by_a_sign_are_not(show):
    assert misread_options(HELP, show) == {}
    signed = Item("x.single.04", "x", "How much?", "single", ("-2", "0", "2"))
    assert misread_options(signed, show) == {"2": "cannot be told apart from another one in an answer"}
    assert misread_options(replace(signed, shown=(2, 1, 0)), show).keys() == {"2"}
