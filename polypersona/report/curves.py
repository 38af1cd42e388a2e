"""Training logs → curves by metric and a table of adapters, for one adapter or a sweep of them.

Takes the content of training.json files by the adapter's name; gives plain JSON values. Knows no chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polypersona.report.numbers import is_defined, plain_key, render_words

Training = Mapping[str, Any]

_LABELS = {
    "loss": "training loss", "evalloss": "validation loss", "evalbleu": "BLEU", "evalrouge1": "ROUGE-1",
    "evalrouge2": "ROUGE-2", "evalrougel": "ROUGE-L", "evalstanceagreement": "stance agreement",
    "evalexactagreement": "exact agreement", "evalagreement": "agreement", "evalperplexity": "perplexity",
}  # fmt: skip
# What a validation takes, not what it finds.
_COSTS = ("_s", "_runtime", "_per_second", "_n", "_rows", "_examples", "_tokens", "_seconds", "_epoch")
_SETTINGS = (
    "epochs", "rank", "alpha", "dropout", "learning_rate", "batch_size", "accumulation", "scheduler", "max_length",
)  # fmt: skip
_NOT_FACTS = frozenset({"log", "content", "versions", "settings", "schema_version", "synthetic", "fingerprint"})
MAX_CURVES = 5


def build_curves(trainings: Mapping[str, Training]) -> dict[str, Any]:
    """Return `charts` (each with a title, the unit of its axis and named lines), `adapters` and `facts`.

    With several adapters each chart shows one metric and a line per adapter; adapters beyond `MAX_CURVES`, by the last
    validation loss, are in the table only.
    """
    adapters = [_adapter(name, training) for name, training in trainings.items()]
    charted = list(trainings)
    if len(charted) > MAX_CURVES:
        best = sorted(adapters, key=lambda one: (_last_or_worst(one["eval_loss"]), one["name"]))
        charted = [one["name"] for one in best[:MAX_CURVES]]
    charts = _alone(trainings) if len(trainings) == 1 else _together({name: trainings[name] for name in charted})
    facts = {
        name: {key: value for key, value in training.items() if key not in _NOT_FACTS}
        | dict(training.get("settings") or {})
        for name, training in trainings.items()
    }
    settings = [name for name in _SETTINGS if any(one["settings"].get(name) is not None for one in adapters)]
    metrics = list(dict.fromkeys(name for one in adapters for name in one["metrics"]))
    return {
        "charts": charts,
        "adapters": adapters,
        "metrics": [{"name": name, "label": curve_label(name)} for name in metrics],
        "settings": settings,
        "facts": facts,
        "num_left_out": len(trainings) - len(charted),
    }


def curve_label(name: str) -> str:
    """Return a log key in words: `eval_rougel` is ROUGE-L."""
    return _LABELS.get(plain_key(name), render_words(name.removeprefix("eval_")).lower())


def curve_metrics(training: Training) -> list[str]:
    """Return what validation measured besides the loss, in the order of the log."""
    names = (key for entry in training.get("log") or () for key, value in entry.items() if is_defined(value))
    return [
        name for name in dict.fromkeys(names)
        if name.startswith("eval_") and name != "eval_loss" and not name.endswith(_COSTS)
    ]  # fmt: skip


def _adapter(name: str, training: Training) -> dict[str, Any]:
    settings = {**training, **(training.get("settings") or {})}
    measured = {key: _last(training, key) for key in curve_metrics(training)}
    return {
        "name": name,
        "steps": training.get("steps") or _last_step(training),
        "loss": _last(training, "loss"),
        "eval_loss": _last(training, "eval_loss"),
        "metrics": measured,
        "settings": {key: settings.get(key) for key in _SETTINGS},
        "seconds": training.get("seconds"),
        "tokens_per_s": training.get("tokens_per_s"),
        "num_examples": training.get("num_examples"),
    }


def _alone(trainings: Mapping[str, Training]) -> list[dict[str, Any]]:
    training = next(iter(trainings.values()))
    losses = [(curve_label(key), points) for key in ("loss", "eval_loss") if (points := _points(training, key))]
    charts = [{"title": "Loss on the answers' tokens", "unit": "loss", "lines": losses}] if losses else []
    for key in curve_metrics(training):
        charts.append(
            {"title": f"Validation: {curve_label(key)}", "unit": curve_label(key), "lines": [(curve_label(key),
             _points(training, key))]}
        )  # fmt: skip
    return charts


def _together(trainings: Mapping[str, Training]) -> list[dict[str, Any]]:
    others = dict.fromkeys(name for training in trainings.values() for name in curve_metrics(training))
    charts = []
    for key in ("eval_loss", "loss", *others):
        lines = [(name, points) for name, training in trainings.items() if (points := _points(training, key))]
        if lines:
            where = "" if key in ("loss", "eval_loss") else "Validation: "
            title = f"{where}{curve_label(key)} by adapter"
            charts.append({"title": title[:1].upper() + title[1:], "unit": curve_label(key), "lines": lines})
    return charts


def _points(training: Training, key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in training.get("log") or () if is_defined(entry.get(key))]


def _last(training: Training, key: str) -> float | None:
    points = _points(training, key)
    return points[-1][1] if points else None


def _last_step(training: Training) -> int | None:
    log = training.get("log") or ()
    return log[-1].get("step") if log else None


def _last_or_worst(value: float | None) -> float:
    return float("inf") if value is None else value
