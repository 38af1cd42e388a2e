"""Measure the embedded tiny model: what tuning on the default dataset gains on personas it has never seen.

    python jobs/measure_tiny.py --out runs/measure-tiny

For every seed the panel, the dataset, the tuning and the sampling are drawn anew; base and tuned model answer the whole
test split, and the difference is resampled by persona. Prints a table and writes `figures.json`, from which the model
card is made (`--card polypersona/models/tiny/README.md`). Takes about fifteen minutes on two cores. All figures are
agreement with the simulator that wrote the answers; none describes people.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from polypersona import dataset, finetune, generate
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.rules import RulesEngine
from polypersona.examples import example_item, example_persona, load_examples
from polypersona.metrics.agreement import ExactAgreement, StanceAgreement
from polypersona.metrics.base import FloatArray, IntArray, Metric, Pair, mean_rows, mean_score
from polypersona.metrics.bleu import CorpusBleu
from polypersona.recipe import Recipe, load_recipe
from polypersona.records import Assignment, Example, Persona
from polypersona.resources import resource
from polypersona.simulator.grammar import is_well_formed, stated_facts
from polypersona.simulator.stance import stance_sign
from polypersona.storage import RunDirectory

REPLICATES = 4000


@dataclass(frozen=True)
class Row:
    """One cell of a test split: the pair for the metrics, and who answered."""

    pair: Pair
    persona: Persona
    cluster: str


Score = Callable[[Sequence[Row]], tuple[IntArray, Callable[[IntArray], FloatArray]]]


def _of_metric(metric: Metric) -> Score:
    return lambda rows: (metric.measure([row.pair for row in rows]), metric.score)


def _well_formed(rows: Sequence[Row]) -> tuple[IntArray, Callable[[IntArray], FloatArray]]:
    return mean_rows([float(is_well_formed(row.pair.text, row.pair.item.options)) for row in rows]), mean_score


def _true_facts(rows: Sequence[Row]) -> tuple[IntArray, Callable[[IntArray], FloatArray]]:
    shares = [stated_facts(row.pair.text, row.persona) for row in rows]
    return mean_rows([true / stated if stated else None for true, stated in shares]), mean_score


SCORES: Mapping[str, Score] = {
    "stance_agreement": _of_metric(StanceAgreement()),
    "exact_agreement": _of_metric(ExactAgreement()),
    "bleu": _of_metric(CorpusBleu()),
    "well_formed": _well_formed,
    "true_facts": _true_facts,
}


@click.command()
@click.option("--out", default="runs/measure-tiny", show_default=True, help="Folder of the runs.")
@click.option("--seeds", default="7,8,9", show_default=True, help="Seeds, separated by commas.")
@click.option("--model", default="tiny", show_default=True, help="Folder of the base model.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of jobs/demo.yaml.")
@click.option("--card", type=click.Path(path_type=Path), help="Write the figures into this model card.")
def main(out: str, seeds: str, model: str, overrides: tuple[str, ...], card: Path | None) -> None:
    """Run dataset, finetune and generate for every seed, with and without the adapter, and compare."""
    tuned: list[Row] = []
    base: list[Row] = []
    lookups: list[tuple[float, float, str]] = []
    retests: list[float] = []
    for seed in (int(text) for text in seeds.split(",")):
        common = [f"out={out}", f"seed={seed}", f"model.base={model}", *overrides]
        recipe = load_recipe(resource("jobs/demo.yaml"), [f"name=seed-{seed}", *common])
        plain = load_recipe(resource("jobs/demo.yaml"), [f"name=seed-{seed}-base", "model.adapter=none", *common])
        for stage in (dataset.run, finetune.run, generate.run):
            stage(recipe)
        for stage in (dataset.run, generate.run):
            stage(plain)
        tuned += _rows(recipe)
        base += _rows(plain)
        run = RunDirectory.at(recipe.location)
        train, test = load_examples(run, "train"), load_examples(run, "test")
        lookups.append(_best_lookup(train, test))
        retests.append(_retest(test, recipe.seed))
    figures = _figures(base, tuned)
    figures["retest_stance"] = float(np.mean(retests))
    figures["lookup_stance"] = float(np.mean([score for score, _, _ in lookups]))
    figures["majority_stance"] = float(np.mean([majority for _, majority, _ in lookups]))
    figures["lookup_attributes"] = [name for _, _, name in lookups]
    text = _table(figures)
    click.echo(text)
    folder = RunDirectory.at(out)
    folder.write_json("figures.json", figures)
    if card:
        _write_card(card, text)


def _rows(recipe: Recipe) -> list[Row]:
    """Return the test split's cells with their responses, each exactly once."""
    run = RunDirectory.at(recipe.location)
    found: dict[str, dict[str, Any]] = {}
    for folder in ("responses", "quarantine"):
        for name in run.names(folder, ".parquet"):
            for row in pq.read_table(run.local_path(name)).to_pylist():
                found[row["assignment_id"]] = row
    rows = []
    for example in load_examples(run, "test"):
        response = found[example.id]
        stored = example.metadata
        pair = Pair(
            example_item(example),
            response["text"],
            response["code"],
            response["disposition"],
            stored["reference"],
            stored["code"],
        )
        rows.append(Row(pair, example_persona(example), f"{recipe.seed}/{stored['persona_id']}"))
    return rows


