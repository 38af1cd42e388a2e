"""The teacher: an engine that answers the cells of the dataset.

Takes a recipe, personas and the items each is asked; gives examples and the answers that were kept aside. Knows how a
recipe names an engine, and no file of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypersona.chatml import ShowOptions
from polypersona.engines.base import Answer, Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import ENGINE_VERSIONS, build_settings, locate_weights
from polypersona.errors import EngineError, RunFailedError, nearest
from polypersona.examples import build_example
from polypersona.progress import Progress
from polypersona.recipe import Recipe
from polypersona.records import Assignment, Example, Item, Persona
from polypersona.scheduling.policy import MODEL_ENGINES
from polypersona.simulator.traits import SEMANTICS_VERSION
from polypersona.storage import RunDirectory

GROUPS_PER_CALL = 64
SAMPLING_KEYS = ("dtype", "quantization", "closed", "temperature", "top_k", "top_p", "min_p", "max_new_tokens", "slots")


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher gave: examples, and a row with its reason for each answer that is none."""

    examples: list[Example]
    rejected: list[dict[str, Any]]


def locate_teacher(recipe: Recipe, run: RunDirectory) -> tuple[EngineSettings, dict[str, Any]]:
    """Return what the teacher is built from, and what of it decides its answers, as `teacher.*` keys.

    Engines without a model take the seed alone. A model answers with the recipe's own sampling, on this machine, in
    fp32 and without quantisation where the recipe leaves those to `auto`; the run's adapter does not exist yet, so it
    answers without one.

    Raises:
        EngineError: no such engine.
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
    if name not in MODEL_ENGINES:
        show = recipe.instrument.show_options
        return EngineSettings(engine=name, seed=recipe.seed, show_options=show, rationale=True), content
    adapter = "none" if recipe.model.adapter == "run" else recipe.model.adapter
    own = recipe.model_copy(
        update={
            "generate": recipe.generate.model_copy(update={"engine": name, "rationale": True}),
            "model": recipe.model.model_copy(update={"adapter": adapter}),
        }
    )
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
    return settings, content


def ask_teacher(
    settings: EngineSettings,
    personas: Sequence[Persona],
    items: Sequence[Item],
    composition: Mapping[str, Sequence[str]],
) -> Taught:
    """Return the teacher's answers to the cells of the composition, in the order of the panel and the instrument.

    Raises:
        EngineError: no such engine, or an option it does not support.
        RunFailedError: the engine did not give each cell its answer.
    """
    by_id = {item.item_id: item for item in items}
    groups = [
        Group(
            persona, tuple(_cell(persona, by_id[item_id], settings.seed) for item_id in composition[persona.persona_id])
        )
        for persona in personas
        if persona.persona_id in composition
    ]
    taught = Taught([], [])
    engine = load_engine(settings)
    try:
        with Progress("dataset", sum(len(group.cells) for group in groups), "answers") as progress:
            for begin in range(0, len(groups), GROUPS_PER_CALL):
                chunk = groups[begin : begin + GROUPS_PER_CALL]
                pairs = list(_pair(chunk, engine.answer(chunk), settings.engine))
                for persona, item, answer in pairs:
                    _sort(taught, persona, item, answer, settings.show_options)
                progress.advance(len(pairs))
    finally:
        engine.close()
    return taught


def _cell(persona: Persona, item: Item, seed: int) -> Cell:
    assignment = Assignment(persona.persona_id, item.item_id)
    return Cell(assignment.assignment_id, item, assignment.seed(seed))


def _pair(groups: Sequence[Group], answers: Sequence[Answer], teacher: str) -> Iterator[tuple[Persona, Item, Answer]]:
    """Yield each cell with its answer; an engine that loses or mixes up cells is no teacher."""
    cells = [(group.persona, cell) for group in groups for cell in group.cells]
    if [cell.assignment_id for _, cell in cells] != [answer.assignment_id for answer in answers]:
        raise RunFailedError(
            f"The teacher {teacher!r} gave {len(answers)} answers to {len(cells)} cells, or in another order.",
            "Choose another dataset.teacher, or mend the engine.",
        )
    for (persona, cell), answer in zip(cells, answers, strict=True):
        yield persona, cell.item, answer


def _sort(taught: Taught, persona: Persona, item: Item, answer: Answer, show: ShowOptions) -> None:
    if answer.disposition == "complete" and answer.text.strip():
        taught.examples.append(build_example(persona, item, answer, show))
        return
    reason = answer.disposition if answer.disposition != "complete" else "empty text"
    row = {"synthetic": True, "assignment_id": answer.assignment_id, "persona_id": persona.persona_id}
    row |= {"item_id": item.item_id, "reason": f"{reason}: {answer.error}" if answer.error else reason}
    taught.rejected.append(row | {"text": answer.text})
