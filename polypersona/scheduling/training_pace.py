"""How fast trainings were on this kind of hardware: one record each, in the user's cache folder.

Written when a training has ended; read by the plan of the next one of the same kind. A record's parts say what it
holds for: another model, precision, adapter or number of workers is another record. Knows files and
numbers, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.record_file import LEAVE_IT, RecordFile, SetAside, key_of
from polypersona.scheduling.training_plan import TrainPlan

FILE = "training_paces.json"
# A training of fewer steps is mostly its beginning.
LEAST_STEPS = 20


@dataclass(frozen=True, slots=True)
class TrainingPace:
    """Tokens a second of all workers, padding excluded, and the tokens of a row, as a training of that day had them."""

    tokens_per_s: float
    tokens_per_row: float
    date: str


def pace_parts(recipe: Recipe, plan: TrainPlan, hardware: str) -> dict[str, Any]:
    """Return what a pace depends on: the model, how it is trained and on what."""
    settings = finetune_settings(recipe.finetune)
    decided = ("workers", "threads", "micro_batch", "dtype", "quantization", "checkpointing", "optimizer", "attention")
    return {
        "hardware": hardware,
        "base": recipe.model.base,
        "revision": recipe.model.revision,
        "rank": settings.rank,
        "max_length": settings.max_length,
        "loss": settings.loss,
        **{name: getattr(plan, name).value for name in decided},
    }


def known_pace(parts: Mapping[str, Any]) -> TrainingPace | None:
    """Return the last pace of a training of this kind; None where there was none.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    record = _PACES.load().get(key_of(parts))
    return None if record is None else TrainingPace(**record["pace"])


def remember_pace(parts: Mapping[str, Any], pace: TrainingPace) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    return _PACES.put(parts, {"parts": parts, "pace": asdict(pace)})


def set_aside_paces() -> SetAside | None:
    """Keep a damaged file of them aside, and return what was wrong with it; None where nothing is."""
    return _PACES.set_aside()


def _checked(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    pace = TrainingPace(**stored["pace"])
    if not (pace.tokens_per_s > 0 and pace.tokens_per_row > 0):
        raise ValueError("a record counts no tokens")
    return stored


_PACES = RecordFile(FILE, "training_paces", "file of training paces", LEAVE_IT, _checked, dict)
