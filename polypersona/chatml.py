"""Persona × item → chat messages → text → token ids. The only place where prompt text exists.

Training, generation and evaluation all render here, so a model is asked exactly what it was taught. The prompt and
the answer are tokenised apart and concatenated: what training sees after a prompt is what generation continues,
whatever the tokenizer would merge across the border. Knows tokenizers by duck typing only, and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal, Protocol

from jinja2.exceptions import TemplateError

from polypersona.control_tokens import control_ids, without_control_tokens, without_markup
from polypersona.errors import DatasetError, ModelError, QuestionbankError
from polypersona.records import AttributeValue, Item, Persona

RENDERER_VERSION = 1
ShowOptions = Literal["labels", "letters", "none"]
Message = Mapping[str, str]

SYSTEM_PROMPT = "You are a survey respondent. Stay in character and answer in the first person."
# What a model that was not tuned on these prompts is told about the form of its answer.
LETTER_FORM = "Answer with the letter of one option and nothing else."
CHOICE_FORM = "Answer with one of the options, word for word, and nothing else."
CHOICE_AND_RATIONALE_FORM = "Begin with one of the options, word for word, then say why in one or two sentences."
OPEN_FORM = "Answer in one to three sentences."
# Attributes with a meaning the simulator and the tiny model know come first, in this order; others follow by name.
CARD_ORDER = (
    "age", "gender", "education", "work", "occupation", "income", "wealth", "area", "marital",
    "politics", "religion", "values", "temperament", "interests",
)  # fmt: skip
FALLBACK_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
FALLBACK_ASSISTANT = "<|im_start|>assistant\n"
NUM_LETTERS = 26
# Some templates (Llama 3) write today's date into the system turn unless they are given one.
TEMPLATE_DATE = "26 Jul 2024"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_SPACE = re.compile(r"\s+")


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that rendering needs."""

    chat_template: Any
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages with the model's own template."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """Tokenise a text."""


@lru_cache(maxsize=1 << 16)
def clean_text(text: str) -> str:
    """Return the text on one line, with nothing a chat template could read as a role or control token."""
    return without_markup(_SPACE.sub(" ", _CONTROL.sub(" ", text)).strip())


def render_value(value: AttributeValue) -> str:
    """Return an attribute's value as the card shows it: lists joined by commas, floats without a trailing zero."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(clean_text(str(part)) for part in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean_text(str(value))


def card_attributes(persona: Persona) -> list[tuple[str, AttributeValue]]:
    """Return the attributes in the card's fixed order: `CARD_ORDER` first, the rest by name."""
    rank = {name: index for index, name in enumerate(CARD_ORDER)}
    return sorted(persona.attributes.items(), key=lambda pair: (rank.get(pair[0], len(rank)), pair[0]))


def render_card(persona: Persona) -> str:
    """Return the persona as lines of `name: value`, then its free text."""
    lines = [f"{clean_text(name)}: {render_value(value)}" for name, value in card_attributes(persona)]
    if persona.text:
        lines.append(clean_text(persona.text))
    return "\n".join(lines)


def render_options(options: Sequence[str], show: ShowOptions) -> str:
    """Return the options as the prompt shows them, in the order given; empty for `none`."""
    if show == "none" or not options:
        return ""
    if show == "letters":
        return "Options: " + "; ".join(
            f"{render_letter(place)}) {clean_text(label)}" for place, label in enumerate(options)
        )
    return "Options: " + "; ".join(clean_text(label) for label in options)


def render_question(item: Item, show: ShowOptions, order: Sequence[int] | None = None) -> str:
    """Return the part of the user's turn that follows the card. `order` permutes the options as shown, if not None."""
    shown = item.options_as_shown if order is None else [item.options[index] for index in order]
    lines = [f"Domain: {clean_text(item.domain.replace('_', ' '))}", f"Question: {clean_text(item.stem)}"]
    options = render_options(shown, show)
    return "\n".join([*lines, options] if options else lines)


