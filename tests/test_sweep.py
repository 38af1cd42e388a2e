"""Several adapters on a real local Ray: trained side by side, one of them failing, and answering by domain."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from adapter_runs import DOMAINS, NUM_REST, NUM_TRAIN, adapters_recipe, write_dataset
from toy_models import make_toy_model

from polypersona.errors import EngineError, ModelError, RecipeError, RunFailedError
from polypersona.parquet import read_parquet
from polypersona.recipe import Recipe
from polypersona.storage import RunDirectory, load_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = [f"{domain}-rank{rank}" for domain in DOMAINS for rank in (2, 4)]


def sweep_recipe(out: Path, base: Path | str, *, fails: bool, **sections: Any) -> Recipe:
    adapters = [
        {"name": f"{domain}-rank{rank}", "domains": [domain], "rank": rank} for domain in DOMAINS for rank in (2, 4)
    ]
    # No loss stays finite at the former rate. Smaller than the others, so that it begins last.
    adapters[3] |= {"learning_rate": 1e30 if fails else 5e-3, "epochs": 10}
    return adapters_recipe(
        out, base, {"adapters": adapters, "epochs": 60, "validation_rows": 0, "validate_steps": 120}, **sections
    )


def events_of(run: RunDirectory, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for name in run.names("events", ".jsonl") for line in run.read(name).splitlines()]
    return [row for row in rows if row["event"] == event]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Path, Path, RunFailedError]:
    from polypersona import finetune

    out = tmp_path_factory.mktemp("runs")
    base = make_toy_model("llama", out / "base")
    recipe = sweep_recipe(out, base, fails=True)
    write_dataset(RunDirectory.at(recipe.location))
    with pytest.raises(RunFailedError) as raised:
        finetune.run(recipe)
    return out, base, raised.value


def test_four_adapters_run_two_at_a_time_and_one_that_fails_leaves_three(
    failed: tuple[Path, Path, RunFailedError],
) -> None:
    out, _, error = failed
    run = RunDirectory.at(out / "several")
    assert error.message.startswith(f"1 of 4 adapters were not trained: {NAMES[3]} (The training loss is")
    began = events_of(run, "training_began")
    assert {event["adapter"] for event in began} == set(NAMES)
    assert max(event["beside"] for event in began) == 1
    assert [event["adapter"] for event in events_of(run, "training_failed")] == [NAMES[3]]
    registered = load_run(run)["stages"]["finetune"]["adapters"]
    assert {name: entry["state"] for name, entry in registered.items()} == {
        **dict.fromkeys(NAMES[:3], "finished"), NAMES[3]: "failed",
    }  # fmt: skip
    for name in NAMES[:3]:
        training = run.read_json(f"adapters/{name}/training.json")
        assert (training["num_examples"], training["num_validation"]) == (NUM_TRAIN, NUM_REST)
        assert registered[name]["adapter_hash"] == training["adapter_hash"]
        assert registered[name]["eval_loss"] == training["eval_loss"] > 0
        assert training["threads"] == 1
        assert not run.exists(f"train/{name}")
    plan = load_run(run)["plan"]["finetune"]["adapters"]
    assert set(plan) == set(NAMES)


def test_plain_peft_loads_each_adapter(failed: tuple[Path, Path, RunFailedError]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out, base, _ = failed
    for name in NAMES[:3]:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), out / "several" / "adapters" / name
        )
        assert model.peft_config["default"].r == int(name[-1])


def test_generation_takes_each_domain_to_its_adapter(failed: tuple[Path, Path, RunFailedError]) -> None:
    from polypersona import generate

    out, base, _ = failed
    with pytest.raises(RecipeError, match="2 adapters are for the domain 'finance': finance-rank2, finance-rank4"):
        generate.run(sweep_recipe(out, base, fails=True))
    with pytest.raises(ModelError, match="'finance-rank4' has no validation loss"):
        generate.run(chosen_by_loss(out, base))
    with pytest.raises(ModelError, match="'finance-rank4' is not trained yet"):
        generate.run(named(out, base, finance=NAMES[3], healthcare=NAMES[0]))
    with pytest.raises(EngineError, match="No adapter is for the domain 'finance'"):
        generate.run(named(out, base, finance=[], healthcare=NAMES[0]))
    summary = generate.run(named(out, base, healthcare=NAMES[1], finance=NAMES[2]))
    rows = read_rows(out)
    assert summary["committed"] == len(rows) == 2 * NUM_REST
    assert {(row["domain"], row["adapter"]) for row in rows} == {("healthcare", NAMES[1]), ("finance", NAMES[2])}
    by_adapter = defaultdict(set)
    for row in rows:
        by_adapter[row["adapter"]].add(tuple(row["option_probs"]))
    stored = load_run(RunDirectory.at(out / "several"))
    assert stored["frozen"]["adapters"] == {"finance": [NAMES[2]], "healthcare": [NAMES[1]]}
    hashes = {
        name: entry["adapter_hash"]
        for name, entry in stored["stages"]["finetune"]["adapters"].items()
        if entry["state"] == "finished"
    }
    assert hashes[NAMES[1]] in stored["content"]["parts"]["adapter for healthcare"]
    with pytest.raises(Exception, match="adapter for healthcare"):
        generate.run(named(out, base, healthcare=NAMES[0], finance=NAMES[2]))


def test_a_second_start_trains_only_what_is_missing(failed: tuple[Path, Path, RunFailedError]) -> None:
    from polypersona import finetune

    out, base, _ = failed
    weights = [out / "several" / "adapters" / name / "adapter_model.safetensors" for name in NAMES[:3]]
    before = [path.stat().st_mtime_ns for path in weights]
    mended = sweep_recipe(out, base, fails=False)
    assert {**finetune.run(mended), "adapters": {}} == {
        "skipped": False, "trained": 1, "finished_before": 3, "adapters": {},
    }  # fmt: skip
    assert [path.stat().st_mtime_ns for path in weights] == before
    stages = load_run(RunDirectory.at(out / "several"))["stages"]
    assert {entry["state"] for entry in stages["finetune"]["adapters"].values()} == {"finished"}
    assert finetune.run(mended)["skipped"] is True


def chosen_by_loss(out: Path, base: Path) -> Recipe:
    recipe = sweep_recipe(out, base, fails=True)
    return recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"choose": "eval_loss"})})


def named(out: Path, base: Path, **adapters: Any) -> Recipe:
    return sweep_recipe(out, base, fails=True, generate={"adapters": adapters})


def read_rows(out: Path) -> list[dict[str, Any]]:
    run = RunDirectory.at(out / "several")
    rows: list[dict[str, Any]] = []
    for name in run.names("responses", ".parquet"):
        rows += read_parquet(str(out / "several" / name)).to_pylist()
    return rows
