"""Whether the adapters that answered a run were tuned on answers of the people that the run is compared with.

Takes run.json, `dataset/train.jsonl` and the two files of a comparison. Knows no response and no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polypersona.adapter_choice import FROZEN_KEY
from polypersona.examples import load_examples
from polypersona.recipe import Recipe
from polypersona.respondents import hash_file
from polypersona.roster import ALONE, Member, build_roster
from polypersona.scheduling.precision import MODEL_ENGINES
from polypersona.storage import RunDirectory


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """How many people gave the training rows, None where that is not known, and to which items.

    `is_same_file` says that they are of the compared file; else only its codebook is the same.
    """

    is_same_file: bool
    respondents: int | None
    items: tuple[str, ...]

    @property
    def as_json(self) -> dict[str, Any]:
        """The overlap as JSON values."""
        return asdict(self) | {"items": list(self.items)}

    @property
    def note(self) -> str:
        """Who gave the training rows, and to which items."""
        if self.respondents is None:
            return f"the run's adapter was tuned on answers {self._people}; how many and on which items is not known"
        return f"the run's adapter was tuned on answers that {self._people} gave to {', '.join(self.items)}"

    def summary(self, shared: Sequence[str]) -> str:
        """Return the same in a sentence, with the number of items; `shared` are those that are compared."""
        if self.respondents is None:
            text = f"The run's adapter was tuned on answers {self._people}"
        else:
            known = len(set(shared) & set(self.items))
            text = (
                f"The run's adapter was tuned on answers that {self._people} gave to {len(self.items)} items, {known} "
                f"of the {len(shared)} compared among them"
            )
        return f"{text}: to that extent this compares it with its own training data."

    @property
    def _people(self) -> str:
        if self.respondents is None:
            return "of these people" if self.is_same_file else "of people who may be among these"
        return f"{self.respondents:,} {'of these people' if self.is_same_file else 'people who may be among these'}"


def find_overlap(
    directory: RunDirectory, stored: Mapping[str, Any], recipe: Recipe, human: str, codebook: str
) -> TrainingOverlap | None:
    """Return what a run's adapters were tuned on of a survey; None where they were not, or did not answer.

    Args:
        directory: of the run.
        stored: its run.json.
        recipe: its recipe.
        human: the file of coded data, a path or URL.
        codebook: its codebook.

    Raises:
        DatasetError: a training row cannot be read.
    """
    content = stored.get("stages", {}).get("dataset", {}).get("content", {})
    members = _answering(directory, stored, recipe)
    if not members or "survey.hash" not in content:
        return None
    is_same_file = content["survey.hash"] == hash_file(human)
    if not is_same_file and content["survey.codebook_hash"] != hash_file(codebook):
        return None
    if not directory.exists("dataset/train.jsonl"):
        return TrainingOverlap(is_same_file, None, ())
    rows = [
        row.metadata
        for row in load_examples(directory, "train")
        if any(member.scope.has_example(row) for member in members)
    ]
    items = tuple(dict.fromkeys(str(row["item_id"]) for row in rows))
    return TrainingOverlap(is_same_file, len({row["persona_id"] for row in rows}), items)


def _answering(directory: RunDirectory, stored: Mapping[str, Any], recipe: Recipe) -> list[Member]:
    """Return those of the run's own adapters that answered it."""
    if recipe.generate.engine not in MODEL_ENGINES:
        return []
    named, roster = recipe.model.adapter, build_roster(recipe)
    if named == ALONE:
        chosen = stored.get("frozen", {}).get(FROZEN_KEY, {})
        names = {name for domain in chosen.values() for name in domain}
        return [member for member in roster if not chosen or member.name in names]
    folder = Path(named).expanduser().resolve()
    return [one for one in roster if directory.is_local and folder == directory.local_path(one.folder).resolve()]
