"""The numbers of the report: what `report.json` holds and the page shows, and nothing the page shows is not in it.

Takes the run's records, its scores and the counts of its rows; gives plain JSON values. Knows no HTML and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.report import words
from polypersona.report.composition import by_domain, by_type, closed_items, lengths
from polypersona.report.curves import build_curves
from polypersona.report.evidence import ALONE, Evidence
from polypersona.report.findings import build_bias, build_ratings
from polypersona.report.human import build_human
from polypersona.report.paper_tables import floor_by_domain, table_ii, table_iii
from polypersona.storage import SCHEMA_VERSION

Row: TypeAlias = Mapping[str, Any]
_NOT_FOR_READERS = frozenset({"content", "figures", "fingerprint", "key", "scores", "conditioning", "run"})


def build_content(evidence: Evidence) -> dict[str, Any]:
    """Return the report's numbers and sentences."""
    recipe, scores, tally, source = evidence.recipe, evidence.scores, evidence.tally, evidence.source
    summary = summarise(evidence)
    stems = {key: item.stem for key, item in source.items.items()}
    num_rows = tally.num_rows + tally.num_not_asked
    human = build_human(evidence.human, stems, evidence.run, num_rows) if evidence.human else None
    bias, ratings = build_bias(evidence.bias), build_ratings(evidence.ratings, evidence.raters)
    screens = [screen for screen in (human, bias, ratings) if screen]
    can, cannot = words.conclusions(recipe, scores, summary, screens)
    overall = [undefined_as_none(row) for row in scores.get("overall", [])]
    per_domain = [undefined_as_none(row) for row in scores.get("by_domain", [])]
    per_item = [undefined_as_none(row) for row in scores.get("by_item", [])]
    content = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": True,
        "name": recipe.name,
        "notice": words.SYNTHETIC,
        "simulator": words.SIMULATOR if summary["is_simulated"] else "",
        "warnings": [
            *words.warnings_of(recipe, scores, summary),
            *(human["warnings"] if human else ()),
            *_stage_warnings(evidence.run),
        ],
        "what_was_run": words.what_was_run(recipe, summary),
        "can_conclude": can,
        "cannot_conclude": cannot,
        "notes": list(source.notes),
        "license": source.license,
        "dataset": {
            "is_human": source.is_human,
            "source": source.human.get("source", ""),
            "license": source.human.get("license", ""),
        },
        "summary": summary,
        "reference": scores.get("reference", "none"),
        "caption": scores.get("caption", ""),
        "conditioning": scores.get("conditioning"),
        "overall": overall,
        "by_domain": per_domain,
        "by_model": _by_metric(scores.get("by_model", [])),
        "by_subgroup": _by_metric(words.telling(scores.get("by_subgroup", []))),
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
        "human": human,
        "bias": bias,
        "ratings": ratings,
        "training": evidence.adapters.get(ALONE, {}),
        "curves": build_curves(evidence.adapters) if evidence.adapters else None,
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
        "is_greedy": tally.is_greedy,
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


def _by_metric(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows with all groups of a metric together, metrics and groups in their order."""
    order = {name: place for place, name in enumerate(dict.fromkeys(row["metric"] for row in rows))}
    return [undefined_as_none(row) for row in sorted(rows, key=lambda row: order[row["metric"]])]


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
