"""The numbers of the report: what `report.json` holds and the page shows, and nothing the page shows is not in it.

Takes the run's records, its scores and the counts of its rows; gives plain JSON values. Knows no HTML and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypersona.recipe import Recipe
from polypersona.report import words
from polypersona.report.composition import by_domain, by_type, closed_items, lengths
from polypersona.report.numbers import plain_key
from polypersona.report.paper import TABLE_II, TABLE_II_COLUMNS, TABLE_III, domain_rank
from polypersona.report.source import Source
from polypersona.report.tally import Tally
from polypersona.storage import SCHEMA_VERSION

Row = Mapping[str, Any]
_NOT_FOR_READERS = frozenset({"content", "figures", "fingerprint", "key", "scores", "conditioning", "run"})
_AGREEMENT = ("stanceagreement", "exactagreement", "bleu", "rouge1")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report is made of."""

    recipe: Recipe
    run: Mapping[str, Any]
    scores: Mapping[str, Any]
    training: Mapping[str, Any]
    tally: Tally
    source: Source
    quarantine: Mapping[str, int] = field(default_factory=dict)


def build_content(evidence: Evidence) -> dict[str, Any]:
    """Return the report's numbers and sentences."""
    recipe, scores, tally, source = evidence.recipe, evidence.scores, evidence.tally, evidence.source
    summary = summarise(evidence)
    can, cannot = words.conclusions(recipe, scores, summary)
    overall = [undefined_as_none(row) for row in scores.get("overall", [])]
    per_domain = [undefined_as_none(row) for row in scores.get("by_domain", [])]
    per_item = [undefined_as_none(row) for row in scores.get("by_item", [])]
    content = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": True,
        "name": recipe.name,
        "notice": words.SYNTHETIC,
        "simulator": words.SIMULATOR if summary["is_simulated"] else "",
        "warnings": [*words.warnings_of(recipe, scores, summary), *_stage_warnings(evidence.run)],
        "what_was_run": words.what_was_run(recipe, summary),
        "can_conclude": can,
        "cannot_conclude": cannot,
        "notes": list(source.notes),
        "license": source.license,
        "summary": summary,
        "reference": scores.get("reference", "none"),
        "caption": scores.get("caption", ""),
        "conditioning": scores.get("conditioning"),
        "overall": overall,
        "by_domain": per_domain,
        "cards": [{**row, "meaning": words.meaning(str(row["metric"]))} for row in words.headline(overall)],
        "table_ii": table_ii(recipe, overall),
        "table_iii": table_iii(per_domain),
        "floor_by_domain": floor_by_domain(per_domain),
        "domains": by_domain(tally, source),
        "types": by_type(tally, source),
        "lengths": lengths(tally),
        "items": closed_items(tally, source, per_item),
        "dispositions": dict(tally.by(2).most_common()),
        "quarantine": dict(sorted(evidence.quarantine.items(), key=lambda pair: (-pair[1], pair[0]))),
        "splits": {
            split: {"records": count, "personas": len(source.personas[split])} for split, count in source.splits.items()
        },
        "training": evidence.training,
        "run": run_facts(evidence.run),
        "recipe": recipe.model_dump(mode="json"),
    }
    return dict(without_nan(content))


def summarise(evidence: Evidence) -> dict[str, Any]:
    """Return the run in a few numbers."""
    tally = evidence.tally
    quarantined = sum(evidence.quarantine.values())
    planned = tally.num_rows + tally.num_not_asked + quarantined
    dispositions = tally.by(2)
    has_weights = evidence.recipe.generate.engine not in ("rules", "fake", "endpoint")
    return {
        "num_personas": tally.num_personas,
        "num_items": len(tally.item_types),
        "num_domains": len(tally.by(0)),
        "num_rows": tally.num_rows,
        "num_complete": dispositions["complete"],
        "share_complete": dispositions["complete"] / tally.num_rows if tally.num_rows else math.nan,
        "num_not_asked": tally.num_not_asked,
        "num_quarantined": quarantined,
        "share_quarantined": quarantined / planned if planned else math.nan,
        "num_waves": len(tally.waves),
        "num_draws": len(tally.draws),
        "num_records": evidence.source.num_records,
        "is_weighted": tally.is_weighted,
        "prompt_tokens": tally.prompt_tokens,
        "reused_prompt_tokens": tally.reused_prompt_tokens,
        "share_reused": tally.reused_prompt_tokens / tally.prompt_tokens if tally.prompt_tokens else math.nan,
        "new_tokens": tally.new_tokens,
        "model": evidence.recipe.model.base if has_weights else words.served_model(evidence.recipe) or "none",
        "adapter": evidence.recipe.model.adapter if has_weights else "none",
        "engine": evidence.recipe.generate.engine,
        "is_simulated": words.is_simulated(evidence.recipe, str(evidence.scores.get("reference", "none"))),
    }


