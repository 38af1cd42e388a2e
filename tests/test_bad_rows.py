"""One prompt in a hundred is poisoned: just those are quarantined, each with its reason, and the rest is complete."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polypersona import generate
from polypersona.recipe import build_recipe
from polypersona.shardfile import QUARANTINE_SCHEMA
from polypersona.storage import RESPONSE_SCHEMA, RunDirectory
from polypersona.verify import verify

# A letter that no card, item or system prompt has; its first byte is a token of its own in the tiny model.
RARE = "Ω"


def write_recipe(folder, name, rows, items, model=None, **settings):
    panel = folder / f"{name}.jsonl"
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": name,
        "out": str(folder / "runs"),
        "panel": {"source": str(panel)},
        "instrument": {"items": items},
        "generate": {"actors": 2, "max_attempts": 2, "max_quarantined": 0.01, **settings},
    }
    return build_recipe({**recipe, "model": model} if model else recipe)


def rows_of(recipe, folder):
    schema = RESPONSE_SCHEMA if folder == "responses" else QUARANTINE_SCHEMA
    paths = sorted(RunDirectory.at(recipe.location).local_path(folder).glob("shard-*"))
    rows = pa.concat_tables([pq.read_table(path).cast(schema) for path in paths] or [schema.empty_table()]).to_pylist()
    found = {row["assignment_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def reasons(recipe):
    return Counter((row["persona_id"], row["reason"]) for row in rows_of(recipe, "quarantine").values())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cells_that_raise_or_kill_the_process_are_found_and_quarantined_alone(local_ray, tmp_path):
    poison = {17: "raise", 118: "raise", 119: "crash", 345: "error", 401: "crash", 599: "invalid"}
    people = [{"id": f"p{place}", "age": 20 + place % 60} for place in range(600)]
    bad = [{**row, **({"fake_failure": poison[place]} if place in poison else {})} for place, row in enumerate(people)]
    options = {"engine": "fake", "shard_personas": 100}
    items = ["healthcare.likert.01"]
    calm = write_recipe(tmp_path, "calm", people, items, **options)
    poisoned = write_recipe(tmp_path, "poisoned", bad, items, **options)
    generate.run(calm)
    summary = generate.run(poisoned)
    assert (summary["planned"], summary["committed"], summary["quarantined"]) == (600, 594, 6)
    told = reasons(poisoned)
    assert len(told) == 6
    expected = {
        "p17": "RuntimeError: persona 'p17' asked the fake engine to raise",
        "p118": "RuntimeError: persona 'p118' asked the fake engine to raise",
        "p119": "the process died each time it answered this",
        "p345": "asked the fake engine for an error",
        "p401": "the process died each time it answered this",
        "p599": "the answer is none of the options",
    }
    for persona, reason in told:
        assert reason.startswith(expected[persona])
    assert all(row["attempts"] >= 1 for row in rows_of(poisoned, "quarantine").values())
    committed = rows_of(poisoned, "responses")
    assert {row["disposition"] for row in committed.values()} == {"complete"}
    without = {key: row for key, row in rows_of(calm, "responses").items() if row["persona_id"] not in expected}
    assert committed == without
    assert verify(RunDirectory.at(poisoned.location)).problems == ()
    assert generate.run(poisoned)["skipped"]


@pytest.fixture(scope="module")
def tiny_with_a_flaw(tmp_path_factory):
    """The tiny model with a token whose embedding is not a number, and that token's text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polypersona.models.location import locate_model

    folder = tmp_path_factory.mktemp("flawed")
    source = locate_model("tiny")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    token = tokenizer(RARE, add_special_tokens=False)["input_ids"][0]
    weight = model.get_input_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(weight.clone())  # else every prompt would have a logit that is none
    weight[token] = float("nan")
    model.get_input_embeddings().weight = torch.nn.Parameter(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prompts_that_are_too_long_or_give_no_numbers_are_quarantined_and_touch_no_other(
    local_ray, tmp_path, tiny_with_a_flaw
):
    people = [{"id": f"p{place}", "age": 20 + place % 60, "occupation": "nurse"} for place in range(200)]
    bad = [dict(row) for row in people]
    bad[40]["occupation"] = "nurse " * 3000
    bad[141]["occupation"] = f"nurse {RARE}"
    items = ["healthcare.likert.01", "healthcare.open.01"]
    options = {"engine": "packed", "shard_personas": 50, "max_new_tokens": 12}
    model = {"base": tiny_with_a_flaw, "adapter": "none", "dtype": "fp32"}
    calm = write_recipe(tmp_path, "calm", people, items, model, **options)
    poisoned = write_recipe(tmp_path, "poisoned", bad, items, model, **options)
    assert generate.run(calm)["quarantined"] == 0
    summary = generate.run(poisoned)
    assert (summary["planned"], summary["committed"], summary["quarantined"]) == (400, 396, 4)
    told = reasons(poisoned)
    assert sorted(persona for persona, _ in told.elements()) == ["p141", "p141", "p40", "p40"]
    for persona, reason in told:
        assert "the model has room for" in reason if persona == "p40" else reason == "the model's logits are not finite"
    committed, expected = rows_of(poisoned, "responses"), rows_of(calm, "responses")
    assert {row["disposition"] for row in committed.values()} <= {"complete", "truncated", "refusal"}
    assert len(committed) == 396
    equal = 0
    for key, row in committed.items():
        other = expected[key]
        equal += (row["text"], row["code"]) == (other["text"], other["code"])
        if row["option_probs"] is not None:
            assert row["option_probs"] == pytest.approx(other["option_probs"], abs=1e-4)
    assert equal >= 0.999 * 396
    assert verify(RunDirectory.at(poisoned.location)).problems == ()
