"""The model card: base, data with its leaks, settings, plan, scores with intervals, licences."""

from __future__ import annotations

from typing import Any

import pytest

from polypersona.storage import RunDirectory, update_run
from polypersona.training.card import data_facts, kept_entry, render_card, write_scores_into_cards

LEAKS = {
    "rows": 40, "personas": 10, "shared_personas": 2, "questions": 8, "shared_questions": 8,
    "rows_with_shared_pair": 3, "duplicate_rows": 1,
}  # fmt: skip


def training(name: str = "run", **changes: Any) -> dict[str, Any]:
    settings = {
        "rank": 16, "alpha": 32, "dropout": 0.05, "learning_rate": 2e-4, "scheduler": "cosine", "warmup_ratio": 0.03,
        "weight_decay": 1e-3, "max_grad_norm": 0.3, "batch_size": 4, "accumulation": 4, "epochs": 3.0,
        "max_length": 1024, "validation_rows": 12,
    }  # fmt: skip
    log = [
        {"step": 5, "loss": 2.0, "eval_loss": 1.25, "eval_bleu": 0.17},
        {"step": 10, "loss": 1.5, "eval_loss": 1.75, "eval_bleu": None},
    ]
    facts = {
        "adapter": name, "scope": "healthcare", "fingerprint": "f" * 16, "adapter_hash": f"hash of {name}",
        "base": {"name": "meta-llama/Llama-2-7b-chat-hf", "hash": "abc", "revision": None}, "settings": settings,
        "num_examples": 320, "num_validation": 40, "num_shortened": 2, "targets": ["q_proj", "v_proj"], "steps": 10,
        "tokens": 12_345, "seed": 7, "dtype": "bf16", "quantization": "nf4", "loss": 1.5, "seconds": 61.4,
        "first_step": 0, "world_size": 2, "is_on_gpu": True, "threads": 1, "batch_size": 2, "accumulation": 4,
        "versions": {"python": "3.11.7"}, "log": log, "best": None, "is_stopped_early": False,
        "plan": {"workers": {"value": 2, "reason": "2 GPUs, a whole one each"}},
    }  # fmt: skip
    return {**facts, **changes}


def row(metric: str, group: str, **changes: Any) -> dict[str, Any]:
    return {
        "metric": metric, "label": metric.title(), "group": group, "n": 36, "score": 0.5, "low": 0.41, "high": 0.59,
        "floor": 0.2, **changes,
    }  # fmt: skip


def make_run(tmp_path: Any) -> RunDirectory:
    run = RunDirectory.at(tmp_path)
    run.write_json("dataset/leaks.json", {"leaks": {"validation_in_train": LEAKS}})
    facts = {"license": "CC BY 4.0", "origin": "The engine `rules` answered.", "fingerprint": "d" * 16, "figures": {}}
    update_run(run, {"stages": {"dataset": facts}})
    return run


def test_the_card_says_base_data_leaks_settings_plan_time_and_both_licences(tmp_path: Any) -> None:
    card = render_card(training(), data_facts(make_run(tmp_path))).decode()
    for said in (
        "base_model: meta-llama/Llama-2-7b-chat-hf\nlicense: llama2\n",
        "| licence of the base | `llama2`, that of the base; gated on the hub |",
        "| licence of the data's source | CC BY 4.0 |",
        "| part of the dataset | healthcare |",
        "| examples | 320 in training, 40 in validation |",
        "| whole dataset: personas in validation and training | 2 of 10 |",
        "| whole dataset: validation rows that are in training, answer included | 1 of 40 |",
        "| LoRA | rank 16, alpha 32, dropout 0.05 |",
        "| wall time | 1 min 01 s |",
        "| planned workers | 2: 2 GPUs, a whole one each |",
        "| ran as | 2 workers on GPUs, 1 threads each, 2 × 4 examples a step, bf16, quantisation nf4 |",
        "| hardware | not recorded |",
        "| loss | 1.7500 | 40 |",
        "Not evaluated yet",
    ):
        assert said in card
    assert "# LoRA adapter for synthetic survey responses\n" in card
    assert "| licence of the data's source | not recorded |" in render_card(training()).decode()


