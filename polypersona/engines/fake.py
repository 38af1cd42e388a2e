"""The fake engine: answers by hashing (seed, persona, item), in microseconds, without a model.

For smoke runs, for tests of everything around an engine, and for measuring that everything. It answers every option
of a recipe that a real engine answers, except `top_k`, `top_p` and `min_p`, which it refuses. Tokens are words.

Failures on request. An attribute `fake_failure` of a persona makes its cells fail:

- `error`, `refusal`, `invalid`, `nonresponse`: each cell ends with that disposition;
- `raise`: the engine raises, as on a bug or a lost device;
- `crash`: the process dies at once, as under `kill -9`.

With an attribute `fake_once` that names a file, the failure happens only while there is no such file, and creates it.
An attribute `fake_delay_s` makes the persona's cells take that many seconds.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from polypersona.chatml import (
    SYSTEM_PROMPT,
    card_attributes,
    clean_text,
    render_answer,
    render_card,
    render_question,
    shown_place,
)
from polypersona.engines.base import Answer, Cell, EngineSettings, Group, Reproduces
from polypersona.errors import EngineError, nearest
from polypersona.records import Disposition, Persona, seed_from

FAILURES = ("error", "refusal", "invalid", "nonresponse", "raise", "crash")

_FAILED: dict[str, tuple[Disposition, str]] = {
    "refusal": ("refusal", "I prefer not to answer."),
    "invalid": ("invalid", "Zzz zzz."),
    "nonresponse": ("item_nonresponse", "N/A"),
}
_OPENINGS = ("Honestly,", "In my view,", "For me,", "Looking back,", "As I see it,", "Day to day,", "All in all,")
_VERBS = ("matters a lot", "matters little", "comes first", "comes last", "has its limits", "keeps me busy")
_REASONS = ("because of my family", "because of my work", "because of where I live", "because of what I have seen")


class FakeEngine:
    """An engine without a model. See the module's docstring."""

    name = "fake"
    reproduces: Reproduces = "bytes"

    def __init__(self, settings: EngineSettings) -> None:
        if (settings.top_k, settings.top_p, settings.min_p) != (0, 1.0, 0.0):
            raise EngineError(
                "The fake engine does not know generate.top_k, top_p and min_p.", "Leave them out of the recipe."
            )
        self._settings = settings
        self._question_words: dict[tuple[str, str], int] = {}

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in the order of the groups and of their cells."""
        return [answer for group in groups for answer in self._answer_group(group)]

    def close(self) -> None:
        """Free nothing."""

    def _answer_group(self, group: Group) -> list[Answer]:
        persona = group.persona
        delay_s = persona.attributes.get("fake_delay_s", 0)
        if delay_s:
            time.sleep(float(str(delay_s)))
        failure = _take_failure(persona)
        if failure:
            return [_failed(cell, failure) for cell in group.cells]
        shared = len(SYSTEM_PROMPT.split()) + len(render_card(persona).split())
        facts = _facts(persona)
        return [
            self._answer_cell(persona, cell, facts, shared, reused=shared if index else 0)
            for index, cell in enumerate(group.cells)
        ]

    def _answer_cell(self, persona: Persona, cell: Cell, facts: str, shared: int, *, reused: int) -> Answer:
        settings, item = self._settings, cell.item
        draw = random.Random(cell.seed)
        code, label, probs, place = None, "", None, None
        if item.is_closed:
            probs = option_probabilities(settings, persona.persona_id, item.item_id + item.variant, len(item.options))
            index = draw.choices(range(len(probs)), probs)[0]
            code, label, place = item.codes[index], item.options[index], shown_place(index, cell.order)
        words = f"{draw.choice(_OPENINGS)} {facts}, this {draw.choice(_VERBS)} {draw.choice(_REASONS)}."
        rationale = words if item.is_closed and settings.rationale else ""
        text = render_answer(label, rationale, settings.show_options, place) if item.is_closed else words
        kept = text.split()[: settings.max_new_tokens]
        is_cut = len(kept) < len(text.split()) and not item.is_closed
        return Answer(
            assignment_id=cell.assignment_id,
            text=" ".join(kept) if is_cut else text,
            disposition="truncated" if is_cut else "complete",
            rationale=rationale,
            code=code,
            label=label,
            option_probs=probs if settings.closed == "score" else None,
            prompt_tokens=shared + self._count_question(cell),
            reused_prompt_tokens=reused,
            new_tokens=len(kept),
        )

    def _count_question(self, cell: Cell) -> int:
        key = (cell.item.item_id, cell.item.variant)
        if key not in self._question_words:
            question = render_question(cell.item, self._settings.show_options, cell.order)
            self._question_words[key] = len(question.split())
        return self._question_words[key]


def option_probabilities(settings: EngineSettings, persona_id: str, item_key: str, count: int) -> tuple[float, ...]:
    """Return the probabilities of an item's options: a hash of (seed, persona, item), tempered, summing to one."""
    numbers = random.Random(seed_from(settings.seed, persona_id, item_key))
    logits = [4.0 * numbers.random() for _ in range(count)]
    if settings.temperature == 0:
        return tuple(1.0 if logit == max(logits) else 0.0 for logit in logits)
    weights = [math.exp((logit - max(logits)) / settings.temperature) for logit in logits]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def _facts(persona: Persona) -> str:
    """Return the persona's first attributes as words, or a stand-in where it has none."""
    shown = [
        f"{clean_text(name)} {clean_text(str(value))}"
        for name, value in card_attributes(persona)
        if not name.startswith("fake_") and not isinstance(value, tuple)
    ]
    return "with " + " and ".join(shown[:3]) if shown else f"as {persona.persona_id}"


def _take_failure(persona: Persona) -> str:
    """Return the failure the persona asks for, or an empty string; raise or die where it asks for that."""
    failure = str(persona.attributes.get("fake_failure", ""))
    if not failure:
        return ""
    if failure not in FAILURES:
        raise EngineError(
            f"Persona {persona.persona_id!r}: {failure!r} is no fake_failure.{nearest(failure, FAILURES)}",
            f"Choose one of {', '.join(FAILURES)}.",
        )
    once = persona.attributes.get("fake_once")
    if once is not None:
        marker = Path(str(once))
        if marker.exists():
            return ""
        marker.touch()
    if failure == "raise":
        raise RuntimeError(f"persona {persona.persona_id!r} asked the fake engine to raise")
    if failure == "crash":
        os._exit(1)
    return failure


def _failed(cell: Cell, failure: str) -> Answer:
    if failure == "error":
        return Answer(cell.assignment_id, "", "error", error="asked the fake engine for an error")
    disposition, text = _FAILED[failure]
    return Answer(cell.assignment_id, text, disposition, new_tokens=len(text.split()))