def _figures(base: Sequence[Row], tuned: Sequence[Row]) -> dict[str, Any]:
    """Return score and interval of both models and of their difference, resampled by persona."""
    clusters, index = np.unique([row.cluster for row in tuned], return_inverse=True)
    weights = np.random.default_rng(0).poisson(1.0, (REPLICATES, len(clusters)))
    weights = np.concatenate([np.ones((1, len(clusters)), dtype=weights.dtype), weights])
    figures: dict[str, Any] = {"cells": len(tuned), "personas": len(clusters)}
    for name, score in SCORES.items():
        values = {}
        for label, rows in (("base", base), ("tuned", tuned)):
            measured, total = score(rows)
            sums = np.zeros((len(clusters), measured.shape[1]), dtype=np.int64)
            np.add.at(sums, index, measured)
            values[label] = total(weights @ sums)
        values["gain"] = values["tuned"] - values["base"]
        for label, replicates in values.items():
            low, high = np.nanpercentile(replicates[1:], [2.5, 97.5])
            figures[f"{name}.{label}"] = [round(float(value), 4) for value in (replicates[0], low, high)]
    return figures


def _sign(example: Example) -> int | None:
    return stance_sign(example_item(example), example.metadata["code"], example.metadata["reference"])


def _retest(test: Sequence[Example], seed: int) -> float:
    """Return how often the teacher takes the same side of the same card with another draw of the persona's noise."""
    engine = RulesEngine(EngineSettings("rules", seed + 1))
    same = []
    for example in test:
        item, persona = example_item(example), example_persona(example)
        assignment = Assignment(persona.persona_id, item.item_id)
        answer = engine.answer([Group(persona, (Cell(assignment.assignment_id, item, assignment.seed(seed)),))])[0]
        same.append(stance_sign(item, answer.code, answer.text) == _sign(example))
    return float(np.mean(same))


def _best_lookup(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, float, str]:
    """Return the score of the attribute that alone predicts the test stances best, of no attribute, and its name.

    The lookup knows the training majority of (item, attribute value), else of the item; it is chosen on the test
    split, which favours it.
    """
    names = sorted({name for example in train for name in example.metadata["persona"]["attributes"]})
    scores = {name: _lookup(train, test, name) for name in ["", *names]}
    best = max(names, key=scores.__getitem__)
    return scores[best], scores[""], best


def _lookup(train: Sequence[Example], test: Sequence[Example], name: str) -> float:
    counts: defaultdict[tuple[str, str], Counter[int | None]] = defaultdict(Counter)
    for example in train:
        item_id = example.metadata["item_id"]
        counts[item_id, _value(example, name)][_sign(example)] += 1
        counts[item_id, ""][_sign(example)] += 1
    hits = []
    for example in test:
        item_id = example.metadata["item_id"]
        table = counts.get((item_id, _value(example, name))) or counts[item_id, ""]
        guess = table.most_common(1)[0][0] if table else 1
        hits.append(guess == _sign(example))
    return float(np.mean(hits))


def _value(example: Example, name: str) -> str:
    value = example.metadata["persona"]["attributes"].get(name, "") if name else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{int(value) // 15 * 15}"
    return str(value)


def _table(figures: Mapping[str, Any]) -> str:
    lines = [
        f"{figures['cells']} cells of {figures['personas']} unseen personas; 95 % intervals resampled by persona.",
        "",
        "| measure | base | tuned | gain |",
        "| --- | --- | --- | --- |",
    ]
    for name in SCORES:
        cells = [_interval(figures[f"{name}.{label}"]) for label in ("base", "tuned", "gain")]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    attributes = ", ".join(figures["lookup_attributes"])
    lines += [
        "",
        f"Stance agreement for scale: the simulator with itself, same card and other noise (the ceiling), "
        f"{figures['retest_stance']:.3f}; best lookup by one attribute ({attributes}), {figures['lookup_stance']:.3f}; "
        f"majority of the item, {figures['majority_stance']:.3f}.",
    ]
    return "\n".join(lines)


def _interval(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


BEGIN, END = "<!-- figures: jobs/measure_tiny.py -->", "<!-- end of figures -->"


def _write_card(card: Path, text: str) -> None:
    head, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    card.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
