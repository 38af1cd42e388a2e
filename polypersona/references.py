"""What a response is compared with: the dataset's answers, or the rules teacher's, for a persona and an item.

Both give three things: the cell's own reference; another persona's reference to the same item, for the shuffled
floor; and, where the rules teacher wrote the references, its second opinion with another draw of the persona's noise,
which is about as well as a reader of the card can do (`retest`). All are functions of the recipe and of ids, so a
shard needs no other shard. Knows no metric, no shard and no Ray.

The other persona is the next one in an order shuffled by the seed, a rotation of the panel: every reference is used
once, so the floor's references have exactly the marginals of the score's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from polypersona.chatml import ShowOptions, render_answer, shown_place
from polypersona.engines.base import Cell, Engine, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.errors import RecipeError, StorageError
from polypersona.examples import example_item, example_persona
from polypersona.records import Assignment, Example, Item, Persona, digest
from polypersona.routing import ask_in_rounds
from polypersona.simulator.constructs import CONSTRUCTS

MAX_REMEMBERED_PERSONAS = 4096


class Reference(NamedTuple):
    """An answer to compare with."""

    text: str
    code: int | None


class References(Protocol):
    """The references of a run."""

    @property
    def has_retest(self) -> bool:
        """Whether there is a second opinion."""

    def own(self, persona_id: str, item_id: str) -> Reference | None:
        """Return the reference of a cell, None where there is none."""

    def shuffled(self, persona_id: str, item_id: str) -> Reference | None:
        """Return another persona's reference to the item, None where nobody else has one."""

    def retest(self, persona_id: str, item_id: str) -> Reference | None:
        """Return the teacher's second opinion of a cell, None where there is none."""


@dataclass
class Teacher:
    """The rules teacher's answers to the items, by persona; it remembers the last few thousand personas."""

    personas: Mapping[str, Persona]
    items: Sequence[Item]
    seed: int
    has_rationale: bool = False
    show: ShowOptions = "labels"
    _answers: dict[str, dict[str, Reference]] = field(default_factory=dict, repr=False)
    _engine: Engine | None = field(default=None, repr=False)

    def answer(self, persona_id: str, item_id: str) -> Reference | None:
        """Return the teacher's answer, None where it does not know the item or its own answers route past it.

        Raises:
            StorageError: it does not know the persona.
        """
        if persona_id not in self._answers:
            if persona_id not in self.personas:
                raise StorageError(
                    f"The responses hold the persona {persona_id!r}, which the recipe's panel lacks.",
                    "Evaluate with the recipe that the responses were made with.",
                )
            if len(self._answers) >= MAX_REMEMBERED_PERSONAS:
                self._answers.clear()
            self._answers[persona_id] = self._ask(self.personas[persona_id])
        return self._answers[persona_id].get(item_id)

    def _ask(self, persona: Persona) -> dict[str, Reference]:
        if self._engine is None:
            settings = EngineSettings("rules", self.seed, rationale=self.has_rationale, show_options=self.show)
            self._engine = load_engine(settings)
        engine, cells = self._engine, []
        for item in self.items:
            assignment = Assignment(persona.persona_id, item.item_id)
            cells.append(Cell(assignment.assignment_id, item, assignment.seed(self.seed), item.shown or None))
        answers = ask_in_rounds(
            cells,
            [persona.persona_id] * len(cells),
            lambda places: engine.answer([Group(persona, tuple(cells[place] for place in places))]),
        )
        return {
            cell.item.item_id: Reference(answer.text, answer.code)
            for cell, answer in zip(cells, answers, strict=True)
            if answer.disposition == "complete"
        }


@dataclass
class TeacherReferences:
    """References from the rules teacher, for any persona of the panel and any item it knows."""

    teacher: Teacher
    second: Teacher
    next_persona: Mapping[str, str]
    has_retest: bool = True

    @classmethod
    def build(
        cls,
        personas: Iterable[Persona],
        items: Sequence[Item],
        seed: int,
        *,
        has_rationale: bool,
        show: ShowOptions = "labels",
    ) -> TeacherReferences:
        """Return the references of a panel; the second opinion is the teacher's with the next seed."""
        by_id = {persona.persona_id: persona for persona in personas}
        return cls(
            Teacher(by_id, items, seed, has_rationale, show),
            Teacher(by_id, items, seed + 1, has_rationale, show),
            rotation(by_id, seed),
        )

    def own(self, persona_id: str, item_id: str) -> Reference | None:
        return self.teacher.answer(persona_id, item_id)

    def shuffled(self, persona_id: str, item_id: str) -> Reference | None:
        other = self.next_persona.get(persona_id)
        return None if other is None else self.teacher.answer(other, item_id)

    def retest(self, persona_id: str, item_id: str) -> Reference | None:
        return self.second.answer(persona_id, item_id)


