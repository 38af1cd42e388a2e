"""Interviews: the items of a group in one conversation, in which every answer stands before the next question.

A conversation holds one slot from the first question to the last; nothing is computed twice. Routing is decided here,
because what was not asked is no part of the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from polypersona.chatml import shared_prefix_length
from polypersona.decoding.batching import TokenEngine
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import Prompt, PromptGroup, Written
from polypersona.engines.base import Answer, Cell, Group
from polypersona.engines.cells import AskedCell, CellReader
from polypersona.gates import Outcome, asking_order, judge_gates
from polypersona.interview import Turn, build_interview, encode_first, encode_next
from polypersona.records import Persona
from polypersona.routing import not_asked, outcome_of, unroutable


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


class InterviewRunner:
    """Holds the interviews of some groups."""

    def __init__(self, reader: CellReader, tokens: TokenEngine | PlainTokenEngine, max_tokens: int) -> None:
        self._reader, self._tokens, self._max_tokens = reader, tokens, max_tokens

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order."""
        interviews, prompts = [], []
        for group in groups:
            place = {item: index for index, item in enumerate(asking_order([cell.item for cell in group.cells]))}
            ordered = sorted(group.cells, key=lambda cell: place[cell.item])
            interview = _Interview(group.persona, ordered)
            interviews.append(interview)
            prompt = self._next(interview)
            if prompt is not None:
                prompts.append((prompt, self._most_tokens(interview, prompt)))
        if prompts:
            shared = shared_prefix_length([prompt.ids for prompt, _ in prompts])
            self._tokens.run([PromptGroup((prompt,), shared, most - shared) for prompt, most in prompts])
        pairs = zip(groups, interviews, strict=True)
        return [interview.answers[cell.assignment_id] for group, interview in pairs for cell in group.cells]

    def _most_tokens(self, interview: _Interview, first: Prompt) -> int:
        """Return a bound on the conversation's tokens, from its questions with an answer of full length each."""
        reader, limit = self._reader, self._reader.settings.max_new_tokens
        total = len(first.ids) + first.num_kept_tokens
        turn = Turn(interview.current.cell.item, None, "x") if interview.current else None
        for cell in interview.waiting:
            earlier = [turn] if turn else []
            messages = build_interview(interview.persona, earlier, cell.item, reader.settings.show_options, cell.order)
            ids = encode_next(reader.tokenizer, messages)
            total += len(ids) + reader.prompt(ids, cell).num_kept_tokens
        return min(total, self._max_tokens + limit)

    def _next(self, interview: _Interview) -> Prompt | None:
        """Return the prompt of the next item that is asked; settle those that are not on the way."""
        reader = self._reader
        while interview.waiting:
            cell = interview.waiting.pop(0)
            verdict = judge_gates(cell.item, interview.outcomes)
            if verdict in ("skip", "wait"):
                self._settle(interview, cell, not_asked(cell))
            elif verdict == "failed":
                self._settle(interview, cell, unroutable(cell, interview.outcomes))
            else:
                prompt = self._prompt(interview, cell)
                asked = AskedCell(interview.persona, cell, prompt)
                asked.error = reader.too_long(interview.num_tokens + len(prompt.ids), prompt)
                if not asked.error:
                    interview.current = asked
                    interview.num_tokens += len(prompt.ids)
                    return replace(prompt, follow=lambda written: self._follow(interview, written))
                self._settle(interview, cell, reader.read(asked))
        return None

    def _prompt(self, interview: _Interview, cell: Cell) -> Prompt:
        reader = self._reader
        show = reader.settings.show_options
        messages = build_interview(interview.persona, interview.turns, cell.item, show, cell.order)
        encode = encode_next if interview.turns else encode_first
        return reader.prompt(encode(reader.tokenizer, messages), cell)

    def _follow(self, interview: _Interview, written: Written) -> Prompt | None:
        asked = interview.current
        if asked is None:
            return None
        asked.written = written
        answer = self._reader.read(asked)
        answer = replace(
            answer,
            prompt_tokens=interview.num_tokens,
            reused_prompt_tokens=interview.num_tokens - len(asked.prompt.ids),
        )
        self._settle(interview, asked.cell, answer)
        if written.error:
            for cell in interview.waiting:
                reason = f"an earlier answer of the interview failed: {written.error}"
                interview.answers[cell.assignment_id] = Answer(cell.assignment_id, "", "error", error=reason)
            return None
        kept = len(written.tokens)
        if written.choice is not None:
            kept += len(asked.prompt.chosen(written.choice))
        interview.num_tokens += kept
        interview.turns.append(Turn(asked.cell.item, asked.cell.order, answer.text or "…"))
        return self._next(interview)

    def _settle(self, interview: _Interview, cell: Cell, answer: Answer) -> None:
        interview.answers[cell.assignment_id] = answer
        if not cell.item.variant:
            interview.outcomes[cell.item.item_id] = outcome_of(answer)
