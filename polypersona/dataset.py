"""The dataset stage: panel and instrument, records made elsewhere, or a survey → train, validation and test examples.

Reads what the recipe names; writes `dataset/{train,validation,test}.jsonl`, `leaks.json`, `card.md` and, where answers
or records were kept aside, `rejected.jsonl`, then its entry in run.json. A dataset that is there for the same content
is left alone, also when the panel or the instrument has only grown; one for other content is never overwritten.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from polypersona import records_loader
from polypersona.chatml import RENDERER_VERSION
from polypersona.composition import COMPOSITION_VERSION, compose
from polypersona.dataset_card import Human, Making, render_card
from polypersona.dataset_options import refuse_idle_options
from polypersona.engines.base import EngineSettings
from polypersona.errors import DatasetError, RecipeChangedError, StorageError
from polypersona.examples import SPLITS, render_examples
from polypersona.fingerprint import diff, digest_of
from polypersona.leaks import find_leaks
from polypersona.location import mask_secrets
from polypersona.panel.sources import Panel, load_panel
from polypersona.population import panel_digests, refuse_idle_panel
from polypersona.questionbank import Instrument, item_hash, load_instrument
from polypersona.recipe import Recipe
from polypersona.records import Example
from polypersona.respondents import Respondents, build_splits, load_respondents, survey_content
from polypersona.splits import SPLITS_VERSION, Row, divide
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.teacher import ask_teacher, locate_teacher

LOADER_VERSION = 2
_ITEM_KEY = "item "
_REJECTED = "dataset/rejected.jsonl"

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """What the stage is about to write."""

    splits: dict[str, list[Example]]
    rejected: list[dict[str, Any]]
    making: Making


def run(recipe: Recipe) -> dict[str, Any]:
    """Build the dataset of a run and return its figures; `skipped` where it was there already.

    Raises:
        DatasetError: nothing usable, too many records asked for, or rows that cannot be divided as asked.
        RecipeError: a key of panel or instrument that would do nothing.
        RecipeChangedError: the run has a dataset that the recipe would change.
    """
    directory = RunDirectory.at(recipe.location)
    entry = _finished_entry(directory)
    refuse_idle_options(recipe.dataset)
    refuse_idle_panel(recipe)
    if recipe.dataset.survey.codebook is not None:
        content, make = _plan_survey(recipe, str(recipe.dataset.source))
    elif recipe.dataset.source is not None:
        content, make = _plan_external(recipe, recipe.dataset.source)
    else:
        content, make = _plan_taught(recipe, directory, entry.get("content", {}))
    if entry:
        _refuse_change(directory, entry["content"], content)
        return {**entry["figures"], "skipped": True}
    made = make()
    figures = _write(directory, recipe, made)
    stage = {"state": "finished", "fingerprint": digest_of(content), "content": content, "figures": figures}
    stage |= {"license": made.making.license, "origin": made.making.origin}
    update_run(directory, {"stages": {"dataset": stage}})
    return {**figures, "skipped": False}


def _finished_entry(directory: RunDirectory) -> dict[str, Any]:
    """Return what run.json says of this stage, or nothing where its files are not all there."""
    entry = load_run(directory).get("stages", {}).get("dataset", {})
    has_files = all(directory.exists(f"dataset/{split}.jsonl") for split in SPLITS)
    return dict(entry) if entry.get("state") == "finished" and has_files else {}


def _refuse_change(directory: RunDirectory, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    lines = [line for line in diff(old, new) if not line.startswith(_ITEM_KEY)]
    items = [key.removeprefix(_ITEM_KEY) for key in old if key.startswith(_ITEM_KEY) and new.get(key) != old[key]]
    if items:
        lines.append(f"instrument: {len(items)} items are gone or say something else, such as {items[0]}")
    if lines:
        raise RecipeChangedError(
            f"{directory.path('dataset')} was built from other content: {'; '.join(lines)}.",
            "Give the run another name, or restore the old values.",
        )


def _plan_taught(recipe: Recipe, directory: RunDirectory, old: Mapping[str, Any]) -> tuple[Content, Callable[[], Made]]:
    panel = load_panel(recipe.panel, recipe.seed)
    instrument = load_instrument(recipe.instrument)
    settings, of_teacher, warnings = locate_teacher(recipe, directory)
    content = _content(recipe) | of_teacher | _panel_content(panel, old) | _items_content(instrument, old)
    return content, lambda: _make_taught(recipe, settings, panel, instrument, warnings)


def _plan_external(recipe: Recipe, source: str) -> tuple[Content, Callable[[], Made]]:
    content = _content(recipe) | {
        "records.source_hash": records_loader.hash_source(source),
        "records.loader_version": LOADER_VERSION,
    }
    return content, lambda: _make_external(recipe, source)


def _plan_survey(recipe: Recipe, source: str) -> tuple[Content, Callable[[], Made]]:
    people = load_respondents(source, recipe.dataset.survey)
    settings = recipe.dataset.survey.model_dump(exclude={"codebook"})
    content = _content(recipe) | {f"dataset.survey.{name}": value for name, value in settings.items()}
    return content | survey_content(source, recipe.dataset.survey, people), lambda: _make_survey(recipe, people)


def _content(recipe: Recipe) -> Content:
    # Where records lie does not matter; what they say is hashed.
    kept = recipe.dataset.model_dump(exclude={"source", "survey"})
    section = {f"dataset.{name}": value for name, value in kept.items()}
    return section | {
        "seed": recipe.seed,
        "instrument.show_options": recipe.instrument.show_options,
        "renderer_version": RENDERER_VERSION,
        "composition_version": COMPOSITION_VERSION,
        "splits_version": SPLITS_VERSION,
    }


def _panel_content(panel: Panel, old: Mapping[str, Any]) -> Content:
    """Return number and hash of the personas; of a panel that has grown, only of those that were there."""
    personas = panel.personas[: old.get("panel.personas")]
    return {"panel.personas": len(personas), "panel.hash": panel_digests(personas, [len(personas)])[len(personas)]}


def _items_content(instrument: Instrument, old: Mapping[str, Any]) -> Content:
    """Return a hash for each item; of an instrument that has grown, only of those that were there."""
    hashes = {f"{_ITEM_KEY}{item.item_id}": item_hash(item) for item in instrument.items}
    return {key: value for key, value in hashes.items() if not old or key in old}


def _make_taught(
    recipe: Recipe, settings: EngineSettings, panel: Panel, instrument: Instrument, warnings: tuple[str, ...]
) -> Made:
    persona_ids = [persona.persona_id for persona in panel.personas]
    composition = compose(persona_ids, instrument.items, recipe.dataset.records, recipe.seed)
    taught = ask_teacher(settings, panel.personas, instrument.items, composition)
    if not taught.examples:
        reasons = [row["reason"] for row in taught.rejected] + ["not asked"] * len(taught.not_asked)
        reason, count = Counter(reasons).most_common(1)[0]
        raise DatasetError(
            f"The teacher {recipe.dataset.teacher!r} answered none of {len(reasons)} cells; {count} times: {reason}.",
            "Choose another dataset.teacher or another instrument.",
        )
    origin = (
        f"The engine `{recipe.dataset.teacher}` answered as {len(composition):,} personas from the source "
        f"`{mask_secrets(recipe.panel.source)}`."
    )
    if recipe.dataset.teacher == "rules":
        origin += " It is a simulator that follows documented rules: what a model learns from it is the simulator."
    license_ = panel.license or ("none needed, they are sampled" if recipe.panel.source == "sampled" else "not stated")
    splits, making = _divided(recipe, taught.examples, origin, license_)
    making = replace(making, notes=(*making.notes, *warnings), warnings=warnings)
    return Made(splits, taught.rejected, _with_routing(making, len(taught.not_asked)))


def _with_routing(making: Making, num_not_asked: int) -> Making:
    if not num_not_asked:
        return making
    note = f"{num_not_asked:,} cells were not asked, because an earlier answer of the respondent routes past them."
    return replace(making, num_not_asked=num_not_asked, notes=(*making.notes, note))


def _make_external(recipe: Recipe, source: str) -> Made:
    loaded = records_loader.load_records(source, recipe.instrument.show_options)
    origin = f"The rows were read from `{source}` and rendered again; nothing is known here of how they were written."
    if records_loader.SINGLE_FILE in loaded.splits:
        splits, making = _divided(recipe, loaded.splits[records_loader.SINGLE_FILE], origin, "not stated")
    else:
        splits = loaded.splits
        making = Making(origin, "not stated", recipe.seed, "The splits are those of the source.")
    rejected = [
        {"synthetic": True, "file": row.file, "row": row.row, "field": row.field, "reason": row.reason}
        for row in loaded.rejected
    ]
    return Made(splits, rejected, _with_notes(making, loaded))


def _make_survey(recipe: Recipe, people: Respondents) -> Made:
    book, survey = people.survey.codebook, people.survey
    examples = build_splits(people, recipe.dataset, recipe.seed, recipe.instrument.show_options)
    human = Human(book.title, book.source or survey.location, book.license)
    origin = (
        f"The answers are those of {len(people.personas):,} respondents of the survey “{book.title}”, the questions "
        "and their options those of its codebook. A card holds a respondent's demographics; ids are hashed. Training "
        "draws an answer by its respondent's survey weight (`sampling_weight`, one on average)."
    )
    outcomes = ", ".join(f"{count:,} {name}" for name, count in examples.outcomes.items())
    notes = [f"Cells without an answer are no rows: {outcomes}.", *survey.notes]
    if people.withheld:
        names = ", ".join(item.item_id for item in people.withheld)
        notes.append(f"Withheld from training and validation, in the test split only: {names}.")
    making = Making(
        origin,
        book.license or "as the source says",
        recipe.seed,
        "Divided by respondent: no respondent is in two splits.",
        is_external=True,
        notes=tuple(notes),
        human=human,
    )
    return Made(examples.splits, [], making)


def _with_notes(making: Making, loaded: records_loader.LoadedRecords) -> Making:
    notes = [f"The field `{name}` of {count:,} records was not taken over." for name, count in loaded.ignored.items()]
    if loaded.num_scales_added:
        notes.append(
            f"{loaded.num_scales_added} closed questions came without options and got the standard scale that all "
            "their answers are on."
        )
    return replace(making, notes=tuple(notes), is_external=True)


def _divided(
    recipe: Recipe, examples: Sequence[Example], origin: str, license_: str
) -> tuple[dict[str, list[Example]], Making]:
    dataset = recipe.dataset
    rows = [
        Row(row.metadata["persona_id"], row.metadata["item_id"], row.metadata["domain"], row.metadata["question_type"])
        for row in examples
    ]
    division = divide(rows, dataset.splits, dataset.split_by, recipe.seed)
    splits = {split: [examples[number] for number in getattr(division, split)] for split in SPLITS}
    by = {
        "persona": "Divided by persona: no persona is in two splits.",
        "item": "Divided by item: no item is in two splits.",
        "both": "Divided by persona and by item: no two splits share either.",
        "neither": "Divided row by row: the splits share personas and items.",
    }
    return splits, Making(origin, license_, recipe.seed, by[dataset.split_by], num_dropped=len(division.dropped))


def _write(directory: RunDirectory, recipe: Recipe, made: Made) -> dict[str, Any]:
    splits, making = made.splits, replace(made.making, num_rejected=len(made.rejected))
    leaks = find_leaks(splits["train"], splits["validation"], splits["test"])
    if making.human is not None:
        leaks["synthetic"] = False
    try:
        for split in SPLITS:
            directory.write(f"dataset/{split}.jsonl", render_examples(splits[split]))
        if made.rejected:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made.rejected)
            directory.write(_REJECTED, "".join(lines).encode())
        else:
            directory.delete(_REJECTED)
        directory.write_json("dataset/leaks.json", leaks)
        directory.write("dataset/card.md", render_card(recipe.name, splits, leaks, making).encode())
    except StorageError:
        _delete_part(directory)
        raise
    rows = [row for split in SPLITS for row in splits[split]]
    return {
        "teacher": recipe.dataset.teacher if recipe.dataset.source is None else None,
        "rows": len(rows),
        "splits": {split: len(splits[split]) for split in SPLITS},
        "dropped": making.num_dropped,
        "rejected": len(made.rejected),
        **({"not_asked": making.num_not_asked} if making.num_not_asked else {}),
        **({"warnings": list(making.warnings)} if making.warnings else {}),
        **({"human": asdict(making.human)} if making.human is not None else {}),
        "personas": leaks["repeats"]["personas"],
        "items": len({row.metadata["item_id"] for row in rows}),
        "leaks": leaks["leaks"]["test_in_train"],
    }


def _delete_part(directory: RunDirectory) -> None:
    """Delete the files of a dataset that could not be written to its end, so that none passes for a whole one."""
    for name in ("dataset/card.md", "dataset/leaks.json", _REJECTED, *(f"dataset/{split}.jsonl" for split in SPLITS)):
        with contextlib.suppress(StorageError):
            directory.delete(name)
