"""The teacher: an engine that answers the cells of the dataset.

Takes a recipe, personas and the items each is asked; gives examples and the answers that were kept aside. Knows how a
recipe names an engine, and no file of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.chatml import ShowOptions
from polypersona.engines.base import Answer, Cell, Engine, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import ENGINE_VERSIONS, Weights, build_settings, locate_weights, refuse_unsupported
from polypersona.errors import EngineError, RunFailedError, nearest
from polypersona.examples import build_example
from polypersona.gates import gates_of
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.records import Assignment, Example, Item, Persona
from polypersona.routing import ask_in_rounds
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.simulator.traits import SEMANTICS_VERSION
from polypersona.storage import RunDirectory

GROUPS_PER_CALL = 64
SAMPLING_KEYS = (
    "dtype", "quantization", "closed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop",
    "length_norm", "calibration", "max_new_tokens", "slots",
)  # fmt: skip
ENDPOINT_SAMPLING_KEYS = ("closed", "temperature", "top_p", "stop", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher gave: examples, and a row with its reason for each answer that is none.

    `not_asked` are the assignments that its own earlier answers route past.
    """

    examples: list[Example]
    rejected: list[dict[str, Any]]
    not_asked: list[str]


def locate_teacher(recipe: Recipe, run: RunDirectory) -> tuple[EngineSettings, dict[str, Any], tuple[str, ...]]:
    """Return what the teacher is built from, what of it decides its answers as `teacher.*` keys, and warnings.

    Engines without a model take the seed alone. A model answers with the recipe's own sampling, on this machine, in
    fp32 and without quantisation where the recipe leaves those to `auto`; the run's adapter does not exist yet, so it
    answers without one. It is asked every item by itself, because an example is one question. An endpoint writes its
    answers to closed items, because an example has a rationale.

    Raises:
        EngineError: no such engine, or an endpoint without an address.
        ModelError: no such model or adapter.
    """
    name = recipe.dataset.teacher
    if name not in ENGINE_VERSIONS:
        raise EngineError(
            f"dataset.teacher: {name!r} is no engine of this version.{nearest(name, ENGINE_VERSIONS)}",
            f"Choose one of {', '.join(ENGINE_VERSIONS)}.",
        )
    content: dict[str, Any] = {"teacher.version": ENGINE_VERSIONS[name]}
    if name == "rules":
        content["teacher.simulator_version"] = SEMANTICS_VERSION
    if name == "endpoint":
        return *_endpoint_teacher(recipe, content), ()
    if name not in MODEL_ENGINES:
        show = recipe.instrument.show_options
        return EngineSettings(engine=name, seed=recipe.seed, show_options=show, rationale=True), content, ()
    adapter = "none" if recipe.model.adapter == "run" else recipe.model.adapter
    own = recipe.model_copy(
        update={
            "generate": recipe.generate.model_copy(update={"engine": name, "rationale": True, "context": "none"}),
            "model": recipe.model.model_copy(update={"adapter": adapter}),
        }
    )
    refuse_unsupported(own)
    weights = locate_weights(own, run)
    resolved = {
        "dtype": "fp32" if own.model.dtype == "auto" else own.model.dtype,
        "quantization": "none" if own.model.quantization == "auto" else own.model.quantization,
        "slots": 64 if own.generate.slots == "auto" else own.generate.slots,
        "threads": 1,
    }
    settings = build_settings(own, resolved, weights)
    content |= {"teacher.model": weights.model_hash, "teacher.adapter": weights.adapter_hash or "none"}
    content |= {f"teacher.{key}": getattr(settings, key) for key in SAMPLING_KEYS}
    return settings, content, weights.warnings


