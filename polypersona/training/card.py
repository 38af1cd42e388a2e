"""The model card of an adapter: what it is, from what it was made, how it did, what it must not be used for.

Takes values that stand in the run directory, gives Markdown with the front matter that the Hugging Face hub reads. The
scores of the answers are those of the evaluate stage, which writes the card again when it knows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polypersona.location import mask_secrets
from polypersona.models.catalogue import BASE_MODELS
from polypersona.storage import RunDirectory, load_run
from polypersona.training.hardware import render_hardware, render_wall_time

CARD, TRAINING = "README.md", "training.json"
ALONE, SEVERAL = "adapter", "adapters"
SCORES, LEAKS = "scores/scores.json", "dataset/leaks.json"
_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")  # what YAML takes as it is
_NOT_KNOWN = "not measured"
_LEAKS = (
    ("personas in validation and training", "shared_personas", "personas"),
    ("questions in validation and training", "shared_questions", "questions"),
    ("validation rows whose persona and question are in training", "rows_with_shared_pair", "rows"),
    ("validation rows that are in training, answer included", "duplicate_rows", "rows"),
)


def data_facts(run: RunDirectory) -> dict[str, Any]:
    """Return what the dataset stage recorded: licence, whose answers, fingerprint, and what its splits share."""
    stage = load_run(run).get("stages", {}).get("dataset", {})
    figures = stage.get("figures", {})
    leaks = run.read_json(LEAKS)["leaks"] if run.exists(LEAKS) else {}
    return {
        "license": stage.get("license"),
        "origin": stage.get("origin"),
        "human": figures.get("human"),
        "fingerprint": stage.get("fingerprint"),
        "leaks": leaks.get("validation_in_train", {}),
    }


def write_scores_into_cards(run: RunDirectory) -> list[str]:
    """Write the cards of the run's adapters again with the scores of what they answered, and return their folders.

    An adapter that answered nothing of this run keeps its card.
    """
    if not run.exists(SCORES):
        return []
    stored, scores = load_run(run), run.read_json(SCORES)
    parts, chosen = stored.get("content", {}).get("parts", {}), stored.get("frozen", {}).get("adapters", {})
    written = []
    for folder in [ALONE, *sorted({f"{SEVERAL}/{name}" for names in chosen.values() for name in names})]:
        if not run.exists(f"{folder}/{TRAINING}"):
            continue
        training = run.read_json(f"{folder}/{TRAINING}")
        rows = _rows_of(scores, _answered(training, parts, chosen))
        if rows:
            facts = {"caption": scores.get("caption", ""), "rows": rows}
            run.write(f"{folder}/{CARD}", render_card(training, data_facts(run), facts))
            written.append(folder)
    return written


def render_card(
    training: Mapping[str, Any], data: Mapping[str, Any] | None = None, scores: Mapping[str, Any] | None = None
) -> bytes:
    """Return an adapter's README.

    Args:
        training: its training.json.
        data: what `data_facts` says of the dataset; None where nothing is recorded.
        scores: `caption` and `rows` of the evaluate stage for what it answered; None before that.
    """
    data = data or {}
    human = data.get("human")
    parts = [
        _front_matter(training, human),
        f"# LoRA adapter for synthetic survey responses{_named(training)}",
        _what_it_is(human),
        f"## Base and licences\n\n{_table(_base_rows(training, data))}",
        f"## Data\n\n{_table(_data_rows(training, data))}",
        f"## Training\n\n{_table(_training_rows(training))}",
        f"## Scores on validation rows\n\n{_validation(training)}",
        f"## Scores of its answers\n\n{_scores(scores)}",
        f"## Plan and hardware\n\n{_table(_plan_rows(training))}",
        "## Use\n\nLoad it with `peft.PeftModel.from_pretrained(base, folder)`, or set `model.adapter` of a recipe to "
        "this folder; the whole log is in `training.json`.",
    ]
    return mask_secrets("\n\n".join(parts) + "\n").encode()


def kept_entry(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the log's last validation of the weights that were kept: the best step's where there is one."""
    best, log = training.get("best"), training["log"]
    measured = [entry for entry in log if entry.get("eval_loss") is not None]
    if best:
        measured = [entry for entry in measured if entry["step"] == best["step"]] or measured
    return dict(measured[-1]) if measured else {}


def _front_matter(training: Mapping[str, Any], human: Mapping[str, Any] | None) -> str:
    base = training["base"]["name"]
    known = BASE_MODELS.get(base)
    lines = ["library_name: peft", f"base_model: {base if _PLAIN.fullmatch(base) else json.dumps(base)}"]
    lines += [f"license: {known.license}"] if known else []
    tags = "[lora, survey, human-data]" if human else "[lora, synthetic, survey]"
    return "\n".join(["---", *lines, f"tags: {tags}", "---"])


def _named(training: Mapping[str, Any]) -> str:
    name = training.get("adapter", "run")
    return "" if name == "run" else f": {name}"


def _what_it_is(human: Mapping[str, Any] | None) -> str:
    if human:
        made = (
            f"It was tuned on answers that people gave to “{human['title']}” ({human['source']}; licence: "
            f"{human['license'] or 'as the source says'}); name that source wherever something made with it is shown."
        )
    else:
        made = "Its training answers are **synthetic**, unless the dataset's card says otherwise."
    return (
        f"Made by polypersona. {made} Every answer that it gives is **synthetic**: it stands for no person and is no "
        "substitute for asking people."
    )


