"""What the page shows besides the responses: the dataset's composition, the items' wording, the cards.

Reads the dataset line by line and keeps counters, the items, and the cards and references of the sampled respondents
only. Where the run asked a panel, items and cards come from the instrument and the panel of the recipe.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from polypersona.errors import PolypersonaError, StorageError
from polypersona.examples import SPLITS, example_item, example_persona
from polypersona.location import mask_secrets
from polypersona.panel.sources import load_panel
from polypersona.questionbank import load_instrument
from polypersona.recipe import Recipe
from polypersona.records import Example, Item, Persona, digest
from polypersona.report.tally import item_key
from polypersona.storage import RunDirectory, load_run


@dataclass(slots=True)
class Source:
    """The dataset's counts, and what is known of the items and of the sampled respondents.

    `reference_codes` counts the references to an item by code, `reference_weights` sums the weights of who gave them.
    `is_human`: people gave the dataset's answers; `human` is then whose they are, where run.json says so.
    `hides_people`: the panel is of people, whose cards and ids are not shown.
    """

    splits: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    item_types: dict[str, str] = field(default_factory=dict)
    personas: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    items: dict[str, Item] = field(default_factory=dict)
    reference_codes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    reference_weights: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    is_human: bool = False
    hides_people: bool = False
    human: dict[str, str] = field(default_factory=dict)
    cards: dict[str, Persona] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    license: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """Rows of the dataset."""
        return sum(self.splits.values())


def load_source(run: RunDirectory, recipe: Recipe, sampled: frozenset[str]) -> Source:
    """Read the dataset, if there is one, and what a panel run was asked.

    What cannot be read any more (a panel's file that has moved) becomes a note of the page.

    Raises:
        StorageError: a row of the dataset is broken.
    """
    source = Source()
    for split in SPLITS:
        if run.exists(f"dataset/{split}.jsonl"):
            is_asked = recipe.generate.on == "test" and split == "test"
            for example in stream_examples(run, split):
                _count(source, split, example)
                if is_asked:
                    _keep_reference(source, example, sampled)
    if source.is_human:
        source.human = load_run(run).get("stages", {}).get("dataset", {}).get("figures", {}).get("human", {})
    if recipe.generate.on == "panel":
        _read_panel(source, recipe, sampled)
    elif human := source.human:
        source.license = human["license"] or human["source"]
        source.notes.append(
            f"The respondents are those of the survey “{human['title']}”: no card and no answer of theirs is shown by "
            f"itself. Source: {human['source'].rstrip('.')}."
        )
    return source


def stream_examples(run: RunDirectory, split: str) -> Iterator[Example]:
    """Yield the rows of one split without holding them."""
    fs, root = run.filesystem()
    name = f"dataset/{split}.jsonl"
    with fs.open_input_stream(f"{root}/{name}") as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield Example(row["id"], tuple(row["messages"]), row["metadata"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise StorageError(
                    f"{run.path(name)}, line {number}: this is no row of a dataset ({error}).",
                    "Run the dataset stage again.",
                ) from error


def _count(source: Source, split: str, example: Example) -> None:
    stored = example.metadata
    source.splits[split] += 1
    source.is_human |= bool(stored.get("is_human"))
    source.domains[stored["domain"]] += 1
    source.types[stored["question_type"]] += 1
    source.item_types.setdefault(stored["item_id"], stored["question_type"])
    source.personas[split].add(int(digest(stored["persona_id"]), 16))
    if stored["item_id"] not in source.items:
        source.items[stored["item_id"]] = example_item(example)


def _keep_reference(source: Source, example: Example, sampled: frozenset[str]) -> None:
    stored = example.metadata
    if stored.get("code") is not None:
        item, code = stored["item_id"], int(stored["code"])
        source.reference_codes[item][code] += 1
        source.reference_weights[item][code] += stored.get("weight", 1.0)
    if stored["persona_id"] in sampled and not stored.get("is_human"):  # no person of a survey is shown
        source.cards.setdefault(stored["persona_id"], example_persona(example))
        source.references[stored["persona_id"], stored["item_id"]] = str(stored.get("reference", ""))


def _read_panel(source: Source, recipe: Recipe, sampled: frozenset[str]) -> None:
    try:
        panel = load_panel(recipe.panel, recipe.seed)
        source.license, source.hides_people = panel.license, panel.is_human
        if not source.hides_people:
            source.cards = {one.persona_id: one for one in panel.personas if one.persona_id in sampled}
        else:
            source.notes.append(
                "The respondents are those of a survey: no card and no id of theirs is shown. "
                f"Source: {mask_secrets(recipe.panel.source)}."
            )
    except PolypersonaError as error:
        source.notes.append(f"The respondents' cards are not shown: {error.message}")
    try:
        for item in load_instrument(recipe.instrument).items:
            source.items[item_key(item.item_id, item.variant)] = item
    except PolypersonaError as error:
        source.notes.append(f"The wording of the questions is not shown: {error.message}")