def _endpoint_teacher(recipe: Recipe, content: dict[str, Any]) -> tuple[EngineSettings, dict[str, Any]]:
    update = {"engine": "endpoint", "closed": "text", "rationale": True}
    own = recipe.model_copy(update={"generate": recipe.generate.model_copy(update=update)})
    nothing = {"dtype": "fp32", "quantization": "none", "slots": 1, "threads": 1}
    settings = build_settings(own, nothing, Weights())
    content |= {f"teacher.{key}": getattr(settings, key) for key in ENDPOINT_SAMPLING_KEYS}
    content |= {f"teacher.{key}": getattr(settings.endpoint, key) for key in ("url", "model", "instruct")}
    return settings, content


def ask_teacher(
    settings: EngineSettings,
    personas: Sequence[Persona],
    items: Sequence[Item],
    composition: Mapping[str, Sequence[str]],
) -> Taught:
    """Return the teacher's answers to the cells of the composition, in the order of the panel and the instrument.

    Routing is honoured: gates that the composition leaves out are asked as well, and are no examples.

    Raises:
        EngineError: no such engine, or an option it does not support.
        RunFailedError: the engine did not give each cell its answer.
    """
    groups = [
        Group(persona, _cells(persona, items, composition[persona.persona_id], settings.seed))
        for persona in personas
        if persona.persona_id in composition
    ]
    taught = Taught([], [], [])
    engine = load_engine(settings)
    try:
        with Progress("dataset", sum(len(group.cells) for group in groups), "answers") as progress:
            for begin in range(0, len(groups), GROUPS_PER_CALL):
                chunk = groups[begin : begin + GROUPS_PER_CALL]
                cells = [(group.persona, cell) for group in chunk for cell in group.cells]
                answers = _answer(engine, cells)
                for (persona, cell), answer in zip(cells, answers, strict=True):
                    if cell.item.item_id in composition[persona.persona_id]:
                        _sort(taught, persona, cell.item, answer, settings.show_options)
                progress.advance(len(cells))
    finally:
        engine.close()
    return taught


def _cells(persona: Persona, items: Sequence[Item], wanted: Sequence[str], seed: int) -> tuple[Cell, ...]:
    """Return the cells of the wanted items and of the gates that decide on them, in the order they are asked."""
    chosen = set(wanted)
    chosen |= gates_of(items, chosen)
    return tuple(_cell(persona, item, seed) for item in items if item.item_id in chosen)


def _cell(persona: Persona, item: Item, seed: int) -> Cell:
    assignment = Assignment(persona.persona_id, item.item_id)
    return Cell(assignment.assignment_id, item, assignment.seed(seed), item.shown or None)


def _answer(engine: Engine, cells: Sequence[tuple[Persona, Cell]]) -> list[Answer]:
    """Return the answers, asked in rounds; an engine that loses or mixes up cells is no teacher."""

    def ask(places: Sequence[int]) -> list[Answer]:
        groups: dict[str, tuple[Persona, list[Cell]]] = {}
        for persona, cell in (cells[place] for place in places):
            groups.setdefault(persona.persona_id, (persona, []))[1].append(cell)
        answers = engine.answer([Group(persona, tuple(own)) for persona, own in groups.values()])
        if [answer.assignment_id for answer in answers] != [cells[place][1].assignment_id for place in places]:
            raise RunFailedError(
                f"The teacher {engine.name!r} gave {len(answers)} answers to {len(places)} cells, or in another order.",
                "Choose another dataset.teacher, or mend the engine.",
            )
        return answers

    return ask_in_rounds([cell for _, cell in cells], [persona.persona_id for persona, _ in cells], ask)


def _sort(taught: Taught, persona: Persona, item: Item, answer: Answer, show: ShowOptions) -> None:
    if answer.disposition == "complete" and answer.text.strip():
        taught.examples.append(build_example(persona, item, answer, show))
        return
    if answer.disposition == "not_asked":
        taught.not_asked.append(answer.assignment_id)
        return
    reason = answer.disposition if answer.disposition != "complete" else "empty text"
    row = {"synthetic": True, "assignment_id": answer.assignment_id, "persona_id": persona.persona_id}
    row |= {"item_id": item.item_id, "reason": f"{reason}: {answer.error}" if answer.error else reason}
    taught.rejected.append(row | {"text": answer.text})
