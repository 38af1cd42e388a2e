"""The adapter folder of a run: what its adapter follows from, whether it is there, how it gets there whole.

training.json is written last, so its existence says that the rest is whole. Knows the run directory, no Ray, no torch.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from polypersona.chatml import RENDERER_VERSION
from polypersona.errors import DatasetError, RecipeChangedError
from polypersona.examples import load_examples, render_examples
from polypersona.fingerprint import diff
from polypersona.models.adapters import CONFIG, TRAINING, WEIGHTS
from polypersona.models.location import files_hash, model_hash, read_config
from polypersona.recipe import Recipe
from polypersona.records import Example, digest
from polypersona.scopes import EVERYTHING, Scope
from polypersona.storage import RunDirectory, load_run
from polypersona.training.artifacts import build_events
from polypersona.training.card import data_facts, render_card
from polypersona.training.job import TRAINING_VERSION, content_of

FOLDER = "adapter"
CHECKPOINTS = "train"


def training_content(recipe: Recipe, run_directory: RunDirectory, scope: Scope = EVERYTHING) -> dict[str, Any]:
    """Return everything an adapter follows from, flat, but its precision, which may depend on the hardware.

    Raises:
        ModelError: the base model cannot be found.
        StorageError: the dataset stage has not run.
    """
    return {
        **content_of(recipe),
        "base": model_hash(recipe.model.base, recipe.model.revision),
        **{f"dataset.{split}": value for split, value in _data_hashes(run_directory, scope).items()},
        "renderer_version": RENDERER_VERSION,
        "training_version": TRAINING_VERSION,
    }


def training_rendering(recipe: Recipe, run_directory: RunDirectory) -> dict[str, Any]:
    """Return how the training prompts were written: what the dataset stage recorded, else what the recipe says."""
    dataset = load_run(run_directory).get("stages", {}).get("dataset", {}).get("content", {})
    return {
        "show_options": dataset.get("instrument.show_options", recipe.instrument.show_options),
        "renderer_version": dataset.get("renderer_version", RENDERER_VERSION),
    }


def _data_hashes(run_directory: RunDirectory, scope: Scope) -> dict[str, str]:
    """Return what identifies the rows in scope: of the whole files their bytes, of a part its rows."""
    splits = ("train", "validation")
    if scope.is_everything:
        return {split: digest(run_directory.read(f"dataset/{split}.jsonl").decode(), size=16) for split in splits}
    rows = load_training(run_directory, scope), load_validation(run_directory, scope)
    return {split: digest(render_examples(part).decode(), size=16) for split, part in zip(splits, rows, strict=True)}


def load_training(run_directory: RunDirectory, scope: Scope = EVERYTHING) -> list[Example]:
    """Return the training rows in scope.

    Raises:
        DatasetError: there are none, or a line of the file is no example.
        StorageError: the dataset stage has not run.
    """
    rows = load_examples(run_directory, "train")
    kept = scope.examples(rows)
    domains = sorted({str(row.metadata["domain"]) for row in rows})
    lost = [domain for domain in scope.domains if domain not in domains]
    if not kept or lost:
        what = scope.text if not lost else lost[0]
        raise DatasetError(
            f"None of the {len(rows):,} rows of {run_directory.path('dataset/train.jsonl')} is for an adapter of "
            f"{what}; its domains are {', '.join(domains)}.",
            "Mend the domains and personas of that adapter in finetune, or raise dataset.records.",
        )
    return kept


def load_validation(run_directory: RunDirectory, scope: Scope = EVERYTHING) -> list[Example]:
    """Return the validation rows in scope; a recipe may give that split no share.

    Raises:
        DatasetError: a line of it is no example.
        StorageError: the dataset stage has not run.
    """
    if not run_directory.read("dataset/validation.jsonl"):
        return []
    return scope.examples(load_examples(run_directory, "validation"))


def finished_training(
    run_directory: RunDirectory, content: Mapping[str, Any], folder: str = FOLDER
) -> dict[str, Any] | None:
    """Return training.json of an adapter of this content; None where there is no whole adapter.

    Raises:
        RecipeChangedError: the adapter there has other content.
    """
    if not all(run_directory.exists(f"{folder}/{name}") for name in (TRAINING, WEIGHTS, CONFIG)):
        return None
    training: dict[str, Any] = run_directory.read_json(f"{folder}/{TRAINING}")
    if changes := diff(training["content"], content):
        raise RecipeChangedError(
            f"{run_directory.path(folder)} was trained on other content: {'; '.join(changes)}.",
            "Give the recipe another name, undo the change, or delete that folder to train anew.",
        )
    return training


def commit_adapter(
    run_directory: RunDirectory, checkpoint: Path, training: dict[str, Any], folder: str = FOLDER
) -> dict[str, Any]:
    """Write an adapter's folder from its checkpoint; training.json last: its existence says the rest is whole."""
    files = {CONFIG: _portable_config(checkpoint, training["base"]), WEIGHTS: (checkpoint / WEIGHTS).read_bytes()}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, name) for name in files]
        for path in paths:
            path.write_bytes(files[path.name])
        training = {**training, "adapter_hash": files_hash(paths)}
    for name, data in build_events(training["log"]).items():
        run_directory.write(f"{folder}/tensorboard/{name}", data)
    run_directory.write(f"{folder}/README.md", render_card(training, data_facts(run_directory)))
    for name, data in files.items():
        run_directory.write(f"{folder}/{name}", data)
    run_directory.write_json(f"{folder}/{TRAINING}", training)
    return training


def _portable_config(checkpoint: Path, base: Mapping[str, Any]) -> bytes:
    """Return adapter_config.json with the base as the recipe names it, and the same bytes for the same adapter."""
    config = read_config(checkpoint / CONFIG)
    config.update(base_model_name_or_path=base["name"], revision=base["revision"])
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set, in no order
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def drop_checkpoints(run_directory: RunDirectory, folder: str = CHECKPOINTS) -> None:
    """Delete Ray Train's folder; the adapter is committed and nothing resumes from it."""
    filesystem, root = run_directory.filesystem()
    with contextlib.suppress(FileNotFoundError):
        if filesystem.get_file_info(f"{root}/{folder}").type == pafs.FileType.Directory:
            filesystem.delete_dir(f"{root}/{folder}")


def summarise_training(training: Mapping[str, Any], *, is_skipped: bool) -> dict[str, Any]:
    """Return what the stage says of itself: a few values of training.json."""
    names = (
        "fingerprint", "steps", "num_examples", "num_shortened", "tokens", "loss", "eval_loss", "seconds",
        "world_size", "dtype", "quantization", "adapter_hash",
    )  # fmt: skip
    return {"skipped": is_skipped, **{name: training[name] for name in names}}