def _base_rows(training: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    base = training["base"]
    known = BASE_MODELS.get(base["name"])
    license_ = "that of the base model; not known here" if known is None else f"`{known.license}`, that of the base"
    return [
        ("base model", f"`{base['name']}`" + (f", revision `{base['revision']}`" if base["revision"] else "")),
        ("hash of the base", f"`{base['hash']}`"),
        ("licence of the base", license_ + ("; gated on the hub" if known and known.is_gated else "")),
        ("licence of the data's source", data.get("license") or "not recorded"),
        ("attached to", ", ".join(f"`{name}`" for name in training["targets"])),
        ("fingerprint", f"`{training['fingerprint']}`"),
    ]


def _data_rows(training: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("part of the dataset", training.get("scope", "all domains")),
        ("examples", f"{training['num_examples']} in training, {training['num_validation']} in validation"),
        (
            "prompts cut at the head",
            f"{training['num_shortened']:,}, to {training['settings']['max_length']} tokens a row",
        ),
        ("fingerprint of the dataset", f"`{data['fingerprint']}`" if data.get("fingerprint") else "not recorded"),
    ]
    if data.get("origin"):
        rows.insert(0, ("origin", data["origin"]))
    leaks = data.get("leaks")
    if not leaks:
        return [*rows, ("leaks", "no leak report stands beside the dataset")]
    return rows + [(f"whole dataset: {label}", f"{leaks[key]:,} of {leaks[whole]:,}") for label, key, whole in _LEAKS]


def _training_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, best = training["settings"], training.get("best")
    rows = [
        ("LoRA", f"rank {settings['rank']}, alpha {settings['alpha']}, dropout {settings['dropout']}"),
        (
            "learning rate",
            f"{settings['learning_rate']:g}, {settings['scheduler']}, {settings['warmup_ratio']:g} warm-up",
        ),
        ("weight decay, clipping", f"{settings['weight_decay']:g}, {settings['max_grad_norm']:g}"),
        ("global batch", f"{settings['batch_size'] * settings['accumulation']} examples"),
        ("steps", f"{training['steps']} ({settings['epochs']:g} epochs), {training['tokens']:,} tokens"),
        ("seed", str(training["seed"])),
        ("precision", f"{training['dtype']}, quantisation {training['quantization']}"),
        ("last training loss", _number(training["loss"])),
        ("wall time", render_wall_time(training.get("attempts", ()), training["seconds"]) + _resumed(training)),
    ]
    if best:
        rows.append(("kept", f"the adapter of step {best['step']}, by {best['metric']}"))
    if training.get("is_stopped_early"):
        rows.append(("stopped early", "validation no longer improved"))
    return rows


def _resumed(training: Mapping[str, Any]) -> str:
    """Return what a record that knows the last attempt alone leaves out."""
    is_last_alone = training["first_step"] and not training.get("attempts")
    return f", from step {training['first_step']} on" if is_last_alone else ""


def _validation(training: Mapping[str, Any]) -> str:
    entry = kept_entry(training)
    if not entry:
        return "No validation rows: nothing was measured."
    loss = f"| loss | {_number(entry['eval_loss'])} | {training['num_validation']} |"
    asked = training["settings"].get("validation_rows")
    count = training["num_validation"] if asked is None else min(asked, training["num_validation"])
    rows = [
        f"| {name.removeprefix('eval_')} | {_number(value)} | {count} |"
        for name, value in sorted(entry.items())
        if name.startswith("eval_") and name != "eval_loss"
    ]
    return (
        "The loss is the mean negative log-likelihood of an answer token, or of a choice, by the rows' weights. One "
        "pass over the rows, so without an interval; the rows may have decided which step was kept.\n\n"
        "| | score | rows |\n|---|---:|---:|\n" + "\n".join([loss, *rows])
    )


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "Not evaluated yet: the evaluate stage puts the scores here, with n, interval and floor."
    lines = [
        f"| {row.get('group') or 'all'} | {row['label']} | {_number(row['score'])} | {_interval(row)} | {row['n']:,} | "
        f"{_number(row.get('floor'))} |"
        for row in scores["rows"]
    ]
    return (
        f"{scores['caption']} Intervals are 95 %, clustered by persona.\n\n"
        "| domain | metric | score | interval | n | floor |\n|---|---|---:|---|---:|---:|\n" + "\n".join(lines)
    ).strip()


def _plan_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    plan, versions = training.get("plan", {}), training["versions"]
    rows = [
        ("ran as", f"{training['world_size']} workers on {'GPUs' if training['is_on_gpu'] else 'CPUs'}, "
         f"{training['threads']} threads each, {training['batch_size']} × {training['accumulation']} examples a step, "
         f"{training['dtype']}, quantisation {training['quantization']}"),
        ("hardware", render_hardware(training.get("attempts", ()))),
    ]  # fmt: skip
    rows += [
        (f"planned {name.replace('_', ' ')}", f"{decision['value']}: {decision['reason']}")
        for name, decision in plan.items()
        if isinstance(decision, Mapping) and {"value", "reason"} <= decision.keys()
    ]
    return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return _NOT_KNOWN if value is None or value != value else f"{value:.4f}"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _answered(
    training: Mapping[str, Any], parts: Mapping[str, Any], chosen: Mapping[str, Sequence[str]]
) -> list[str] | None:
    """Return the domains that this adapter alone has answered; None for all of them."""
    if parts.get("model.adapter") == training["adapter_hash"]:
        return None
    return [
        domain
        for domain, names in chosen.items()
        if list(names) == [training.get("adapter")]
        and training["adapter_hash"] in parts.get(f"adapter for {domain}", "")
    ]


def _rows_of(scores: Mapping[str, Any], domains: Sequence[str] | None) -> list[Mapping[str, Any]]:
    if domains is None:
        return [row for row in scores["overall"] if row["n"]]
    return [row for row in scores["by_domain"] if row["group"] in domains and row["n"]]
