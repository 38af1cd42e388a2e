"""How near an adapter tuned on a survey's respondents comes to those who were held out, subgroup by subgroup.

Five fixed splits, each a seed of `jobs/nonvoters.yaml`: tunes on four fifths, scores every held-out respondent's card
and item by the options' probabilities, and compares their weighted means by race, education, gender, income and age
with what the held-out people said: mean alignment 1 − W₁/range. The untuned model, tables of the training respondents
and halves of the people themselves stand beside it. Another recipe of the same kind is measured by naming it.

Run: python tests/benchmarks/nonvoters.py --splits 5 --json nonvoters.json
Splits run side by side, each on its share of the CPUs: a small model gains little from a second thread.
Source of the data: FiveThirtyEight and Ipsos, CC BY 4.0 (`source` in the JSON is the codebook's).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polypersona.examples import load_examples
from polypersona.recipe import Recipe, load_recipe
from polypersona.respondents import Respondents, load_respondents
from polypersona.storage import RunDirectory
from polypersona.survey.holdout import BASELINES, Holdout, compare_holdout

RECIPE = "jobs/nonvoters.yaml"
MODELS = {"tuned": (), "untuned": ("--set", "model.adapter=none")}
PREDICTORS = (*MODELS, *BASELINES)
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, slots=True)
class Split:
    """One split: all cells, and the seconds from the dataset to the last answer of both models."""

    holdout: Holdout
    wall_s: float


def measure_split(recipe: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> tuple[Split, Recipe]:
    """Run the recipe with and without its adapter for one seed, and compare with the held-out."""
    begin, loaded, predictions = time.perf_counter(), None, {}
    for model, settings in MODELS.items():
        name = f"{model}-{seed}"
        given = ["--set", f"seed={seed}", "--set", f"name={name}", "--set", f"out={out}", *settings, *overrides]
        command = [sys.executable, "-m", "polypersona", "run", recipe, "--from", "dataset", "--to", "generate", *given]
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("a", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        loaded = load_recipe(recipe, [value for value in given if value != "--set"])
        people = load_respondents(str(loaded.dataset.source), loaded.dataset.survey)
        run = RunDirectory.at(loaded.location)
        predictions[model] = read_predictions(out / name / "responses", people)
        held_out = held_out_rows(run, people)
    assert loaded is not None
    items = [item.item_id for item in (*people.tuned, *people.withheld)]
    holdout = compare_holdout(people.survey, people.groupings, items, held_out, predictions)
    wall_s = time.perf_counter() - begin
    print(f"split {seed}: {wall_s:,.0f} s", flush=True)
    return Split(holdout, wall_s), loaded


def held_out_rows(run: RunDirectory, people: Respondents) -> np.ndarray:
    """Return which respondents of the survey's file the run held out, shape (N,)."""
    ids = {str(example.metadata["persona_id"]) for example in load_examples(run, "test")}
    found = np.zeros(people.survey.num_respondents, bool)
    for persona, row in zip(people.personas, people.rows, strict=True):
        found[row] = persona.persona_id in ids
    return found


def read_predictions(folder: Path, people: Respondents) -> dict[str, np.ndarray]:
    """Return the options' probabilities by item, (respondents, options), NaN where a respondent was not asked."""
    row_of = {persona.persona_id: row for persona, row in zip(people.personas, people.rows, strict=True)}
    items = {item.item_id: item for item in (*people.tuned, *people.withheld)}
    size = people.survey.num_respondents
    found = {name: np.full((size, len(item.options)), np.nan) for name, item in items.items()}
    columns = ["persona_id", "item_id", "option_probs"]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in sorted(folder.glob("*.parquet"))])
    for persona, item, probabilities in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
        found[item][row_of[persona]] = probabilities
    return found


def summarise(
    splits: Sequence[Split], tuned: Sequence[str], withheld: Sequence[str], wall_s: float
) -> dict[str, float]:
    """Return mean, interval over the splits and each split's value of every predictor, as `name: number`."""
    found: dict[str, float] = {}
    for items, suffix in ((tuned, ""), (withheld, ".withheld")):
        for predictor in PREDICTORS if items else ():
            values = [split.holdout.mean(predictor, items) for split in splits]
            found[f"{predictor}{suffix}.alignment"] = statistics.fmean(values)
            if len(values) > 1:
                half = T_95[min(len(values) - 1, max(T_95))] * statistics.stdev(values) / len(values) ** 0.5
                found[f"{predictor}{suffix}.low"] = statistics.fmean(values) - half
                found[f"{predictor}{suffix}.high"] = statistics.fmean(values) + half
            found |= {f"{predictor}{suffix}.split{number}": value for number, value in enumerate(values, start=1)}
    found |= {f"split{number}.wall_s": split.wall_s for number, split in enumerate(splits, start=1)}
    found["wall_s"] = wall_s
    found["cells"] = min(len(split.holdout.cells) for split in splits)
    found["hidden_cells"] = max(split.holdout.num_hidden for split in splits)
    return found


def render(figures: Mapping[str, float]) -> str:
    """Return the table as Markdown."""
    lines = ["| mean alignment with the held-out | tuned items | withheld items |", "|---|---:|---:|"]
    for predictor in PREDICTORS:
        shown = [_interval(figures, f"{predictor}{suffix}") for suffix in ("", ".withheld")]
        lines.append(f"| {predictor.replace('_', ' ')} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def _interval(figures: Mapping[str, float], name: str) -> str:
    if f"{name}.alignment" not in figures:
        return "n/a"
    value = f"{figures[f'{name}.alignment']:.4f}"
    low, high = figures.get(f"{name}.low"), figures.get(f"{name}.high")
    return value if low is None or high is None else f"{value} [{low:.4f}, {high:.4f}]"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5, help="how many splits: the seeds from 1 on")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--json", help="where the figures go")
    parser.add_argument("--out", help="keep the runs in this folder; an interrupted measurement goes on from them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="splits at once, on a share of the CPUs")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    given = parser.parse_args()
    jobs = max(1, min(given.jobs, given.splits))
    share = max(1, (os.cpu_count() or 1) // jobs)
    overrides = [part for value in (f"cluster.limits.CPU={share}", *given.overrides) for part in ("--set", value)]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as threads:
        out = Path(given.out or scratch).absolute()
        measured = threads.map(
            lambda seed: measure_split(given.recipe, seed, out, overrides), range(1, given.splits + 1)
        )
        splits, recipes = zip(*measured, strict=True)
    wall_s = time.perf_counter() - begin
    people = load_respondents(str(recipes[0].dataset.source), recipes[0].dataset.survey)
    items = ([one.item_id for one in group] for group in (people.tuned, people.withheld))
    figures = summarise(splits, *items, wall_s)
    print(f"\n{render(figures)}\n\nSource: {people.survey.codebook.source}")
    print(f"{wall_s:,.0f} s for all splits, {jobs} at a time; 95 % intervals over the splits (Student's t)")
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
