"""The fake engine: answers by hashing (seed, persona, item), in microseconds, without a model.

For smoke runs, for tests of everything around an engine, and for measuring that everything. It answers every option
of a recipe that a real engine answers, except `top_k`, `top_p` and `min_p`, which it refuses. Tokens are words.

Failures on request. An attribute `fake_failure` of a persona makes its cells fail:

- `error`, `refusal`, `invalid`, `nonresponse`: each cell ends with that disposition;
- `raise`: the engine raises, as on a bug or a lost device;
- `crash`: the process dies at once, as under `kill -9`.

With an attribute `fake_item` only the cells of that item fail. With an attribute `fake_once` that names a file, the
failure happens only while there is no such file, and creates it.
An attribute `fake_delay_s` makes the persona's cells take that many seconds.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from polypersona.chatml import card_attributes, clean_text, render_answer, shown_place
from polypersona.decoding.choice import choose_in_rows, uniforms
from polypersona.decoding.prompts import Written
from polypersona.engines.base import Answer, Cell, EngineSettings, Group, Reproduces
from polypersona.engines.cells import AskedCell, CellReader
from polypersona.errors import EngineError, nearest
from polypersona.records import Disposition, Item, Persona, seed_from

_WORD = re.compile(r"\S+")
_MAX_TOKENS = 1 << 20
_MAX_NUMBERS = 4096
_COMPLETE: Disposition = "complete"
_TRUNCATED: Disposition = "truncated"
FAILURES = ("error", "refusal", "invalid", "nonresponse", "raise", "crash")

_FAILED: dict[str, tuple[Disposition, str]] = {
    "refusal": ("refusal", "I prefer not to answer."),
    "invalid": ("invalid", "Zzz zzz."),
    "nonresponse": ("item_nonresponse", "N/A"),
}
_OPENINGS = ("Honestly,", "In my view,", "For me,", "Looking back,", "As I see it,", "Day to day,", "All in all,")
_VERBS = ("matters a lot", "matters little", "comes first", "comes last", "has its limits", "keeps me busy")
_REASONS = ("because of my family", "because of my work", "because of where I live", "because of what I have seen")


class WordTokenizer:
    """A tokenizer whose tokens are words; their ids say nothing. It has no chat template, so prompts are ChatML."""

    chat_template: Any = None
    all_special_tokens: ClassVar[list[str]] = []
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = False) -> dict[str, Any]:
        """Return the words of a text as numbers, and where they stand."""
        spans = [word.span() for word in _WORD.finditer(text)]
        return {"input_ids": [end - begin for begin, end in spans], "offset_mapping": spans}

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Refuse: there is no template."""
        raise NotImplementedError("a word tokenizer has no chat template")


