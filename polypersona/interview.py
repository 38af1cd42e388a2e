"""An interview: one conversation in which a persona is asked item after item, as messages and as a stream of tokens.

The first question is asked exactly as `chatml.build_messages` asks it alone; later ones follow the persona's own
answers. A model's keys and values can be kept over the whole interview, because the stream only grows: `encode_first`,
then for each answer its own tokens (`encode_answer`, or those the model wrote, without an end of turn) and
`encode_next`. Joined they decode to the chat template's rendering of the whole conversation. Knows tokenizers by duck
typing, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from polypersona.chatml import (
    SYSTEM_PROMPT,
    ChatTokenizer,
    Message,
    ShowOptions,
    build_messages,
    encode,
    encode_prompt,
    encode_text,
    fold_system,
    render_conversation,
    render_prompt,
    render_question,
    without_special_tokens,
)
from polypersona.errors import ModelError
from polypersona.records import Item, Persona

Conversation: TypeAlias = tuple[Message, ...]


class Turn(NamedTuple):
    """A question that was put, with the order its options were shown in, and what was answered."""

    item: Item
    order: Sequence[int] | None
    text: str


def build_interview(
    persona: Persona,
    earlier: Sequence[Turn],
    item: Item,
    show: ShowOptions = "labels",
    order: Sequence[int] | None = None,
) -> Conversation:
    """Return the messages that ask the item after the earlier turns: system, card with the first question, answer, ….

    Without earlier turns they are those of `build_messages`. Items that were not asked are no turns.
    """
    if not earlier:
        return build_messages(persona, item, show, order)
    first, *rest = earlier
    messages = [*build_messages(persona, first.item, show, first.order), _answer(first.text)]
    for turn in rest:
        messages += [_question(turn.item, show, turn.order), _answer(turn.text)]
    return *messages, _question(item, show, order)


def encode_first(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of an interview's first prompt, up to where the answer begins."""
    return encode_prompt(tokenizer, messages[:2])


def encode_answer(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Return the token ids of an answer as the template writes it after a prompt, without its end of turn."""
    return encode_text(tokenizer, answer_lead(tokenizer) + text.strip()) if text.strip() else []


def answer_lead(tokenizer: ChatTokenizer) -> str:
    """Return what the template puts between a prompt and the answer's text: a blank in some, in most nothing."""
    probe: list[Message] = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "u"},
        _answer("x"),
    ]
    prompt, whole = render_prompt(tokenizer, probe[:-1]), render_conversation(tokenizer, probe)
    if not whole.startswith(prompt):
        raise _not_append_only(tokenizer, "an answer does not follow its own prompt")
    rest = whole[len(prompt) :]
    return rest[: len(rest) - len(rest.lstrip())]


def encode_next(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids between the last answer and the next one: end of turn, the last question, the next header.

    Args:
        tokenizer: the model's.
        messages: the conversation so far as `build_interview` gives it, with the new question at its end.

    Raises:
        ModelError: the template changes what stands before when a turn is added, such as one that strips thoughts.
    """
    if len(messages) < 4:
        raise ValueError("the first question follows no answer; encode_first renders it")
    first = render_prompt(tokenizer, messages[:2])
    # A template that puts the system text into the last turn only grows where that is in the first one from the start.
    for conversation in (messages, fold_system(messages)):
        text = _text_after_answer(tokenizer, conversation, first)
        if text is not None:
            return encode(tokenizer, text)
    raise _not_append_only(tokenizer, "it renders earlier turns otherwise once another question follows")


def _text_after_answer(tokenizer: ChatTokenizer, messages: Sequence[Message], first: str) -> str | None:
    """Return what the template writes after the last answer; None where the text before it has changed."""
    before, whole = render_prompt(tokenizer, messages[:-2]), render_prompt(tokenizer, messages)
    if not (before.startswith(first) and whole.startswith(before)):
        return None
    rest, answer = whole[len(before) :], without_special_tokens(tokenizer, messages[-2])["content"]
    begin = rest.find(answer)
    return rest[begin + len(answer) :] if begin >= 0 and not rest[:begin].strip() else None


def check_interviews(tokenizer: ChatTokenizer) -> None:
    """Hold an interview of three questions with the tokenizer, before anything is asked.

    Raises:
        ModelError: its template is not one whose rendering only grows.
    """
    item = Item("probe", "probe", "Question?", "open")
    turns = [Turn(item, None, "One."), Turn(item, None, "Two.")]
    answer_lead(tokenizer)
    for count in (1, 2):
        encode_next(tokenizer, build_interview(Persona("probe"), turns[:count], item))


def _question(item: Item, show: ShowOptions, order: Sequence[int] | None) -> Message:
    return {"role": "user", "content": render_question(item, show, order)}


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text.strip()}


def _not_append_only(tokenizer: ChatTokenizer, what: str) -> ModelError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return ModelError(
        f"The chat template of {name} cannot hold an interview: {what}.",
        "Set generate.context: none, or remove the template from the tokenizer to use the ChatML fallback.",
    )
