"""Who is asked what: a recipe → personas, items, and which of the items each persona gets.

`on: panel` asks every persona of the panel every item of the instrument; `on: test` asks the cells of the test split,
whose answers have references. Knows the sources, no engine, no shard and no Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polypersona.chatml import card_attributes
from polypersona.errors import EngineError, PersonaError, QuestionbankError, RecipeError
from polypersona.examples import example_item, example_persona, load_examples
from polypersona.ledger import Asked, item_key
from polypersona.panel.sources import load_panel
from polypersona.questionbank import item_hash, load_instrument
from polypersona.readback import misread_options
from polypersona.recipe import Recipe
from polypersona.recipe_sections import InstrumentRecipe, PanelRecipe
from polypersona.records import Item, Persona
from polypersona.storage import RunDirectory

# A set of options or a number as an answer has columns in the schema, but no engine gives one yet.
UNANSWERABLE = ("multiple", "numeric")
# Engines whose written answers are read back to an option; the others say which they mean.
READ_ENGINES = ("packed", "vllm", "endpoint")


@dataclass(frozen=True, slots=True)
class Population:
    """The personas and items of a run. `asked` are each persona's items as indices; None where all get all."""

    personas: tuple[Persona, ...]
    items: tuple[Item, ...]
    asked: Asked | None = None

    @property
    def item_keys(self) -> tuple[str, ...]:
        """The items' keys, in the order they are asked."""
        return tuple(item_key(item.item_id, item.variant) for item in self.items)


def load_population(recipe: Recipe, run: RunDirectory) -> Population:
    """Return who is asked what.

    Routing is the panel's: the test split holds cells that were asked when its answers were given, so all are.

    Raises:
        PersonaError: the panel cannot be read, or two personas have one id.
        QuestionbankError: the instrument cannot be read.
        StorageError: `on: test` before the dataset stage.
        EngineError: an item of a response type that no engine answers.
    """
    if recipe.generate.on == "test":
        population = _test_population(run)
    else:
        panel, instrument = load_panel(recipe.panel, recipe.seed), load_instrument(recipe.instrument)
        population = Population(tuple(panel.personas), tuple(instrument.items))
    _refuse_repeated_ids(population.personas)
    for item in population.items:
        if item.response_type in UNANSWERABLE:
            raise EngineError(
                f"Item {item.item_id!r} is of type {item.response_type!r}, which no engine of this version answers.",
                "Leave it out with instrument.items or instrument.response_types.",
            )
    return population


def refuse_idle_panel(recipe: Recipe) -> None:
    """Refuse keys of panel and instrument where records made elsewhere, or people, are all that is asked and learnt.

    How the options are shown holds for those, too.

    Raises:
        RecipeError: names the key and says why it would do nothing.
    """
    if recipe.dataset.source is None or recipe.generate.on != "test":
        return
    untouched = {"panel": PanelRecipe(), "instrument": InstrumentRecipe(show_options=recipe.instrument.show_options)}
    for section, default in untouched.items():
        asked = getattr(recipe, section)
        for name in type(default).model_fields:
            if getattr(asked, name) != getattr(default, name):
                raise RecipeError(
                    f"{section}.{name} has no meaning here: generate.on: test asks the test rows of dataset.source "
                    f"({recipe.dataset.source}), whoever is in the panel and whatever is in the instrument.",
                    f"Leave out {section}.{name}, or set generate.on: panel.",
                )


def item_hashes(population: Population) -> dict[str, str]:
    """Return what each item asks and measures, as a hash by key."""
    return {key: item_hash(item) for key, item in zip(population.item_keys, population.items, strict=True)}


def panel_digests(personas: Sequence[Persona], sizes: Iterable[int]) -> dict[int, str]:
    """Return the digest of the panel's first `size` personas, for each size that it has: ids, cards and weights."""
    wanted = {size for size in sizes if size <= len(personas)}
    state = hashlib.blake2b(digest_size=8)
    digests: dict[int, str] = {}
    for count, persona in enumerate(personas, start=1):
        content = [persona.persona_id, card_attributes(persona), persona.text, persona.weight]
        state.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        if count in wanted:
            digests[count] = state.copy().hexdigest()
    return digests


def with_next_personas(recipe: Recipe, population: Population, size: int) -> tuple[Persona, ...]:
    """Return the population's personas, and the next ones of the panel where they are fewer than `size`.

    None are added where the panel has not so many, or does not begin with the population's.
    """
    personas = population.personas
    if len(personas) >= size or recipe.generate.on == "test":
        return personas
    try:
        panel = load_panel(recipe.panel.model_copy(update={"size": size}), recipe.seed).personas
    except PersonaError:
        return personas
    return panel if panel[: len(personas)] == personas else personas


def _test_population(run: RunDirectory) -> Population:
    personas: dict[str, Persona] = {}
    items: dict[str, Item] = {}
    asked: dict[str, list[str]] = {}
    for example in load_examples(run, "test"):
        persona, item = example_persona(example), example_item(example)
        personas.setdefault(persona.persona_id, persona)
        key = item_key(item.item_id, item.variant)
        items.setdefault(key, item)
        cells = asked.setdefault(persona.persona_id, [])
        if key not in cells:  # a repeated row is one cell
            cells.append(key)
    place = {key: index for index, key in enumerate(sorted(items))}
    ordered = tuple(items[key] for key in sorted(items))
    return Population(
        tuple(personas.values()), ordered, tuple(tuple(sorted(place[key] for key in keys)) for keys in asked.values())
    )


def refuse_misread_options(recipe: Recipe, items: Iterable[Item]) -> None:
    """Refuse closed items whose options a written answer would confuse, where engines write and are read.

    Raises:
        QuestionbankError: names the item and the option.
    """
    if recipe.generate.closed != "text" or recipe.generate.engine not in READ_ENGINES:
        return
    for item in items:
        for label, how in misread_options(item, recipe.instrument.show_options).items():
            raise QuestionbankError(
                f"Item {item.item_id!r}: the option {label!r} {how}, and generate.closed: text reads answers.",
                "Set generate.closed: score, word the options differently, or leave the item out.",
            )


def _refuse_repeated_ids(personas: Sequence[Persona]) -> None:
    if not personas:
        raise PersonaError("The panel is empty.", "Name a source with at least one persona.")
    if len({persona.persona_id for persona in personas}) < len(personas):
        persona_id, count = Counter(persona.persona_id for persona in personas).most_common(1)[0]
        raise PersonaError(
            f"The persona id {persona_id!r} occurs {count} times in the panel; ids are unique.",
            "Set panel.id to a column without repeats, or leave it out.",
        )
