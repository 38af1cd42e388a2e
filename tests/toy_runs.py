"""A finished run's directory, made up: what the stages before the report leave, in seconds, without a model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from response_rows import make_table

from polypersona.chatml import render_answer
from polypersona.engines.base import Answer
from polypersona.examples import build_example, render_examples
from polypersona.questionbank import load_instrument
from polypersona.recipe import Recipe, build_recipe
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.records import Assignment, Item, Persona
from polypersona.report.paper import DOMAINS
from polypersona.shardfile import QUARANTINE_SCHEMA, Footer, render_shard
from polypersona.storage import RunDirectory, update_run

_JOBS = ("nurse", "teacher", "electrician", "farmer", "accountant", "driver")
_OPENINGS = ("As a {job}", "At {age}", "Living in a {area}", "With my {education}", "After years of work as a {job}")
_MIDDLES = (
    "I keep coming back to the small things that make a week go well",
    "I would rather see one promise kept than ten new ones made",
    "I have learnt to ask twice and to write the answer down",
    "I trust what I can check for myself, and little else",
    "I lean on neighbours first and on offices last",
)
_ENDS = (
    "",
    " It works for me.",
    " My family sees it the same way.",
    " I would not call it easy, but it is fair enough.",
)


def toy_recipe(out: Path | str, name: str = "toy", **sections: Any) -> Recipe:
    """Return the recipe of the made-up run; `sections` replace parts of it."""
    content: dict[str, Any] = {
        "name": name,
        "out": str(out),
        "panel": {"source": "sampled", "size": 40},
        "generate": {"on": "test"},
    }
    return build_recipe({**content, **sections})


def toy_personas(count: int, seed: int = 3) -> list[Persona]:
    """Return personas with plausible cards."""
    rng = random.Random(seed)
    return [
        Persona(
            f"p{index:04d}",
            {
                "age": rng.randint(18, 90),
                "gender": rng.choice(("female", "male", "nonbinary")),
                "education": rng.choice(("high school", "some college", "bachelor's degree")),
                "occupation": rng.choice(_JOBS),
                "area": rng.choice(("rural area", "small town", "suburb", "city")),
                "interests": ("gardening", rng.choice(("chess", "hiking", "cooking"))),
            },
        )
        for index in range(count)
    ]


def toy_items(per_domain: int | None = 3) -> list[Item]:
    """Return items of the shipped questionbank: the first few of every domain, of different types."""
    size = None if per_domain is None else per_domain * len(DOMAINS)
    return list(load_instrument(InstrumentRecipe(max_items=size)).items)


def write_run(
    recipe: Recipe,
    personas: list[Persona],
    items: list[Item],
    *,
    per_persona: int = 12,
    scores: Mapping[str, Any] | None = None,
    texts: Mapping[int, str] | None = None,
    quarantined: int = 3,
) -> RunDirectory:
    """Write dataset, responses, quarantine, scores, training log and run.json. `texts` replaces the n-th answers."""
    run = RunDirectory.at(recipe.location)
    rng = random.Random(recipe.seed)
    cells = [(persona, item) for persona in personas for item in rng.sample(items, min(per_persona, len(items)))]
    if recipe.generate.on == "test":
        _write_dataset(run, cells, rng)
    rows = [
        _response(persona, item, rng, index // 200, (texts or {}).get(index))
        for index, (persona, item) in enumerate(cells)
    ]
    failed, kept = rows[:quarantined], rows[quarantined:]
    for shard in sorted({row["shard"] for row in kept}):
        part = [row for row in kept if row["shard"] == shard]
        footer = Footer("f00d", shard, len(part), len(part), 0)
        run.write(f"responses/shard-{shard:05d}-f00d.parquet", render_shard(make_table(part), footer))
    if failed:
        reason = {"reason": "the engine failed three times: out of memory"}
        table = make_table([row | reason for row in failed], QUARANTINE_SCHEMA)
        footer = Footer("f00d", 0, len(failed), 0, len(failed))
        run.write("quarantine/shard-00000-f00d.parquet", render_shard(table, footer))
    run.write_json("scores/scores.json", dict(toy_scores(items) if scores is None else scores))
    run.write_json("adapter/training.json", _training())
    update_run(run, _state(recipe, len(kept)))
    return run


def toy_scores(items: list[Item], *, ignores_cards: bool = False) -> dict[str, Any]:
    """Return scores as the evaluate stage writes them; invented, of plausible size."""
    rng = random.Random(11)
    domains = list(dict.fromkeys(item.domain for item in items))
    return {
        "synthetic": True,
        "reference": "dataset",
        "caption": "Agreement with a simulator: the references were written by the rules teacher.",
        "conditioning": {
            "metric": "stance_agreement",
            "gain": 0.004 if ignores_cards else 0.143,
            "low": -0.011 if ignores_cards else 0.108,
            "high": 0.019 if ignores_cards else 0.178,
            "ignores_cards": ignores_cards,
        },
        "overall": [_score(name, "all", 357, rng, 0.0) for name in _METRICS],
        "by_domain": [_score(name, domain, 36, rng, 0.08) for domain in domains for name in _METRICS],
        "by_item": [_score("exact_agreement", item.item_id, 5, rng, 0.15) for item in items if item.is_closed],
    }


# name → label, score, floor, ceiling
_METRICS: Mapping[str, tuple[str, float | None, float | None, float | None]] = {
    "stance_agreement": ("Stance agreement", 0.741, 0.598, 0.812),
    "exact_agreement": ("Exact agreement", 0.436, 0.301, 0.551),
    "near_agreement": ("Within one point", 0.842, 0.733, 0.901),
    "quadratic_kappa": ("Quadratic kappa", 0.471, -0.012, 0.633),
    "validity": ("Valid closed answers", 0.994, None, None),
    "bleu": ("BLEU", 0.171, 0.129, None),
    "rouge1": ("ROUGE-1", 0.402, 0.358, None),
    "rouge2": ("ROUGE-2", 0.197, 0.161, None),
    "rougeL": ("ROUGE-L", 0.355, 0.318, None),
    "distinct1": ("Distinct-1", 0.082, None, 0.091),
    "distinct2": ("Distinct-2", 0.263, None, 0.305),
    "length_similarity": ("Length similarity", 0.861, 0.852, None),
    "sentence_similarity": ("Sentence-count similarity", 0.902, 0.897, None),
    "sentiment_similarity": ("Sentiment similarity", None, None, None),
    "survey_quality": ("Survey quality", 0.912, None, None),
}


def _score(name: str, group: str, n: int, rng: random.Random, spread: float) -> dict[str, Any]:
    label, score, floor, ceiling = _METRICS[name]
    if score is not None:
        score = min(1.0, max(0.0, score + rng.uniform(-spread, spread)))
    half = 0.02 + spread / 2
    gain = score - floor if score is not None and floor is not None else None
    return {
        "metric": name,
        "label": label,
        "group": group,
        "n": 0 if score is None else n,
        "score": score,
        "low": None if score is None else max(0.0, score - half),
        "high": None if score is None else min(1.0, score + half),
        "floor": floor,
        "floor_name": "" if floor is None else "shuffled",
        "ceiling": ceiling,
        "ceiling_name": "" if ceiling is None else "retest",
        "uniform": 0.333 if name == "stance_agreement" else None,
        "gain": gain,
        "gain_low": None if gain is None else gain - half,
        "gain_high": None if gain is None else gain + half,
        "higher_is_better": True,
        "signature": f"{name}|version:1",
    }


def _write_dataset(run: RunDirectory, cells: list[tuple[Persona, Item]], rng: random.Random) -> None:
    examples = [build_example(persona, item, _answer(persona, item, rng), "labels") for persona, item in cells]
    run.write("dataset/test.jsonl", render_examples(examples))
    run.write("dataset/validation.jsonl", render_examples(examples[::3]))
    run.write("dataset/train.jsonl", render_examples(examples * 4))


def _answer(persona: Persona, item: Item, rng: random.Random) -> Answer:
    cell = Assignment(persona.persona_id, item.item_id).assignment_id
    said = rng.choice(_OPENINGS).format(**{**persona.attributes, "job": persona.attributes["occupation"]})
    text = f"{said}, {rng.choice(_MIDDLES)}.{rng.choice(_ENDS)}"
    if not item.is_closed:
        return Answer(cell, text, "complete", new_tokens=len(text) // 4)
    weights = [rng.random() ** 2 + 0.02 for _ in item.options]
    probabilities = tuple(weight / sum(weights) for weight in weights)
    index = rng.choices(range(len(item.options)), weights)[0]
    rationale = text if rng.random() < 0.5 else ""
    return Answer(
        cell, render_answer(item.options[index], rationale), "complete", rationale, item.codes[index],
        item.options[index], probabilities, new_tokens=4,
    )  # fmt: skip


def _response(persona: Persona, item: Item, rng: random.Random, shard: int, text: str | None) -> dict[str, Any]:
    answer = _answer(persona, item, rng)
    assignment = Assignment(persona.persona_id, item.item_id)
    outcome = rng.choices(("complete", "truncated", "refusal"), (96, 3, 1))[0] if not item.is_closed else "complete"
    return {
        "assignment_id": assignment.assignment_id, "persona_id": persona.persona_id, "item_id": item.item_id,
        "variant": "",
        "domain": item.domain, "response_type": item.response_type, "wave": 1, "draw": 1, "weight": 1.0,
        "text": answer.text if text is None else text, "rationale": answer.rationale,
        "code": answer.code, "codes": None,
        "value": None, "label": answer.label, "option_probs": answer.option_probs, "options_as_shown": None,
        "disposition": outcome, "error": "", "attempts": 1, "prompt_tokens": 180, "reused_prompt_tokens": 121,
        "new_tokens": answer.new_tokens, "adapter": "run", "seed": assignment.seed(7), "shard": shard,
    }  # fmt: skip


def _training() -> dict[str, Any]:
    log: list[dict[str, Any]] = []
    for step in range(20, 541, 20):
        loss = 0.35 + 2.1 * 0.985 ** (step / 2)
        log.append({"step": step, "loss": loss, **({"eval_loss": loss + 0.04} if step % 180 == 0 else {})})
    return {"synthetic": True, "rank": 16, "alpha": 32, "epochs": 3.0, "train_runtime_s": 61.4, "log": log}


def _state(recipe: Recipe, num_rows: int) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "fingerprint": "f00d",
        "versions": {"polypersona": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"},
        "frozen": {"engine": "packed", "dtype": "fp32", "quantization": "none"},
        "plan": {
            "generate": {
                "actors": {"value": 2, "reason": "two CPU cores and no GPU: one actor a core"},
                "dtype": {"value": "fp32", "reason": "no GPU, and bf16 is slower than fp32 on this CPU"},
            },
        },
        "stages": {
            "generate": {
                "state": "finished",
                "content": {"internal": "not for readers"},
                "planned": num_rows,
                "answered": num_rows,
                "seconds": 12.3,
            }
        },
    }
