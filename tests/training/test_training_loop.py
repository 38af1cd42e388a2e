"""The training loop without Ray: a resumed training ends as an undisturbed one, and divergence is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_models import make_toy_model

from polypersona.errors import ModelError, RunFailedError
from polypersona.recipe_sections import FinetuneSettings
from polypersona.records import Example
from polypersona.training.artifacts import build_training, render_card
from polypersona.training.job import TrainingJob
from polypersona.training.loop import Listeners, Place, train

SETTINGS = FinetuneSettings(
    epochs=2, learning_rate=5e-3, rank=4, alpha=8, dropout=0.1, batch_size=4, accumulation=2, max_length=256
)


def make_examples(count: int) -> list[Example]:
    answers = ("Satisfied. I see how hard the staff work.", "Disagree. Money is tight.", "Yes.", "No.")
    return [
        Example(
            str(number),
            (
                {"role": "system", "content": "You are a survey respondent."},
                {"role": "user", "content": f"age: {20 + number} " * (1 + number % 5) + "How satisfied?"},
                {"role": "assistant", "content": answers[number % 4]},
            ),
            {},
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("model") / "base")


def run_loop(job: TrainingJob, folder: Path, resume_from: Path | None = None) -> tuple[Any, dict[int, Path]]:
    saved: dict[int, Path] = {}
    steps: list[int] = []

    def keep(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        assert checkpoint is not None
        saved[metrics["step"]] = Path(shutil.copytree(checkpoint, folder / f"kept-{metrics['step']}"))

    place = Place(folder / "work")
    outcome = train(job, make_examples(40), make_examples(6), place, Listeners(steps.append, keep), resume_from)
    assert steps[-1] == outcome.steps
    return outcome, saved


def test_a_resumed_training_ends_bit_equal(base: Path, tmp_path: Path) -> None:
    job = TrainingJob(str(base), str(base), SETTINGS.model_copy(update={"epochs": 5}), seed=7)
    whole, saved = run_loop(job, tmp_path / "whole")
    assert sorted(saved) == [20, 25]
    for file in saved[20].glob("rng_state*"):
        file.unlink()
    torch.manual_seed(999)
    resumed, again = run_loop(job, tmp_path / "resumed", saved[20])
    assert (resumed.first_step, sorted(again)) == (20, [25])
    assert resumed.log == whole.log
    one, other = (load_file(folder[25] / "adapter_model.safetensors") for folder in (saved, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_falls_and_validation_is_measured_at_each_epoch_end(base: Path, tmp_path: Path) -> None:
    outcome, _ = run_loop(TrainingJob(str(base), str(base), SETTINGS, seed=7), tmp_path)
    assert [entry["step"] for entry in outcome.log if "eval_loss" in entry] == [5, 10]
    assert outcome.log[-1]["eval_loss"] < outcome.log[4]["eval_loss"]
    assert all({"loss", "learning_rate", "grad_norm", "epoch"} <= set(entry) for entry in outcome.log)
    assert outcome.tokens > outcome.answer_tokens > 0


def test_micro_batches_do_not_change_the_adapter(base: Path, tmp_path: Path) -> None:
    adapters = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        settings = SETTINGS.model_copy(update={"batch_size": batch_size, "accumulation": accumulation, "dropout": 0.0})
        _, saved = run_loop(TrainingJob(str(base), str(base), settings, seed=7), tmp_path / str(batch_size))
        adapters.append(load_file(saved[10] / "adapter_model.safetensors"))
    assert max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0]) <= 1e-5


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_trains_in_bf16(quantization: Any, base: Path, tmp_path: Path) -> None:
    job = TrainingJob(str(base), str(base), SETTINGS, seed=7, dtype="bf16", quantization=quantization)
    outcome, saved = run_loop(job, tmp_path)
    assert outcome.log[-1]["loss"] < outcome.log[0]["loss"]
    weights = load_file(saved[10] / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_the_training(base: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RunFailedError, match=r"The training loss is (nan|inf)"):
        run_loop(TrainingJob(str(base), str(base), settings, seed=7), tmp_path)


def test_fp16_on_a_cpu_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fp16"):
        run_loop(TrainingJob(str(base), str(base), SETTINGS, seed=7, dtype="fp16"), tmp_path)


def test_the_card_says_synthetic_and_names_base_and_losses(base: Path, tmp_path: Path) -> None:
    job = TrainingJob(str(base), "tiny", SETTINGS, seed=7)
    outcome, _ = run_loop(job, tmp_path)
    facts = {"preset": "paper", "num_examples": 40, "num_validation": 6, "is_on_gpu": False}
    training = build_training(job, outcome, {"base": "abc"}, "f" * 16, facts)
    card = render_card(training).decode()
    assert "**synthetic**" in card
    assert "base_model: tiny" in card
    assert f"{training['eval_loss']:.4f}" in card
