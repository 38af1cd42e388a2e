"""A cell on its way through the packed engine: to a prompt in tokens, and from what was written to an answer.

Takes a tokenizer and the engine's settings. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from polypersona.chatml import (
    build_messages,
    encode,
    encode_prompt,
    render_answer,
    render_choice,
    shown_place,
)
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.decoding.prompts import Prompt, Written
from polypersona.engines.base import Answer, Cell, EngineSettings
from polypersona.interview import answer_lead
from polypersona.records import Persona


@dataclass(slots=True, eq=False)
class AskedCell:
    """A cell with its prompt and what came of it. `calibrated` is the draw from calibrated probabilities."""

    persona: Persona
    cell: Cell
    prompt: Prompt
    error: str = ""
    written: Written | None = None
    calibrated: Written | None = None

    @property
    def shape(self) -> object:
        """Return what a question without content has in common with this cell's: options, order and domain."""
        return self.cell.item.options, self.cell.order, self.cell.item.domain


class CellReader:
    """Turns cells into prompts and results into answers."""

    def __init__(self, tokenizer: Any, settings: EngineSettings, max_tokens: int) -> None:
        self.tokenizer, self.settings, self.max_tokens = tokenizer, settings, max_tokens
        self._lead = answer_lead(tokenizer)
        self._choices: dict[str, tuple[int, ...]] = {}

    def ask(self, persona: Persona, cell: Cell) -> AskedCell:
        """Return the cell with its prompt; one that does not fit the context carries its error."""
        messages = build_messages(persona, cell.item, self.settings.show_options, cell.order)
        asked = AskedCell(persona, cell, self.prompt(encode_prompt(self.tokenizer, messages), cell))
        asked.error = self.too_long(len(asked.prompt.ids), asked.prompt)
        return asked

    def prompt(self, ids: Sequence[int], cell: Cell) -> Prompt:
        """Return the prompt of a cell whose question is `ids`."""
        limit = self.settings.max_new_tokens
        if not cell.item.is_closed or self.settings.closed != "score":
            return Prompt(ids, cell.seed, limit)
        choices = tuple(self.choice(cell, index) for index in range(len(cell.item.options)))
        rest = limit if self.settings.rationale else 0
        letters = tuple(choice[:1] for choice in choices)
        if self.settings.show_options == "letters" and len(set(letters)) == len(letters):
            return Prompt(ids, cell.seed, rest, letters, choices)
        return Prompt(ids, cell.seed, rest, choices, length_norm=self.settings.length_norm)

    def choice(self, cell: Cell, index: int) -> tuple[int, ...]:
        """Return the tokens with which an answer picks an option."""
        place = shown_place(index, cell.order)
        text = render_choice(cell.item.options[index], self.settings.show_options, place)
        if text not in self._choices:
            self._choices[text] = tuple(encode(self.tokenizer, self._lead + text))
        return self._choices[text]

    def too_long(self, num_before: int, prompt: Prompt, what: str = "prompt") -> str:
        """Return why a prompt does not fit after so many tokens, itself included; empty where it does."""
        need = num_before + max(map(len, prompt.choices or prompt.options), default=0) + prompt.max_new_tokens
        if need <= self.max_tokens:
            return ""
        return f"the {what} has {num_before} tokens, {need} with its answer; the model has room for {self.max_tokens}"

    def is_stopped(self, tokens: Sequence[int]) -> bool:
        """Return whether a stop string ends the text."""
        return bool(self.settings.stop) and _stop_at(self._decode(tokens), self.settings.stop) is not None

    def text(self, written: Written) -> str:
        """Return what was written as text, without the end of turn and from no stop string on."""
        text = self._decode(written.tokens)
        return text[: _stop_at(text, self.settings.stop)].strip()

    def taken_back(self, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """Return how many of the last tokens a stop string takes back, and the tokens of what stood before it there."""
        text = self._decode(tokens)
        end = _stop_at(text, self.settings.stop)
        if end is None:
            return 0, []
        kept = max(count for count in range(len(tokens)) if text[:end].startswith(self._decode(tokens[:count])))
        rest = text[len(self._decode(tokens[:kept])) : end].rstrip()
        return len(tokens) - kept, encode(self.tokenizer, rest) if rest else []

    def read(self, asked: AskedCell) -> Answer:
        """Return the answer to a cell."""
        prompt, written = asked.prompt, asked.written or Written()
        answer = self._read(asked, written)
        return replace(
            answer,
            prompt_tokens=len(prompt.ids),
            reused_prompt_tokens=min(written.num_reused, len(prompt.ids)),
            new_tokens=len(written.tokens),
        )

    def _read(self, asked: AskedCell, written: Written) -> Answer:
        item, order, cell_id = asked.cell.item, asked.cell.order, asked.cell.assignment_id
        show = self.settings.show_options
        if error := asked.error or written.error:
            return Answer(cell_id, "", "error", error=error)
        text = self.text(written)
        drawn = asked.calibrated or written
        if drawn.choice is not None:
            label, probs = item.options[drawn.choice], tuple(_probabilities(asked, drawn))
            whole = render_answer(label, text, show, shown_place(drawn.choice, order))
            return Answer(cell_id, whole, "complete", text, item.codes[drawn.choice], label, probs)
        has_letters = show == "letters"
        is_cut = not written.is_ended
        disposition = disposition_of(item, text, is_truncated=is_cut, order=order, has_letters=has_letters)
        is_coded = item.is_closed and disposition == "complete"
        code = code_answer(item, text, order, has_letters=has_letters) if is_coded else None
        label, rationale = split_rationale(item, text, order, has_letters=has_letters) if is_coded else ("", "")
        return Answer(cell_id, text, disposition, rationale, code, label)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _probabilities(asked: AskedCell, drawn: Written) -> list[float]:
    """Return the probabilities the choice was drawn from; calibrated totals are weighed already."""
    totals = drawn.log_probs
    if asked.prompt.length_norm and asked.calibrated is None:
        totals = [total / len(option) for total, option in zip(totals, asked.prompt.options, strict=True)]
    return torch.softmax(torch.tensor(totals, dtype=torch.float64), 0).tolist()


def _stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop string begins."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