def _stage_warnings(run: Mapping[str, Any]) -> list[str]:
    stages = run.get("stages", {})
    dataset, generated = stages.get("dataset", {}).get("figures", {}), stages.get("generate", {})
    return list(dict.fromkeys([*dataset.get("warnings", ()), *generated.get("warnings", ())]))


def run_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json says of plan, stages and versions, without what only a resume needs.

    `plan` becomes rows of stage, decision, value and reason.
    """
    facts = {key: run[key] for key in ("fingerprint", "frozen", "versions", "hardware") if key in run}
    facts["plan"] = [
        {"stage": stage, "decision": name, "value": choice.get("value"), "reason": choice.get("reason", "")}
        if isinstance(choice, Mapping)
        else {"stage": stage, "decision": name, "value": choice, "reason": ""}
        for stage, decisions in run.get("plan", {}).items()
        for name, choice in decisions.items()
    ]
    stages = {stage: {**entry, **entry.get("figures", {})} for stage, entry in run.get("stages", {}).items()}
    facts["stages"] = {
        stage: {key: value for key, value in entry.items() if key not in _NOT_FOR_READERS}
        for stage, entry in stages.items()
        if stage != "report"
    }
    generated = run.get("stages", {}).get("generate", {})
    if generated.get("seconds") and generated.get("answered"):
        facts["answers_per_s"] = generated["answered"] / generated["seconds"]
    return facts


def table_ii(recipe: Recipe, overall: Sequence[Row]) -> dict[str, Any]:
    """Return the paper's Table II for this run: its scores, its floors, and two rows as printed in the paper.

    A value is None where the metric is undefined, and the string "not computed" where there is no such row.
    """
    found = [find_row(overall, column.metrics) for column in TABLE_II_COLUMNS]
    return {
        "columns": [{"head": column.head, "title": column.title} for column in TABLE_II_COLUMNS],
        "name": recipe.model.base
        if recipe.generate.engine in ("packed", "vllm")
        else words.served_model(recipe) or recipe.generate.engine,
        "scores": [_cell(row) for row in found],
        "floors": [row["floor"] if row and row.get("floor_name") else "not computed" for row in found],
        "floor_name": next((row["floor_name"] for row in found if row and row.get("floor_name")), ""),
        "paper": {name: list(values) for name, values in TABLE_II.items()},
    }


def table_iii(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the paper's Table III for this run, a row per domain that the run or the paper has."""
    own: dict[str, list[Row]] = {}
    for row in rows:
        own.setdefault(str(row["group"]), []).append(row)
    columns = {column.head: column.metrics for column in TABLE_II_COLUMNS}
    table = []
    for domain in sorted({*own, *TABLE_III} if own else (), key=domain_rank):
        scores = own.get(domain, [])
        printed = TABLE_III.get(domain)
        table.append(
            {
                "domain": domain,
                **{head: _cell(find_row(scores, columns[head])) for head in ("BLEU", "R1", "Qual.")},
                "paper": printed._asdict() if printed else None,
            }
        )
    return table


def floor_by_domain(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return score and floor by domain of the metric that says most: agreement where there is one, else overlap."""
    for name in _AGREEMENT:
        chosen = [row for row in rows if plain_key(str(row["metric"])) == name]
        if chosen:
            chosen.sort(key=lambda row: domain_rank(str(row["group"])))
            return {"metric": chosen[0]["metric"], "label": chosen[0]["label"], "rows": chosen}
    return None


def find_row(rows: Sequence[Row], metrics: Sequence[str]) -> Row | None:
    """Return the row of the first of the metric names that is there."""
    by_key = {plain_key(str(row["metric"])): row for row in rows}
    return next((by_key[name] for name in metrics if name in by_key), None)


def undefined_as_none(row: Row) -> dict[str, Any]:
    """Return the row with None for every number that is undefined."""
    return dict(without_nan(dict(row)))


def without_nan(value: Any) -> Any:
    """Return the value with None for NaN and infinities, at any depth; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return value


def _cell(row: Row | None) -> Any:
    if row is None:
        return "not computed"
    return {key: row.get(key) for key in ("n", "score", "low", "high", "floor", "floor_name")}
