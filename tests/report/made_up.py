"""What stages other than the report's own leave in a run, made up: adapters of a sweep, a bias battery, ratings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from annotated_runs import rate_all, write_humans

from polypersona.bias.effects import EFFECTS
from polypersona.storage import RunDirectory


def write_adapters(run: RunDirectory, names: list[str]) -> None:
    for place, name in enumerate(names):
        log: list[dict[str, Any]] = []
        for step in range(20, 381, 20):
            loss = 0.35 + (1.9 + 0.2 * place) * 0.985 ** (step / 2)
            entry: dict[str, Any] = {"step": step, "loss": loss}
            if step % 60 == 0:
                entry |= {"eval_loss": loss + 0.04, "eval_bleu": 0.05 + 0.0001 * step, "eval_seconds": 3.0}
            log.append(entry)
        settings = {"rank": 8 * (place + 1), "alpha": 32, "epochs": 3.0, "learning_rate": 2e-4}
        training = {
            "synthetic": True,
            "settings": settings,
            "steps": 380,
            "num_examples": 900,
            "seconds": 61.4,
            "log": log,
        }
        run.write_json(f"adapters/{name}/training.json", training)


def write_battery(run: RunDirectory, *, broken_control: bool = False) -> None:
    sizes = {"acquiescence": 0.21, "letter_swap": 0.09 if broken_control else 0.01}
    effects = [_effect(effect, "all", sizes.get(effect.name, 0.0)) for effect in EFFECTS]
    by_item = [_effect(effect, f"finance.likert.0{place}", 0.02) for effect in EFFECTS for place in (1, 2)]
    run.write_json(
        "scores/bias.json",
        {"synthetic": True, "caption": "Synthetic responses.", "effects": effects, "by_item": by_item, "habits": [],
         "drift": []},
    )  # fmt: skip


def _effect(effect: Any, item: str, size: float) -> dict[str, Any]:
    return {
        "effect": effect.name, "label": effect.label, "item": item, "n": 120, "personas": 40, "items": 2, "score": size,
        "low": size - 0.04, "high": size + 0.04, "error": 0.02, "d": size / 0.3, "items_apart": 1,
        "is_control": effect.is_control, "is_level": effect.is_level, "reading": effect.reading,
        "signature": effect.signature,
    }  # fmt: skip


def write_ratings(run: RunDirectory, folder: Path) -> None:
    rng = random.Random(1)

    def judge(entry: Any) -> tuple[int, int, str]:
        usual = 2 if entry.kind == "shuffled" else 4
        is_guessed = rng.random() < (0.7 if entry.kind == "human" else 0.3)
        return 4, max(1, min(5, usual + rng.randint(-1, 1))), "human" if is_guessed else "synthetic"

    humans = write_humans(folder)
    for rater in ("anna", "bert"):
        rate_all(run, 60, rater, judge, humans)
