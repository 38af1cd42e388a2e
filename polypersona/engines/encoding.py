"""Persona and item → token ids of a prompt, with each card and each question rendered and tokenised once.

A rendering is split where the question begins. It may be split there if the tokenizer puts a border between two tokens
at that place; a tokenizer that does not, or cannot say, gets every prompt whole. Knows tokenizers by duck typing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polypersona.chatml import (
    ShowOptions,
    build_messages,
    encode,
    render_prompt,
    render_question,
    without_special_tokens,
)
from polypersona.records import Item, Persona

_MAX_QUESTIONS = 4096


class PromptEncoder:
    """Gives the token ids of `chatml.encode_prompt`.

    Every card has been tokenised before a real question, and every question after a real card, with a border between
    them; their other combinations are put together.
    """

    def __init__(self, tokenizer: Any, show: ShowOptions) -> None:
        self._tokenizer, self._show = tokenizer, show
        self._persona: Persona | None = None
        self._head: list[int] | None = None
        self._next = -1  # the token that has followed the head
        # The item is kept, so that no other object takes its identity.
        self._tails: dict[tuple[int, tuple[int, ...] | None], tuple[Item, list[int] | None]] = {}

    def encode(self, persona: Persona, item: Item, order: tuple[int, ...] | None) -> list[int]:
        """Return the ids of the prompt that asks a persona an item, up to where the answer begins."""
        found = self._tails.get((id(item), order))
        if found is not None and persona is self._persona:
            head, tail = self._head, found[1]
            if head is not None and tail is not None and tail[0] == self._next:
                return head + tail
        return self._encode_whole(persona, item, order)

    @property
    def num_shared(self) -> int:
        """Return how many tokens the last persona's prompts share; 0 where that is not known."""
        return len(self._head or ())

    def _encode_whole(self, persona: Persona, item: Item, order: tuple[int, ...] | None) -> list[int]:
        messages = build_messages(persona, item, self._show, order)
        text = render_prompt(self._tokenizer, messages)
        question = without_special_tokens(
            self._tokenizer, {"role": "user", "content": render_question(item, self._show, order)}
        )["content"]
        begin = text.rfind(question)
        ids, border = self._split(text, begin) if begin > 0 else (encode(self._tokenizer, text), None)
        if len(self._tails) >= _MAX_QUESTIONS:
            self._tails.clear()
        if (id(item), order) not in self._tails:
            self._tails[id(item), order] = (item, None if border is None else ids[border:])
        if persona is not self._persona:
            self._persona, self._head = persona, None if border is None else ids[:border]
            self._next = -1 if border is None else ids[border]
        return ids

    def _split(self, text: str, begin: int) -> tuple[list[int], int | None]:
        """Return the text's ids and how many of them end where the question begins; None where no token does."""
        try:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except (NotImplementedError, ValueError):  # a tokenizer without offsets refuses with one or the other
            return encode(self._tokenizer, text), None
        ids = [int(token) for token in encoded["input_ids"]]
        offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]
        place = next((place for place, (start, _) in enumerate(offsets) if start >= begin), None)
        if place is None or offsets[place][0] != begin or (place and offsets[place - 1][1] > begin):
            return ids, None
        return ids, place