@dataclass
class DatasetReferences:
    """References from the rows of a dataset split; `second` only where the rules teacher wrote them."""

    rows: Mapping[tuple[str, str], Reference]
    second: Teacher | None
    next_persona: Mapping[str, Mapping[str, str]]

    @classmethod
    def build(
        cls,
        examples: Sequence[Example],
        seed: int,
        *,
        has_rationale: bool,
        is_taught_by_rules: bool,
        show: ShowOptions = "labels",
    ) -> DatasetReferences:
        """Return the references of a split. The rotation is within each item, over the personas that answered it.

        A persona and item that occur twice keep their first row. Where responses have no rationale
        (`has_rationale`), a coded reference is compared without its own.
        """
        rows: dict[tuple[str, str], Reference] = {}
        asked: dict[str, list[str]] = {}
        for example in examples:
            stored = example.metadata
            key = (str(stored["persona_id"]), str(stored["item_id"]))
            if key not in rows:
                rows[key] = _reference(stored, show, has_rationale=has_rationale)
                asked.setdefault(key[1], []).append(key[0])
        second = None
        if is_taught_by_rules:
            personas = {str(example.metadata["persona_id"]): example_persona(example) for example in examples}
            second = Teacher(personas, dataset_items(examples), seed + 1, show=show)
        return cls(rows, second, {item_id: rotation(ids, seed) for item_id, ids in asked.items()})

    @property
    def has_retest(self) -> bool:
        return self.second is not None

    def own(self, persona_id: str, item_id: str) -> Reference | None:
        return self.rows.get((persona_id, item_id))

    def shuffled(self, persona_id: str, item_id: str) -> Reference | None:
        other = self.next_persona.get(item_id, {}).get(persona_id)
        return None if other is None else self.rows[other, item_id]

    def retest(self, persona_id: str, item_id: str) -> Reference | None:
        return None if self.second is None else self.second.answer(persona_id, item_id)


def _reference(stored: Mapping[str, Any], show: ShowOptions, *, has_rationale: bool) -> Reference:
    code, label = stored.get("code"), stored.get("label")
    if not has_rationale and code is not None and label:
        index = list(stored["options"]).index(label) if show == "letters" else None
        place = None if index is None else shown_place(index, stored.get("shown"))
        return Reference(render_answer(str(label), show=show, place=place), code)
    return Reference(str(stored["reference"]), code)


def rotation(persona_ids: Iterable[str], seed: int) -> dict[str, str]:
    """Return for each persona another one: the next in an order shuffled by the seed. Empty for fewer than two."""
    order = sorted(persona_ids, key=lambda persona_id: rotation_place(persona_id, seed))
    if len(order) < 2:
        return {}
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def rotation_place(persona_id: str, seed: int) -> str:
    """Return by what a rotation sorts a persona: neighbours in this order are compared with the same reference."""
    return digest(seed, "shuffled", persona_id)


def dataset_items(examples: Iterable[Example]) -> tuple[Item, ...]:
    """Return the items of a split, each once, in order of first occurrence."""
    items: dict[str, Item] = {}
    for example in examples:
        if example.metadata["item_id"] not in items:
            items[str(example.metadata["item_id"])] = example_item(example)
    return tuple(items.values())


def is_known_to_teacher(item: Item) -> bool:
    """Return whether the rules teacher answers the item."""
    return item.construct in CONSTRUCTS and (item.scale == "ordered" or not item.is_closed)


def refuse_unknown_items(items: Iterable[Item]) -> None:
    """Refuse `reference: teacher` for items the teacher does not answer.

    Raises:
        RecipeError: there is such an item; the first is named.
    """
    unknown = [item.item_id for item in items if not is_known_to_teacher(item)]
    if unknown:
        raise RecipeError(
            f"evaluate.reference is 'teacher', but the rules teacher does not know the construct of {len(unknown)} "
            f"item(s), the first {unknown[0]!r}.",
            "Set evaluate.reference to auto or none, or ask items whose construct the simulator knows.",
        )