def build_messages(
    persona: Persona, item: Item, show: ShowOptions = "labels", order: Sequence[int] | None = None
) -> tuple[Message, Message]:
    """Return the system and user messages that ask the persona the item."""
    user = f"Persona:\n{render_card(persona)}\n\n{render_question(item, show, order)}"
    return {"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}


def ask_for(messages: Sequence[Message], form: str) -> tuple[Message, ...]:
    """Return the messages with a line on the answer's form at their end, for a model not tuned on these prompts."""
    *rest, last = messages
    return *rest, {**last, "content": f"{last['content']}\n{form}"}


def render_letter(place: int) -> str:
    """Return the letter of the option that the prompt shows at a place, counted from zero.

    Raises:
        QuestionbankError: there are more options than letters.
    """
    if not 0 <= place < NUM_LETTERS:
        raise QuestionbankError(
            f"The option number {place + 1} of an item has no letter: they go from A to Z.",
            "Set instrument.show_options: labels.",
        )
    return chr(ord("A") + place)


def shown_place(index: int, order: Sequence[int] | None = None) -> int:
    """Return where the prompt shows the item's option `index`: its place in `order`, or its own where that is None."""
    return index if order is None else list(order).index(index)


def render_choice(label: str, show: ShowOptions = "labels", place: int | None = None) -> str:
    """Return how an answer begins that picks the option: the label as a sentence, after its letter where it has one.

    Args:
        label: the option.
        show: how the prompt shows the options.
        place: where it shows this one (`shown_place`); needed for letters, and of no meaning otherwise.
    """
    label = clean_text(label)
    sentence = label if label.endswith((".", "!", "?")) else label + "."
    if show != "letters":
        return sentence
    if place is None:
        raise ValueError("an option of a lettered list is rendered with its place")
    return f"{render_letter(place)}) {sentence}"


def render_answer(label: str, rationale: str = "", show: ShowOptions = "labels", place: int | None = None) -> str:
    """Return the full text of a closed answer: the choice and, where there is one, its rationale."""
    return f"{render_choice(label, show, place)} {rationale}".strip()


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the system text at the head of the first user's turn, as for templates without it."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def render_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> str:
    """Return the text a model continues with the assistant's answer, by its native template or the ChatML fallback.

    A template that knows no system role gets the system text at the head of the user's turn.

    Raises:
        ModelError: the template cannot render the conversation.
    """
    return _render(tokenizer, messages, is_prompt=True)


def render_conversation(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> str:
    """Return the whole conversation, the assistant's answer and its end of turn included."""
    return _render(tokenizer, messages, is_prompt=False)


def encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Return the token ids of a rendered text; no special token is added."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def encode_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of `render_prompt`."""
    return encode(tokenizer, render_prompt(tokenizer, messages))


def encode_example(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return prompt ids and answer ids of a conversation that ends with the assistant's turn.

    The answer's ids include the end of turn; they are what the loss is taken on, and never empty.

    Raises:
        DatasetError: the template renders a conversation that does not begin with its own prompt.
    """
    prompt = render_prompt(tokenizer, messages[:-1])
    whole = render_conversation(tokenizer, messages)
    if not whole.startswith(prompt):
        raise DatasetError(
            "The chat template renders a conversation that does not begin with its own prompt.",
            "Remove the template from the tokenizer to train with the ChatML fallback.",
        )
    answer = encode(tokenizer, whole[len(prompt) :].rstrip("\n"))
    if not answer:
        raise DatasetError("The assistant's turn has no token to learn.", "Drop records with an empty answer.")
    return encode(tokenizer, prompt), answer


def end_of_turn_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return the ids that end the assistant's turn: the template's own and the tokenizer's end of sequence."""
    _, answer = encode_example(
        tokenizer,
        [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "x"},
        ],
    )
    eos = getattr(tokenizer, "eos_token_id", None)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ends = {answer[-1]} if answer[-1] in special else set()
    return frozenset(ends | ({int(eos)} if eos is not None else set()))


def stop_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return the ids at which an answer is over: the ends of a turn, and every other control token.

    A model that writes one has left its answer. What it writes stays in an interview, where the next question would
    stand behind a turn that nobody took.
    """
    return end_of_turn_ids(tokenizer) | control_ids(tokenizer)


def encode_text(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Return the token ids of a text that is no rendering: nothing in it is read as a control token."""
    return encode(tokenizer, without_control_tokens(tokenizer, text))


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all rows share, always leaving at least one token of each row unshared."""
    if not rows:
        return 0
    limit = min(len(row) for row in rows) - 1
    return sum(1 for _ in takewhile(lambda i: all(row[i] == rows[0][i] for row in rows), range(limit)))


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], *, is_prompt: bool) -> str:
    messages = [without_special_tokens(tokenizer, message) for message in messages]
    if not getattr(tokenizer, "chat_template", None):
        text = "".join(FALLBACK_TURN.format(**message) for message in messages)
        return text + (FALLBACK_ASSISTANT if is_prompt else "")
    try:
        text = _apply_template(tokenizer, messages, is_prompt)
    except TemplateError as error:
        if messages[0]["role"] != "system":
            raise _template_error(error) from error
    else:
        if messages[0]["role"] != "system" or messages[0]["content"] in text:
            return text
    # The template refuses the system role, or leaves its text out.
    try:
        return _apply_template(tokenizer, fold_system(messages), is_prompt)
    except TemplateError as error:
        raise _template_error(error) from error


def _apply_template(tokenizer: ChatTokenizer, messages: Sequence[Message], is_prompt: bool) -> str:
    options = {"tokenize": False, "add_generation_prompt": is_prompt, "enable_thinking": False}
    return str(tokenizer.apply_chat_template(messages, date_string=TEMPLATE_DATE, **options))


def _template_error(error: TemplateError) -> ModelError:
    return ModelError(
        f"The model's chat template cannot render a conversation of system, user and assistant: {error}.",
        "Remove the template from the tokenizer to use the ChatML fallback.",
    )


def without_special_tokens(tokenizer: ChatTokenizer, message: Message) -> dict[str, str]:
    """Return the message as it is rendered: nothing in its text can be read as a control token."""
    return {"role": message["role"], "content": without_control_tokens(tokenizer, message["content"])}
