"""What stands beside an adapter's weights: training.json and the TensorBoard events. Knows values, not torch."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polypersona.training.card import kept_entry
from polypersona.training.job import Outcome, TrainingJob

SCHEMA_VERSION = 1
_LIBRARIES = ("polypersona", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "ray")
_NO_CURVES = {"step", "epoch"}


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
        "eval_loss": kept_entry({"best": measured.get("best"), "log": log}).get("eval_loss"),
        "tokens_per_s": _number(outcome.attempt_tokens / max(outcome.seconds, 1e-9)),
        "versions": library_versions(),
        "content": dict(content),
        "log": log,
    }


def build_events(log: Sequence[Mapping[str, float | None]]) -> dict[str, bytes]:
    """Return TensorBoard event files by name: a curve for the loss, the rate, the gradient, each validation score."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for entry in log:
                for name in sorted(set(entry) - _NO_CURVES):
                    if (value := entry[name]) is not None:
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


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined number is null."""
    return value if value == value else None
