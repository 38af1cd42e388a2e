"""What stands beside an adapter's weights: training.json, the card, the TensorBoard events. Knows values, not torch."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polypersona.models.catalogue import BASE_MODELS
from polypersona.training.job import Outcome, TrainingJob

SCHEMA_VERSION = 1
_LIBRARIES = ("polypersona", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "ray")
_CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm")


def build_training(
    job: TrainingJob, outcome: Outcome, content: Mapping[str, Any], fingerprint: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of training.json; `facts` adds what the job does not know (preset, sizes, hashes)."""
    measured = asdict(outcome)
    log = [{name: _number(value) for name, value in entry.items()} for entry in measured.pop("log")]
    return {
        "schema_version": SCHEMA_VERSION,
        "synthetic": True,
        "fingerprint": fingerprint,
        "base": {"name": job.base_name, "hash": content["base"], "revision": job.revision},
        "settings": job.settings.model_dump(mode="json"),
        "seed": job.seed,
        "dtype": job.dtype,
        "quantization": job.quantization,
        "threads": job.threads,
        **measured,
        **facts,
        "loss": last(log, "loss"),
        "eval_loss": last(log, "eval_loss"),
        "tokens_per_s": _number(outcome.tokens * _share_done(outcome) / max(outcome.seconds, 1e-9)),
        "versions": library_versions(),
        "content": dict(content),
        "log": log,
    }


def render_card(training: Mapping[str, Any]) -> bytes:
    """Return the adapter's README: what it is, what it was made from, what it must not be used for."""
    base = training["base"]["name"]
    known = BASE_MODELS.get(base)
    settings = training["settings"]
    license_line = f"license: {known.license}\n" if known else ""
    loss, eval_loss = training["loss"], training["eval_loss"]
    rows = [
        ("base model", f"`{base}`"),
        ("hash of the base", f"`{training['base']['hash']}`"),
        ("examples", f"{training['num_examples']} in training, {training['num_validation']} in validation"),
        ("prompts cut at the head", f"{training['num_shortened']:,}, to {settings['max_length']} tokens a row"),
        ("LoRA", f"rank {settings['rank']}, alpha {settings['alpha']}, dropout {settings['dropout']}"),
        ("attached to", ", ".join(f"`{name}`" for name in training["targets"])),
        ("learning rate", f"{settings['learning_rate']:g}, {settings['scheduler']}"),
        ("global batch", f"{settings['batch_size'] * settings['accumulation']} examples"),
        ("steps", f"{training['steps']} ({settings['epochs']:g} epochs), {training['tokens']:,} tokens"),
        ("precision", f"{training['dtype']}, quantisation {training['quantization']}"),
        ("last training loss", "not measured" if loss is None else f"{loss:.4f}"),
        ("last validation loss", "not measured" if eval_loss is None else f"{eval_loss:.4f}"),
        ("fingerprint", f"`{training['fingerprint']}`"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\n{license_line}tags: [lora, synthetic, survey]\n---\n\n"
        "# LoRA adapter for synthetic survey responses\n\n"
        "Made by polypersona. Its training answers are **synthetic**, unless the dataset's card says otherwise, and so "
        "is every answer it gives: they stand for no person and are no substitute for asking people.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "The loss is the mean negative log-likelihood of an answer token. Load it with "
        "`peft.PeftModel.from_pretrained(base, folder)`; the whole log is in `training.json`.\n"
    ).encode()


def build_events(log: Sequence[Mapping[str, float | None]]) -> dict[str, bytes]:
    """Return TensorBoard event files by name: one curve each for loss, validation loss, learning rate, gradient."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for entry in log:
                for name in _CURVES:
                    if (value := entry.get(name)) is not None:
                        writer.add_scalar(f"train/{name}", value, int(entry["step"] or 0))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def last(log: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    """Return the last value of a curve; None where it was never measured."""
    return next((entry[name] for entry in reversed(log) if entry.get(name) is not None), None)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that training depends on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _share_done(outcome: Outcome) -> float:
    """The share of the steps that this attempt's seconds were spent on."""
    return (outcome.steps - outcome.first_step) / outcome.steps if outcome.steps else 0.0


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined number is null."""
    return value if value == value else None
