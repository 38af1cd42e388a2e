"""The training loop without Ray: a resumed training ends as an undisturbed one, and divergence is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import make_examples, make_job, run_training

from polypersona.errors import ModelError, RunFailedError
from polypersona.models.loading import load_tokenizer
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.records import Example
from polypersona.training import loop
from polypersona.training.artifacts import build_events, build_training
from polypersona.training.card import render_card
from polypersona.training.encoding import encode_examples
from polypersona.training.sampling import training_order
from polypersona.training.trainable import build_trainable
from polypersona.training.validation import validation_loss


def test_a_resumed_training_ends_bit_equal(base: Path, tmp_path: Path) -> None:
    job = make_job(base, epochs=5)
    whole, saved = run_training(job, tmp_path / "whole")
    assert sorted(saved) == [20, 25]
    torch.manual_seed(999)
    resumed, again = run_training(job, tmp_path / "resumed", saved[20])
    assert (resumed.first_step, sorted(again)) == (20, [25])
    assert resumed.log == whole.log
    assert (resumed.tokens, whole.attempt_tokens) == (whole.tokens, whole.tokens)
    rows = encode_examples(load_tokenizer(str(base)), make_examples(40), 256)
    order = training_order(rows.lengths, 8, job.seed, 5)
    assert resumed.attempt_tokens == sum(rows.lengths[index] for index in order[8 * 20 :])
    one, other = (load_file(folder[25] / "adapter_model.safetensors") for folder in (saved, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_start_is_kept_with_what_it_ran_on_and_how_long(base: Path, tmp_path: Path) -> None:
    job = make_job(base, epochs=5)
    here, there = ({"node": name, "processor": name, "cpus": 2.0} for name in ("here", "there"))
    whole, saved = run_training(job, tmp_path / "first", machine=here)
    assert whole.attempts == ({"step": 0, "workers": 1, "seconds": whole.seconds, "machines": [kind(here)]},)
    resumed, again = run_training(job, tmp_path / "second", saved[20], machine=there)
    first, second = resumed.attempts
    assert (first["step"], first["machines"]) == (0, [kind(here)])
    assert 0 < first["seconds"] < whole.seconds
    assert second == {"step": 20, "workers": 1, "seconds": resumed.seconds, "machines": [kind(there)]}
    ended, _ = run_training(job, tmp_path / "third", again[25])
    assert [one["step"] for one in ended.attempts] == [0, 20]  # nothing was left to train


def kind(machine: dict[str, Any]) -> dict[str, Any]:
    return {"processor": machine["processor"], "cpus": machine["cpus"], "nodes": 1, "workers": 1}


def test_the_loss_falls_and_validation_is_measured_at_each_epoch_end(base: Path, tmp_path: Path) -> None:
    outcome, _ = run_training(make_job(base), tmp_path)
    assert [entry["step"] for entry in outcome.log if "eval_loss" in entry] == [5, 10]
    assert outcome.log[-1]["eval_loss"] < outcome.log[4]["eval_loss"]
    assert all({"loss", "learning_rate", "grad_norm", "epoch"} <= set(entry) for entry in outcome.log)
    assert outcome.tokens > outcome.answer_tokens > 0


def test_micro_batches_do_not_change_the_adapter(base: Path, tmp_path: Path) -> None:
    adapters = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        job = make_job(base, batch_size=batch_size, accumulation=accumulation, dropout=0.0)
        _, saved = run_training(job, tmp_path / str(batch_size))
        adapters.append(load_file(saved[10] / "adapter_model.safetensors"))
    assert max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0]) <= 1e-5


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_trains_in_bf16(quantization: Any, base: Path, tmp_path: Path) -> None:
    job = make_job(base, dtype="bf16", quantization=quantization)
    outcome, saved = run_training(job, tmp_path)
    assert outcome.log[-1]["loss"] < outcome.log[0]["loss"]
    weights = load_file(saved[10] / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_gradient_is_scaled_down_to_the_norm_that_the_recipe_allows(base: Path, tmp_path: Path) -> None:
    norms, adapters = {}, {}
    for most in (0.3, 1e-9):
        recipe = build_recipe({"name": "x", "panel": {"size": 3}, "finetune": {"max_grad_norm": most}})
        job = make_job(base, max_grad_norm=finetune_settings(recipe.finetune).max_grad_norm, epochs=1, dropout=0.0)
        outcome, saved = run_training(job, tmp_path / str(most))
        norms[most] = [entry["grad_norm"] for entry in outcome.log]
        adapters[most] = load_file(saved[5] / "adapter_model.safetensors")
    assert norms[0.3][0] == norms[1e-9][0] > 0.3  # the log has the norm before
    # Adam divides by the size of the gradients, except where they are as small as its ε of 1e-8.
    largest = {
        most: max(float(one.abs().max()) for name, one in found.items() if "lora_B" in name)
        for most, found in adapters.items()
    }
    assert 0 < largest[1e-9] < 0.5 * largest[0.3]


def test_a_loss_that_is_no_number_stops_the_training(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"The training loss is (nan|inf)"):
        run_training(make_job(base, learning_rate=1e30), tmp_path)


def test_fp16_on_a_cpu_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fp16"):
        run_training(make_job(base, dtype="fp16"), tmp_path)


def test_the_card_says_synthetic_and_names_base_and_losses(base: Path, tmp_path: Path) -> None:
    job = replace(make_job(base), base_name="tiny")
    outcome, _ = run_training(job, tmp_path)
    facts = {"preset": "paper", "num_examples": 40, "num_validation": 6, "is_on_gpu": False}
    training = build_training(job, outcome, {"base": "abc"}, "f" * 16, facts)
    card = render_card(training).decode()
    assert "**synthetic**" in card
    assert "base_model: tiny" in card
    assert f"{training['eval_loss']:.4f}" in card


def test_the_answers_to_validation_rows_are_scored_at_each_epoch_end(base: Path, tmp_path: Path) -> None:
    outcome, _ = run_training(make_job(base, epochs=8, learning_rate=2e-2, dropout=0.0), tmp_path)
    measured = [entry for entry in outcome.log if "eval_loss" in entry]
    assert [entry["step"] for entry in measured] == [5 * epoch for epoch in range(1, 9)]
    assert all({"eval_bleu", "eval_rougeL", "eval_validity"} <= set(entry) for entry in measured)
    assert all(0.0 <= value <= 1.0 for entry in measured for name, value in entry.items() if "rouge" in name)
    assert build_events(outcome.log)
    quiet, _ = run_training(make_job(base, validation_rows=0, validate_steps=3), tmp_path / "quiet")
    assert [entry["step"] for entry in quiet.log if "eval_loss" in entry] == [3, 6, 9, 10]
    assert not any("eval_bleu" in entry for entry in quiet.log)


def test_a_validation_row_counts_by_its_weight(base: Path) -> None:
    trainable = build_trainable(make_job(base), "cpu")
    rows = encode_examples(load_tokenizer(str(base)), make_examples(4), 256).rows
    weighted = [replace(row, weight=weight) for row, weight in zip(rows, (3.0, 1.0, 2.0, 0.0), strict=True)]
    repeated = [row for row in weighted for _ in range(int(row.weight))]
    alike = [replace(row, weight=1.0) for row in repeated]
    for batch_size in (1, 4):
        assert validation_loss(trainable, weighted, 0, batch_size) == pytest.approx(
            validation_loss(trainable, alike, 0, batch_size), rel=1e-5
        )


def test_scoring_what_an_adapter_writes_does_not_change_it(base: Path, tmp_path: Path) -> None:
    adapters = []
    for rows in (0, 64):
        _, saved = run_training(make_job(base, validation_rows=rows), tmp_path / str(rows))
        adapters.append(load_file(saved[10] / "adapter_model.safetensors"))
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_the_best_adapter_is_kept_and_training_stops_without_a_better_one(base: Path, tmp_path: Path) -> None:
    # Answers nobody teaches: the longer the training, the less likely they are.
    strange = [
        Example(one.id, (*one.messages[:-1], {"role": "assistant", "content": "9 8 7 6"}), one.metadata)
        for one in make_examples(6)
    ]
    settings = {"epochs": 8, "learning_rate": 2e-2, "dropout": 0.0, "validation_rows": 0}
    job = make_job(base, best_metric="loss", patience=2, **settings)
    outcome, saved = run_training(job, tmp_path / "best", validation=strange)
    assert outcome.best is not None
    assert outcome.is_stopped_early
    assert outcome.steps == outcome.best["step"] + 10 < 40
    rows = encode_examples(load_tokenizer(str(base)), make_examples(40), 256)
    order = training_order(rows.lengths, 8, job.seed, 8)
    assert outcome.tokens == sum(rows.lengths[index] for index in order[: 8 * outcome.steps])
    assert outcome.answer_tokens == sum(rows.rows[index].num_answer for index in order[: 8 * outcome.steps])
    training = build_training(job, outcome, {"base": "abc"}, "f" * 16, {})
    assert training["tokens_per_s"] == pytest.approx(outcome.tokens / outcome.seconds)
    whole, kept = run_training(make_job(base, best_metric="loss", **settings), tmp_path / "whole", validation=strange)
    last, ends = run_training(make_job(base, **settings), tmp_path / "last", validation=strange)
    assert (whole.steps, last.steps, last.best) == (40, 40, None)
    best, same, other = (load_file(folder[max(folder)] / "adapter_model.safetensors") for folder in (saved, kept, ends))
    assert all(torch.equal(best[name], same[name]) for name in best)
    assert not all(torch.equal(best[name], other[name]) for name in best)


def test_a_best_metric_that_is_not_defined_yet_is_no_new_best(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[dict[str, float]] = [{}, {}, {"exact_agreement": 0.5}, {}, {}, {"exact_agreement": 0.9}]
    monkeypatch.setattr(loop, "validation_scores", lambda *_: scores.pop(0))
    job = make_job(base, epochs=6, best_metric="exact_agreement", patience=2)
    outcome, _ = run_training(job, tmp_path)
    assert outcome.best == {"metric": "exact_agreement", "value": 0.5, "step": 15}
    assert (outcome.steps, outcome.is_stopped_early) == (25, True)


def test_a_best_metric_that_is_never_defined_fails_the_training_at_its_end(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loop, "validation_scores", lambda *_: asked.append(1) or {})
    with pytest.raises(RunFailedError, match="'exact_agreement', which was not defined at any validation"):
        run_training(make_job(base, epochs=3, best_metric="exact_agreement", patience=1), tmp_path)
    assert len(asked) == 3
