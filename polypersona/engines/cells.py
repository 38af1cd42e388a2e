"""A cell on its way through the packed engine: to a prompt in tokens, and from what was written to an answer.

Takes a tokenizer and the engine's settings. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from polypersona.chatml import encode_text, render_answer, render_choice, shown_place
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.decoding.prompts import Prompt, Written
from polypersona.engines.base import Answer, Cell, EngineSettings
from polypersona.engines.encoding import PromptEncoder
from polypersona.interview import answer_lead
from polypersona.records import Item, Persona

_MAX_QUESTIONS = 4096
_UNWRITTEN = Written()


@dataclass(frozen=True, slots=True)
class Question:
    """What all cells that ask an item with its options in one order have in common.

    `options` are scored and `choices` written, as in `Prompt`; `texts` are the whole answers that pick an option and
    say no more; `num_after` is how many tokens an answer may take.
    """

    item: Item
    options: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    max_new_tokens: int
    length_norm: bool
    num_after: int

    def prompt(self, ids: Sequence[int], seed: int) -> Prompt:
        """Return the prompt of a cell whose question is `ids`."""
        return Prompt(ids, seed, self.max_new_tokens, self.options, self.choices, self.length_norm)


@dataclass(slots=True, eq=False)
class AskedCell:
    """A cell with its prompt and what came of it. `calibrated` is the draw from calibrated probabilities."""

    persona: Persona
    cell: Cell
    question: Question
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
        self._encoder = PromptEncoder(tokenizer, settings.show_options)
        self._lead = answer_lead(tokenizer)
        self._choices: dict[str, tuple[int, ...]] = {}
        self._questions: dict[tuple[int, tuple[int, ...] | None], Question] = {}

    def ask(self, persona: Persona, cells: Sequence[Cell]) -> list[AskedCell]:
        """Return a persona's cells with their prompts; one that does not fit the context carries its error.

        Cells that ask the same, in other waves and draws, share the tokens of their prompt.
        """
        known: dict[tuple[int, tuple[int, ...] | None], tuple[Question, Callable[[int], Prompt], str]] = {}
        asked = []
        for cell in cells:
            _, item, seed, order = cell
            found = known.get((id(item), order))
            if found is None:
                ids, question = self.encode(persona, cell), self.question(cell)
                found = question, partial(question.prompt, ids), self.too_long(len(ids), cell)
                known[id(item), order] = found
            question, prompt, error = found
            asked.append(AskedCell(persona, cell, question, prompt(seed), error))
        return asked

    def question(self, cell: Cell) -> Question:
        """Return what the cell has in common with all that ask its item in its order."""
        key = id(cell.item), cell.order
        found = self._questions.get(key)
        if found is None:
            if len(self._questions) >= _MAX_QUESTIONS:
                self._questions.clear()
            found = self._questions[key] = self._build_question(cell)
        return found

    def encode(self, persona: Persona, cell: Cell) -> list[int]:
        """Return the tokens that ask the persona the cell's question."""
        return self._encoder.encode(persona, cell.item, cell.order)

    @property
    def num_shared(self) -> int:
        """Return how many tokens the prompts of the last persona that was asked share."""
        return self._encoder.num_shared

    def prompt(self, ids: Sequence[int], cell: Cell) -> Prompt:
        """Return the prompt of a cell whose question is `ids`."""
        return self.question(cell).prompt(ids, cell.seed)

    def choice(self, cell: Cell, index: int) -> tuple[int, ...]:
        """Return the tokens with which an answer picks an option."""
        place = shown_place(index, cell.order)
        text = render_choice(cell.item.options[index], self.settings.show_options, place)
        if text not in self._choices:
            self._choices[text] = tuple(encode_text(self.tokenizer, self._lead + text))
        return self._choices[text]

    def too_long(self, num_before: int, cell: Cell, what: str = "prompt") -> str:
        """Return why a cell's prompt does not fit after so many tokens, itself included; empty where it does."""
        need = num_before + self.question(cell).num_after
        if need <= self.max_tokens:
            return ""
        return f"the {what} has {num_before} tokens, {need} with its answer; the model has room for {self.max_tokens}"

    def _build_question(self, cell: Cell) -> Question:
        item, limit, show = cell.item, self.settings.max_new_tokens, self.settings.show_options
        if not item.is_closed or self.settings.closed != "score":
            return Question(item, (), (), (), limit, False, limit)
        options = tuple(self.choice(cell, index) for index in range(len(item.options)))
        texts = tuple(
            render_answer(label, "", show, shown_place(index, cell.order)) for index, label in enumerate(item.options)
        )
        rest = limit if self.settings.rationale else 0
        num_after = max(map(len, options)) + rest
        letters = tuple(option[:1] for option in options)
        if show == "letters" and len(set(letters)) == len(letters):
            return Question(item, letters, options, texts, rest, False, num_after)
        return Question(item, options, (), texts, rest, self.settings.length_norm, num_after)

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
        return len(tokens) - kept, encode_text(self.tokenizer, rest) if rest else []

    def read(self, asked: AskedCell) -> Answer:
        """Return the answer to a cell."""
        written, cell = asked.written or _UNWRITTEN, asked.cell
        drawn, tokens = asked.calibrated or written, written.tokens
        index, num_prompt, num_reused = drawn.choice, len(asked.prompt.ids), written.num_reused
        if num_reused > num_prompt:
            num_reused = num_prompt
        if index is None or asked.error or written.error:
            answer = self._read(asked, written)
            return answer._replace(prompt_tokens=num_prompt, reused_prompt_tokens=num_reused, new_tokens=len(tokens))
        item, text, whole = cell.item, "", asked.question.texts[index]
        if tokens:
            text = self.text(written)
            whole = render_answer(item.options[index], text, self.settings.show_options, shown_place(index, cell.order))
        return Answer(
            cell.assignment_id, whole, "complete", text, item.codes[index], item.options[index], tuple(drawn.probs), "",
            num_prompt, num_reused, len(tokens),
        )  # fmt: skip

    def _read(self, asked: AskedCell, written: Written) -> Answer:
        item, order, cell_id = asked.cell.item, asked.cell.order, asked.cell.assignment_id
        if error := asked.error or written.error:
            return Answer(cell_id, "", "error", error=error)
        text = self.text(written)
        has_letters = self.settings.show_options == "letters"
        is_cut = not written.is_ended
        disposition = disposition_of(item, text, is_truncated=is_cut, order=order, has_letters=has_letters)
        is_coded = item.is_closed and disposition == "complete"
        code = code_answer(item, text, order, has_letters=has_letters) if is_coded else None
        label, rationale = split_rationale(item, text, order, has_letters=has_letters) if is_coded else ("", "")
        return Answer(cell_id, text, disposition, rationale, code, label)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop string begins."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
