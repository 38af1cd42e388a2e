"""What a checkpoint gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from training_runs import make_job

from polypersona.training.checkpoints import State, load_checkpoint, save_checkpoint
from polypersona.training.optimizing import build_optimizer
from polypersona.training.trainable import build_trainable


def test_a_resumed_optimizer_is_not_paged(base: Path, tmp_path: Path) -> None:
    job = make_job(base)
    trainable = build_trainable(job, "cpu")
    optimizer = build_optimizer(job, trainable.parameters, "cpu")
    for parameter in trainable.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for tensor in tensors_of(optimizer):  # as bitsandbytes marks what it keeps in CUDA's pages
        tensor.is_paged, tensor.page_deviceid = True, 0
    scaler, none = torch.amp.GradScaler("cpu", enabled=False), tmp_path / "none"
    save_checkpoint(tmp_path / "kept", trainable, optimizer, scaler, State(step=1), none)
    before = [tensor.clone() for tensor in tensors_of(optimizer)]
    resumed = build_optimizer(job, trainable.parameters, "cpu")
    load_checkpoint(tmp_path / "kept", trainable, resumed, scaler, none)
    after = tensors_of(resumed)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(hasattr(tensor, name) for tensor in after for name in ("is_paged", "page_deviceid"))


def tensors_of(optimizer: Any) -> list[Any]:
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