class FakeEngine:
    """An engine without a model. See the module's docstring.

    Closed cells take the packed engine's own way: its prompts, draws and answers. Only the log probabilities come from
    a hash.
    """

    name = "fake"
    reproduces: Reproduces = "bytes"

    def __init__(self, settings: EngineSettings) -> None:
        if (settings.top_k, settings.top_p, settings.min_p) != (0, 1.0, 0.0):
            raise EngineError(
                "The fake engine does not know generate.top_k, top_p and min_p.", "Leave them out of the recipe."
            )
        self._settings = settings
        self._is_scored = settings.closed == "score" and not settings.rationale
        self._cells = CellReader(WordTokenizer(), settings, _MAX_TOKENS)
        self._numbers: dict[int, tuple[Item, int]] = {}

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in the order of the groups and of their cells."""
        return [answer for group in groups for answer in self._answer_group(group)]

    def close(self) -> None:
        """Free nothing."""

    def _answer_group(self, group: Group) -> list[Answer]:
        delay_s = group.persona.attributes.get("fake_delay_s")
        if delay_s:
            time.sleep(float(str(delay_s)))
        failures = _take_failures(group)
        asked = self._cells.ask(group.persona, group.cells)
        self._choose(group.persona, asked)
        if self._is_scored and not any(failures) and all(found.cell.item.options for found in asked):
            return list(map(self._cells.read, asked))
        return [
            _failed(cell.cell, failure) if failure else self._read(cell)
            for cell, failure in zip(asked, failures, strict=True)
        ]

    def _choose(self, persona: Persona, asked: Sequence[AskedCell]) -> None:
        """Draw an option in every cell that has any, all of one length together."""
        by_count: dict[int, list[AskedCell]] = {}
        for found in asked:
            by_count.setdefault(len(found.cell.item.options), []).append(found)
        num_shared, is_greedy = self._cells.num_shared, self._settings.temperature == 0
        for found in by_count.pop(0, ()):
            found.written = Written(num_reused=num_shared)
        for count, alike in by_count.items():
            items = [found.cell.item for found in alike]
            numbers = {id(item): self._number(item) for item in {id(item): item for item in items}.values()}
            keys = np.array([numbers[id(item)] for item in items], np.uint64)
            keys ^= np.uint64(seed_from(self._settings.seed, persona.persona_id))
            log_probs = option_log_probs(self._settings, keys, count)
            choices, probs = choose_in_rows(log_probs, [found.cell.seed for found in alike], is_greedy=is_greedy)
            for found, choice, shares in zip(alike, choices, probs, strict=True):
                found.written = Written(choice, [], shares, num_reused=num_shared)
        if asked and asked[0].written is not None:
            asked[0].written.num_reused = 0

    def _number(self, item: Item) -> int:
        known = self._numbers.get(id(item))
        if known is None:
            if len(self._numbers) >= _MAX_NUMBERS:
                self._numbers.clear()
            # The item is kept, so that no other object takes its identity.
            known = self._numbers[id(item)] = item, seed_from(self._settings.seed, item.item_id, item.variant)
        return known[1]

    def _read(self, asked: AskedCell) -> Answer:
        cell, written = asked.cell, asked.written or Written()
        item, choice = cell.item, written.choice
        if choice is not None and self._is_scored:
            return self._cells.read(asked)
        draw = random.Random(cell.seed)
        facts = _facts(asked.persona)
        words = f"{draw.choice(_OPENINGS)} {facts}, this {draw.choice(_VERBS)} {draw.choice(_REASONS)}."
        text, rationale, code, label, probs = words, "", None, "", None
        if choice is not None:
            code, label, rationale = item.codes[choice], item.options[choice], words if self._settings.rationale else ""
            text = render_answer(label, rationale, self._settings.show_options, shown_place(choice, cell.order))
            probs = tuple(written.probs) if self._settings.closed == "score" else None
        kept = text.split()[: self._settings.max_new_tokens]
        is_cut = len(kept) < len(text.split()) and choice is None
        counts = len(asked.prompt.ids), written.num_reused, len(kept)
        text, disposition = (" ".join(kept), _TRUNCATED) if is_cut else (text, _COMPLETE)
        return Answer(cell.assignment_id, text, disposition, rationale, code, label, probs, "", *counts)


def option_log_probs(settings: EngineSettings, keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float64]:
    """Return log probabilities of options up to a constant, (rows, options): numbers in [0, 4) from keys, tempered.

    Args:
        settings: of the engine; the temperature tells them apart.
        keys: one a row, in [0, 2**63).
        count: how many options each row has.
    """
    numbers = uniforms(np.repeat(keys, count), np.tile(np.arange(count), len(keys)))
    return (4.0 / (settings.temperature or 1.0)) * numbers.reshape(-1, count)


def _facts(persona: Persona) -> str:
    """Return the persona's first attributes as words, or a stand-in where it has none."""
    shown = [
        f"{clean_text(name)} {clean_text(str(value))}"
        for name, value in card_attributes(persona)
        if not name.startswith("fake_") and not isinstance(value, tuple)
    ]
    return "with " + " and ".join(shown[:3]) if shown else f"as {persona.persona_id}"


def _take_failures(group: Group) -> list[str]:
    """Return the failure of each cell, empty where it does not fail; raise or die where the persona asks for that."""
    persona, nothing = group.persona, [""] * len(group.cells)
    failure = str(persona.attributes.get("fake_failure", ""))
    if not failure:
        return nothing
    if failure not in FAILURES:
        raise EngineError(
            f"Persona {persona.persona_id!r}: {failure!r} is no fake_failure.{nearest(failure, FAILURES)}",
            f"Choose one of {', '.join(FAILURES)}.",
        )
    item_id = persona.attributes.get("fake_item")
    failures = [failure if item_id in (None, cell.item.item_id) else "" for cell in group.cells]
    if item_id is not None and not any(failures):
        return nothing
    once = persona.attributes.get("fake_once")
    if once is not None:
        marker = Path(str(once))
        if marker.exists():
            return nothing
        marker.touch()
    if failure == "raise":
        raise RuntimeError(f"persona {persona.persona_id!r} asked the fake engine to raise")
    if failure == "crash":
        os._exit(1)
    return failures


def _failed(cell: Cell, failure: str) -> Answer:
    if failure == "error":
        return Answer(cell.assignment_id, "", "error", error="asked the fake engine for an error")
    disposition, text = _FAILED[failure]
    return Answer(cell.assignment_id, text, disposition, new_tokens=len(text.split()))