def test_the_card_says_what_the_training_ran_on_and_not_what_renders_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polypersona.training.hardware.probe_host", lambda: pytest.fail("this machine was looked at"))
    kind = {
        "processor": "Intel Xeon", "cpus": 96.0, "memory_bytes": 1000 << 30, "accelerator": "NVIDIA H100",
        "accelerator_bytes": 80 << 30, "nodes": 2, "workers": 2,
    }  # fmt: skip
    attempts = [{"step": 0, "workers": 2, "seconds": 7200.0, "machines": [kind]}]
    card = render_card(training(attempts=attempts)).decode()
    assert "| hardware | 2 nodes (Intel Xeon, 96 CPUs, 1000 GiB each), 2 workers on 2 × NVIDIA H100 (80 GiB) |" in card
    assert "| wall time | 2 h 00 min |" in card
    assert "| wall time | 1 min 01 s, from step 4 on |" in render_card(training(first_step=4)).decode()


def test_a_card_shows_no_key_of_a_store() -> None:
    url = "s3://AKIA0123:secret0123@bucket/records.jsonl"
    card = render_card(training(), {"origin": url}, {"caption": f"Answers from {url}.", "rows": []}).decode()
    assert card.count("s3://***@bucket/records.jsonl") == 2
    assert "secret0123" not in card


def test_the_scores_of_the_step_that_was_kept_are_shown() -> None:
    best = {"metric": "loss", "value": 1.25, "step": 5}
    assert kept_entry(training(best=best))["eval_loss"] == 1.25
    assert kept_entry(training())["eval_loss"] == 1.75
    assert kept_entry(training(log=[{"step": 1, "loss": 1.0}])) == {}
    card = render_card(training("health", best=best)).decode()
    assert "| loss | 1.2500 | 40 |\n| bleu | 0.1700 | 12 |" in card
    assert "| kept | the adapter of step 5, by loss |" in card
    assert "# LoRA adapter for synthetic survey responses: health\n" in card


def test_answers_of_people_are_named_with_their_source() -> None:
    human = {"title": "Non-voters", "source": "FiveThirtyEight", "license": "CC BY 4.0"}
    card = render_card(training(), {"human": human}).decode()
    assert "answers that people gave to “Non-voters” (FiveThirtyEight; licence: CC BY 4.0)" in card
    assert "tags: [lora, survey, human-data]" in card
    assert "Every answer that it gives is **synthetic**" in card


def test_evaluation_puts_the_scores_of_each_adapters_own_domains_into_its_card(tmp_path: Any) -> None:
    run = make_run(tmp_path)
    for name in ("health", "money", "idle"):
        run.write_json(f"adapters/{name}/training.json", training(name))
        run.write(f"adapters/{name}/README.md", b"before")
    chosen = {"healthcare": ["health"], "finance": ["money"], "sports": ["health", "money"]}
    parts = {
        f"adapter for {domain}": "; ".join(f"{one} hash of {one} on b" for one in names)
        for domain, names in chosen.items()
    }
    update_run(run, {"frozen": {"adapters": chosen}, "content": {"parts": {"model.adapter": "several", **parts}}})
    assert write_scores_into_cards(run) == []
    by_domain = [row("bleu", domain, score=0.1 * place) for place, domain in enumerate(chosen, start=1)]
    run.write_json(
        "scores/scores.json",
        {
            "caption": "A simulator.",
            "overall": [row("bleu", "all")],
            "by_domain": [*by_domain, row("bleu", "healthcare", n=0)],
        },
    )
    assert write_scores_into_cards(run) == ["adapters/health", "adapters/money"]
    card = run.read("adapters/health/README.md").decode()
    assert "| healthcare | Bleu | 0.1000 | 0.4100 to 0.5900 | 36 | 0.2000 |" in card
    assert "finance |" not in card
    assert "sports |" not in card
    assert "A simulator. Intervals are 95 %, clustered by persona." in card
    assert run.read("adapters/idle/README.md") == b"before"


def test_the_only_adapter_gets_the_scores_of_all_answers(tmp_path: Any) -> None:
    run = make_run(tmp_path)
    run.write_json("adapter/training.json", training())
    run.write_json("scores/scores.json", {"caption": "", "overall": [row("bleu", "all")], "by_domain": []})
    update_run(run, {"content": {"parts": {"model.adapter": "another hash"}}})
    assert write_scores_into_cards(run) == []
    update_run(run, {"content": {"parts": {"model.adapter": "hash of run"}}})
    assert write_scores_into_cards(run) == ["adapter"]
    assert "| all | Bleu | 0.5000 | 0.4100 to 0.5900 | 36 | 0.2000 |" in run.read("adapter/README.md").decode()
