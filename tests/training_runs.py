"""Small trainings for tests: examples, a job, and a run of the loop that keeps its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from polypersona.engines.base import Answer
from polypersona.examples import build_example
from polypersona.recipe_sections import FinetuneSettings
from polypersona.records import Example, Item, Persona
from polypersona.training.job import TrainingJob
from polypersona.training.loop import Listeners, Place, train

SETTINGS = FinetuneSettings(
    epochs=2, learning_rate=5e-3, rank=4, alpha=8, dropout=0.1, batch_size=4, accumulation=2, max_length=256
)
ITEM = Item("healthcare.likert.01", "healthcare", "How satisfied?", "likert", ("Disagree", "Satisfied", "No", "Yes"))
_REASONS = (" I see how hard the staff work.", " Money is tight.", "", "")


def make_examples(count: int) -> list[Example]:
    """Rows of different length, whose answer follows from the age."""
    rows = []
    for number in range(count):
        label = ITEM.options[number % 4]
        persona = Persona(f"p{number}", {"age": 20 + number, "work": "full time " * (1 + number % 5)})
        answer = Answer("", f"{label}.{_REASONS[number % 4]}", "complete", code=number % 4 + 1, label=label)
        rows.append(build_example(persona, ITEM, answer, "labels"))
    return rows


def make_job(base: Path, *, dtype: Any = "fp32", quantization: Any = "none", **settings: Any) -> TrainingJob:
    """A job on a toy base, with some settings of its own."""
    own = SETTINGS.model_copy(update=settings)
    return TrainingJob(str(base), str(base), own, seed=7, dtype=dtype, quantization=quantization)


def run_training(
    job: TrainingJob,
    folder: Path,
    resume_from: Path | None = None,
    validation: Any = None,
    machine: Any = None,
    **listeners: Any,
) -> tuple[Any, dict[int, Path]]:
    """Run the loop on 40 rows, with 6 for validation; return its outcome and each checkpoint by its step."""
    saved: dict[int, Path] = {}
    steps: list[int] = []

    def keep(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        assert checkpoint is not None
        saved[metrics["step"]] = Path(shutil.copytree(checkpoint, folder / f"kept-{metrics['step']}"))

    told = Listeners(steps.append, keep, **listeners)
    place = Place(folder / "work", machine=machine or {})
    outcome = train(job, make_examples(40), validation or make_examples(6), place, told, resume_from)
    assert steps[-1] == outcome.steps
    return outcome, saved
