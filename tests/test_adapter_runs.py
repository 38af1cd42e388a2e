"""Generation with several adapters on a real local Ray: each cell by its own, the same bytes whatever the actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import DOMAINS, NUM_REST, adapters_recipe, write_dataset
from toy_models import make_toy_model

from polypersona.errors import RecipeChangedError
from polypersona.models.loading import load_base_model, model_hash
from polypersona.models.lora import attach_lora
from polypersona.parquet import read_parquet
from polypersona.recipe import Recipe
from polypersona.storage import RunDirectory, load_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ADAPTERS = [{"name": f"{domain}-own", "domains": [domain]} for domain in DOMAINS]
NAMES = [adapter["name"] for adapter in ADAPTERS]


def write_adapter(run: RunDirectory, base: Path, name: str, seed: int) -> None:
    """Put an adapter of random weights where finetune would."""
    folder = run.local_path(f"adapters/{name}")
    model = attach_lora(load_base_model(str(base), dtype="fp32"), rank=4, alpha=8, dropout=0.0)
    noise = torch.Generator().manual_seed(seed)
    for weight_name, weight in model.named_parameters():
        if "lora_" in weight_name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    rendering = {"show_options": "labels", "renderer_version": 0}
    base_facts = {"name": str(base), "hash": model_hash(str(base))}
    content = {"dataset.validation": name}
    run.write_json(
        f"adapters/{name}/training.json",
        {"base": base_facts, "rendering": rendering, "eval_loss": 1.0 + seed, "content": content},
    )


def make_run(out: Path, base: Path, **generate: Any) -> Recipe:
    recipe = adapters_recipe(out, base, {"adapters": ADAPTERS}, generate=generate)
    run = RunDirectory.at(recipe.location)
    write_dataset(run)
    for seed, name in enumerate(NAMES):
        write_adapter(run, base, name, seed)
    return recipe


def responses(recipe: Recipe) -> dict[str, bytes]:
    run = RunDirectory.at(recipe.location)
    return {name: run.read(name) for name in run.names("responses", ".parquet")}


def rows(recipe: Recipe) -> list[dict[str, Any]]:
    run = RunDirectory.at(recipe.location)
    names = run.names("responses", ".parquet")
    return [row for name in names for row in read_parquet(run.path(name)).to_pylist()]


def test_cells_go_to_their_adapters_with_the_same_bytes_for_any_actors(tmp_path: Path, local_ray: None) -> None:
    from polypersona import generate

    base = make_toy_model("llama", tmp_path / "base")
    one, two = (make_run(tmp_path / str(actors), base, actors=actors, temperature=0.8) for actors in (1, 2))
    summary = generate.run(one)
    assert summary["committed"] == 2 * NUM_REST
    assert {(row["domain"], row["adapter"]) for row in rows(one)} == set(zip(DOMAINS, NAMES, strict=True))
    generate.run(two)
    assert responses(one) == responses(two)
    stored = load_run(RunDirectory.at(one.location))
    assert stored["frozen"]["adapters"] == {domain: [name] for domain, name in zip(DOMAINS, NAMES, strict=True)}
    assert generate.run(one)["skipped"] is True
    write_adapter(RunDirectory.at(one.location), base, NAMES[0], seed=9)
    with pytest.raises(RecipeChangedError, match=f"adapter for {DOMAINS[0]}"):
        generate.run(one)


def test_an_adapter_of_the_run_answers_what_it_answers_alone(tmp_path: Path, local_ray: None) -> None:
    from polypersona import generate

    base = make_toy_model("llama", tmp_path / "base")
    several = make_run(
        tmp_path / "several", base, adapters={"finance": [], "healthcare": NAMES[0]}, without_adapter="base"
    )
    generate.run(several)
    by_domain = {row["domain"]: row["adapter"] for row in rows(several)}
    assert by_domain == {"healthcare": NAMES[0], "finance": "none"}
    folder = Path(several.location) / "adapters" / NAMES[0]
    for adapter, domain in ((str(folder), "healthcare"), ("none", "finance")):
        alone = make_run(tmp_path / domain, base)
        finetune = alone.finetune.model_copy(update={"adapters": []})
        model = alone.model.model_copy(update={"adapter": adapter})
        alone = alone.model_copy(update={"finetune": finetune, "model": model})
        generate.run(alone)
        expected = {row["assignment_id"]: row for row in rows(alone)}
        for row in rows(several):
            if row["domain"] == domain:
                other = expected[row["assignment_id"]]
                assert (row["text"], row["code"]) == (other["text"], other["code"])
                assert row["option_probs"] == pytest.approx(other["option_probs"], abs=1e-5)
