"""Memory that runs out: the micro-batch shrinks, the global batch and the adapter do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SETTINGS, make_examples, make_job, run_training

from polypersona.errors import InfeasiblePlanError, StorageError
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node
from polypersona.scheduling.micro_batches import FILE, hardware_of, known_micro_batch, remember_micro_batch
from polypersona.scheduling.record_file import cache_folder
from polypersona.training.loop import Listeners, Place, train

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
)


def fail_above(rows: int, error: Exception) -> Any:
    def before_forward(asked: int) -> None:
        if asked > rows:
            raise error

    return before_forward


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_training_that_runs_out_of_memory_at_8_and_4_ends_at_2_with_the_same_adapter(
    error: Exception, base: Path, tmp_path: Path
) -> None:
    job = make_job(base, batch_size=8, accumulation=1, dropout=0.0)
    whole, kept = run_training(job, tmp_path / "whole")
    told: list[dict[str, Any]] = []
    small, kept_small = run_training(
        job, tmp_path / "small", on_shortage=told.append, before_forward=fail_above(2, error)
    )
    assert [(one["step"], one["micro_batch"], one["next"]) for one in told] == [(0, 8, 4), (0, 4, 2)]
    assert list(small.shortages) == told
    assert (small.batch_size, small.accumulation, small.steps) == (2, 4, whole.steps)
    assert small.log[-1]["loss"] == pytest.approx(whole.log[-1]["loss"], abs=1e-5)
    assert small.log[-1]["eval_loss"] == pytest.approx(whole.log[-1]["eval_loss"], abs=1e-5)
    one, other = (load_file(folder[whole.steps] / "adapter_model.safetensors") for folder in (kept, kept_small))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5


def test_memory_that_does_not_hold_one_row_is_said_with_a_way_out(base: Path, tmp_path: Path) -> None:
    listeners = Listeners(before_forward=fail_above(0, ERRORS[0]))
    with pytest.raises(InfeasiblePlanError, match="one row of") as raised:
        train(make_job(base), make_examples(8), [], Place(tmp_path), listeners)
    assert "nf4" in raised.value.hint


def test_another_error_is_not_taken_for_a_shortage(base: Path, tmp_path: Path) -> None:
    listeners = Listeners(before_forward=fail_above(0, RuntimeError("a size mismatch")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(make_job(base), make_examples(8), [], Place(tmp_path), listeners)


def test_a_resumed_training_begins_with_the_micro_batch_that_fitted(base: Path, tmp_path: Path) -> None:
    job = make_job(base, epochs=5, dropout=0.0)
    _, kept = run_training(job, tmp_path / "first", before_forward=fail_above(2, MemoryError()))
    told: list[dict[str, Any]] = []
    resumed, _ = run_training(
        job, tmp_path / "second", kept[20], on_shortage=told.append, before_forward=fail_above(2, MemoryError())
    )
    assert told == []
    assert (resumed.first_step, resumed.batch_size) == (20, 2)


def test_what_hardware_holds_is_remembered_for_that_hardware_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = Gpu("T4", 16 * GIB, 7.5)
    here = hardware_of(Inventory((Node(8, 32 * GIB, (gpu, gpu)),)))
    assert here == "T4, 16 GiB"
    assert hardware_of(Inventory((Node(2, 24 * GIB, processor="AMD EPYC"),))) == "AMD EPYC, 24 GiB"
    parts = {"hardware": here, "base": "abc", "max_length": 1024}
    assert known_micro_batch(parts) is None
    remember_micro_batch(parts, 4, "CUDA out of memory", "2026-01-01")
    remember_micro_batch({**parts, "max_length": 512}, 8, "CUDA out of memory", "2026-01-01")
    assert known_micro_batch(parts) == 4
    assert known_micro_batch({**parts, "base": "def"}) is None
    cache_folder().write(FILE, b'{"format": 9}')
    with pytest.raises(StorageError, match="reads 1"):
        known_micro_batch(parts)


def test_the_settings_of_these_tests_are_those_of_the_loop() -> None:
    assert SETTINGS.global_batch == 8
