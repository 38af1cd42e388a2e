"""Interviews: the items of a group in one conversation, in which every answer stands before the next question.

A conversation holds one slot from the first question to the last; nothing is computed twice. Routing is decided here,
because what was not asked is no part of the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from polypersona.chatml import shared_prefix_length, stop_ids
from polypersona.decoding.batching import TokenEngine
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import Prompt, PromptGroup, Written
from polypersona.engines.base import Answer, Cell, Group
from polypersona.engines.cells import AskedCell, CellReader
from polypersona.engines.unasked import not_asked, outcome_of, unroutable
from polypersona.gates import Outcome, asking_order, judge_gates
from polypersona.interview import Turn, build_interview, encode_first, encode_next
from polypersona.records import Persona


@dataclass(slots=True, eq=False)
class _Interview:
    """A conversation with one persona: what is still to be asked, what was, and how it ended."""

    persona: Persona
    waiting: list[Cell]
    turns: list[Turn] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    current: AskedCell | None = None
    num_tokens: int = 0

    def copy(self) -> _Interview:
        """Return the interview as it stands now."""
        return replace(
            self,
            waiting=list(self.waiting),
            turns=list(self.turns),
            outcomes=dict(self.outcomes),
            answers=dict(self.answers),
        )


class InterviewRunner:
    """Holds the interviews of some groups."""

    def __init__(self, reader: CellReader, tokens: TokenEngine | PlainTokenEngine, max_tokens: int) -> None:
        self._reader, self._tokens, self._max_tokens = reader, tokens, max_tokens
        self._ends = stop_ids(reader.tokenizer)

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order."""
        interviews: list[_Interview] = []
        prompts: list[tuple[Prompt, int]] = []
        for group in groups:
            place = {id(item): index for index, item in enumerate(asking_order([cell.item for cell in group.cells]))}
            ordered = sorted(group.cells, key=lambda cell: place[id(cell.item)])
            interviews.append(_Interview(group.persona, ordered))
            prompt = self._next(interviews[-1])
            if prompt is not None:
                most = self._most_tokens(interviews[-1], prompt)
                prompts.append((replace(prompt, follow=self._first_turn(interviews, len(interviews) - 1)), most))
        if prompts:
            shared = shared_prefix_length([prompt.ids for prompt, _ in prompts])
            self._tokens.run([PromptGroup((prompt,), shared, most - shared) for prompt, most in prompts])
        pairs = zip(groups, interviews, strict=True)
        return [interview.answers[cell.assignment_id] for group, interview in pairs for cell in group.cells]

    def _first_turn(self, interviews: list[_Interview], index: int) -> Callable[[Written], Prompt | None]:
        """Return what follows the first answer. A pass that is begun again begins its interviews again."""
        begin = interviews[index].copy()

        def follow(written: Written) -> Prompt | None:
            interviews[index] = begin.copy()
            return self._follow(interviews[index], written)

        return follow

    def _most_tokens(self, interview: _Interview, first: Prompt) -> int:
        """Return a bound on the conversation's tokens, from its questions with an answer of full length each."""
        reader = self._reader
        total, most = len(first.ids) + first.num_kept_tokens, first.num_kept_tokens
        turn = Turn(interview.current.cell.item, None, "x") if interview.current else None
        for cell in interview.waiting:
            earlier = [turn] if turn else []
            messages = build_interview(interview.persona, earlier, cell.item, reader.settings.show_options, cell.order)
            ids = encode_next(reader.tokenizer, messages)
            kept = reader.prompt(ids, cell).num_kept_tokens
            total, most = total + len(ids) + kept, max(most, kept)
        return min(total, self._max_tokens + most)

    def _next(self, interview: _Interview) -> Prompt | None:
        """Return the prompt of the next item that is asked; settle those that are not on the way."""
        while interview.waiting:
            cell = interview.waiting.pop(0)
            verdict = judge_gates(cell.item, interview.outcomes)
            if verdict == "skip":
                self._settle(interview, cell, not_asked(cell))
            elif verdict == "failed":
                self._settle(interview, cell, unroutable(cell, interview.outcomes))
            elif verdict == "wait":
                gates = ", ".join(gate.item_id for gate in cell.item.asked_if)
                self._settle(interview, cell, _failed(cell, f"the interview has no answer to one of its gates {gates}"))
            elif prompt := self._ask(interview, cell):
                return prompt
        return None

    def _ask(self, interview: _Interview, cell: Cell) -> Prompt | None:
        """Return the cell's prompt and make it the current one; settle it where it does not fit."""
        reader = self._reader
        prompt = self._prompt(interview, cell)
        num_tokens = interview.num_tokens + len(prompt.ids)
        asked = AskedCell(interview.persona, cell, reader.question(cell), prompt)
        asked.error = reader.too_long(num_tokens, cell, "interview up to here" if interview.turns else "prompt")
        if asked.error:
            self._settle(interview, cell, reader.read(asked)._replace(prompt_tokens=num_tokens))
            return None
        interview.current, interview.num_tokens = asked, num_tokens
        return replace(prompt, follow=lambda written: self._follow(interview, written))

    def _prompt(self, interview: _Interview, cell: Cell) -> Prompt:
        reader = self._reader
        show = reader.settings.show_options
        messages = build_interview(interview.persona, interview.turns, cell.item, show, cell.order)
        encode = encode_next if interview.turns else encode_first
        return reader.prompt(encode(reader.tokenizer, messages), cell)

    def _follow(self, interview: _Interview, written: Written) -> Prompt | None:
        """Settle the current cell, and return the next prompt."""
        asked = interview.current
        if asked is None:
            return None
        asked.written = written
        num_tokens = interview.num_tokens
        answer = self._reader.read(asked)._replace(
            prompt_tokens=num_tokens,
            reused_prompt_tokens=min(written.num_reused, num_tokens),
        )
        self._settle(interview, asked.cell, answer)
        if written.error:
            reason = f"an earlier answer of the interview failed: {written.error}"
            for cell in interview.waiting:
                self._settle(interview, cell, _failed(cell, reason))
            interview.waiting.clear()
            return None
        tokens = written.tokens[:-1] if written.tokens and written.tokens[-1] in self._ends else written.tokens
        num_taken_back, kept = self._reader.taken_back(tokens)
        interview.num_tokens += len(tokens) - num_taken_back + len(kept)
        if written.choice is not None:
            interview.num_tokens += len(asked.prompt.chosen(written.choice))
        interview.turns.append(Turn(asked.cell.item, asked.cell.order, answer.text or "…"))
        prompt = self._next(interview)
        return replace(prompt, ids=[*kept, *prompt.ids], num_taken_back=num_taken_back) if prompt else None

    def _settle(self, interview: _Interview, cell: Cell, answer: Answer) -> None:
        interview.answers[cell.assignment_id] = answer
        if not cell.item.variant:
            interview.outcomes[cell.item.item_id] = outcome_of(answer)


def _failed(cell: Cell, reason: str) -> Answer:
    return Answer(cell.assignment_id, "", "error", error=reason)
