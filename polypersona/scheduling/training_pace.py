"""How fast trainings were on this kind of hardware: one record each, in the user's cache folder.

Written when a training has ended; read by the plan of the next one of the same kind. A record's parts say what it
holds for: another model, precision, adapter or number of workers is another record. Knows files and
numbers, no clock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polypersona.errors import StorageError
from polypersona.recipe import Recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.scheduling.calibration import calibration_folder, key_of
from polypersona.scheduling.training_plan import TrainPlan

FILE = "training_paces.json"
FORMAT = 1
# A training of fewer steps is mostly its beginning.
LEAST_STEPS = 20
# Trainings beside each other are threads of one driver.
_WRITING = threading.Lock()


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
    record = _load().get(key_of(parts))
    return None if record is None else TrainingPace(**record["pace"])


def remember_pace(parts: Mapping[str, Any], pace: TrainingPace) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    with _WRITING:
        folder, records = calibration_folder(), _load()
        records[key_of(parts)] = {"parts": dict(parts), "pace": asdict(pace)}
        folder.write_json(FILE, {"format": FORMAT, "training_paces": dict(sorted(records.items()))})
    return folder.path(FILE)


def _load() -> dict[str, dict[str, Any]]:
    folder = calibration_folder()
    if not folder.exists(FILE):
        return {}
    try:
        content = folder.read_json(FILE)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
        records = dict(content["training_paces"])
        for record in records.values():
            pace = TrainingPace(**record["pace"])
            if not (pace.tokens_per_s > 0 and pace.tokens_per_row > 0):
                raise ValueError("a record counts no tokens")
    except (StorageError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else getattr(error, "message", None) or str(error)
        raise StorageError(
            f"The file of training paces {folder.path(FILE)} is damaged: {what.rstrip('.')}.", "Delete it."
        ) from error
    return records
