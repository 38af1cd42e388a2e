"""A checkpoint folder: the adapter, the optimiser's states, and how far training is. What is read back is tensors and
JSON only. Knows no group and no run directory.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from polypersona.models.adapters import CONFIG, WEIGHTS, quiet_peft
from polypersona.training.trainable import Trainable

STATE, OPTIMIZER, BEST = "state.json", "optimizer.pt", "best.safetensors"


@dataclass(slots=True)
class State:
    """How far a training is.

    `num_bad` counts validations since `best`. A training that `is_finished` left the adapter to keep in its checkpoint,
    which is the best one's and need not be the last one's. `attempts` are the starts that led here, each with the step
    it began at, its workers, its seconds up to here, and its machines by kind (`training.hardware`).
    """

    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    micro_batch: int = 0
    world_size: int = 1
    best: dict[str, Any] | None = None
    num_bad: int = 0
    is_finished: bool = False
    pending: list[float] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(folder: Path, trainable: Trainable, optimizer: Any, scaler: Any, state: State, best: Path) -> None:
    """Write a checkpoint into a new folder; `best` is the best adapter's file, which need not exist."""
    folder.mkdir(parents=True)
    with quiet_peft():
        trainable.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # the library's card of an adapter nobody described
    if best.exists():
        shutil.copyfile(best, folder / BEST)
        if state.is_finished:
            shutil.copyfile(best, folder / WEIGHTS)
    torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path, trainable: Trainable, optimizer: Any, scaler: Any, best: Path) -> State:
    """Put a checkpoint back: the adapter's weights, the optimiser's states, and the best adapter's file at `best`."""
    from peft import set_peft_model_state_dict

    state = State(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    weights = load_file(folder / WEIGHTS)
    with quiet_peft():
        set_peft_model_state_dict(trainable.model, weights)
    stored = torch.load(folder / OPTIMIZER, weights_only=True, map_location=trainable.device)
    optimizer.load_state_dict(_unpaged(stored["optimizer"]))
    scaler.load_state_dict(stored["scaler"])
    if (folder / BEST).exists():
        shutil.copyfile(folder / BEST, best)
    return state


def _unpaged(stored: dict[str, Any]) -> dict[str, Any]:
    """Take off the marks of bitsandbytes for tensors in CUDA's pages, which those of a file are not.

    It would page one that is marked, and CUDA ends the process for that.
    """
    for values in stored["state"].values():
        for value in values.values():
            for mark in ("is_paged", "page_deviceid"):
                getattr(value, "__dict__", {}).pop(mark, None)
    return stored


def save_best(path: Path, trainable: Trainable) -> None:
    """Keep the adapter's weights as they are now, in the format of an adapter folder."""
    scratch = path.with_name("best-adapter")
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet_peft():
        trainable.model.save_pretrained(scratch, save_embedding_layers=False)
    (scratch / WEIGHTS).replace(path)
    shutil.rmtree(scratch)


__all__ = ["BEST", "CONFIG", "OPTIMIZER", "STATE", "State", "load_checkpoint", "save_best", "save_checkpoint"]
