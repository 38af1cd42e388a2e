"""Which of several adapters answers a domain; nothing is guessed, and what was chosen once stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapter_runs import DOMAINS, ITEMS, adapters_recipe
from toy_models import make_toy_model

from polypersona.adapter_choice import choose_adapters, frozen_choice
from polypersona.content import content_parts, kept_parts, refuse_changes
from polypersona.engines.adapter_table import AdapterEntry
from polypersona.engines.settings import Weights, refuse_unsupported
from polypersona.errors import EngineError, ModelError, RecipeChangedError, RecipeError
from polypersona.population import Population, item_hashes
from polypersona.recipe import Recipe, build_recipe
from polypersona.records import Persona
from polypersona.scopes import Scope

PEOPLE = tuple(Persona(f"p{number}", {"age": 20 + 10 * number}) for number in range(4))
POPULATION = Population(PEOPLE, ITEMS)
TWO = [{"name": "h", "domains": ["healthcare"]}, {"name": "f", "domains": ["finance"]}]
FROZEN = {"dtype": "fp32", "quantization": "none", "slots": 8, "shard_personas": 4, "threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model("llama", tmp_path_factory.mktemp("base"))


def entries(names: str, base: Path, **changes: dict[str, Any]) -> Weights:
    own = {"adapter_hash": "1", "model": str(base), "model_hash": "b", "model_bytes": 10, "validation": "v"}
    found = {}
    for place, name in enumerate(names):
        facts = {**own, "folder": f"adapters/{name}", "eval_loss": 1.0 + place, **changes.get(name, {})}
        found[name] = AdapterEntry(name, **facts)
    return Weights(str(base), "b", 10, candidates=found)


def choose(
    base: Path, adapters: list[dict[str, Any]], weights: Weights, frozen: dict[str, Any] | None = None, **sections: Any
) -> Weights:
    recipe = adapters_recipe(Path("runs"), base, {"adapters": adapters, **sections.pop("finetune", {})}, **sections)
    return choose_adapters(recipe, weights, POPULATION, frozen or {})


def table(weights: Weights) -> dict[str, tuple[str, ...]]:
    assert weights.table is not None
    return dict(weights.table.by_domain)


def test_a_domain_goes_to_the_adapter_that_was_tuned_on_it(base: Path) -> None:
    chosen = choose(base, TWO, entries("hf", base))
    assert table(chosen) == {"healthcare": ("h",), "finance": ("f",)}
    assert choose(base, [{"name": "x"}], entries("x", base)).table is not None
    named = choose(base, TWO, entries("hf", base), generate={"adapters": {"finance": "h"}})
    assert table(named) == {"healthcare": ("h",), "finance": ("h",)}


def test_two_for_the_same_need_a_choice_by_name_or_by_loss(base: Path) -> None:
    rivals = [*TWO, {"name": "g", "domains": ["finance"]}]
    with pytest.raises(RecipeError, match="2 adapters are for the domain 'finance': f, g") as raised:
        choose(base, rivals, entries("hfg", base))
    assert raised.value.exit_code == 2
    losses = {"f": {"eval_loss": 0.9}, "g": {"eval_loss": 0.7}}
    by_loss = {"finetune": {"choose": "eval_loss"}}
    assert table(choose(base, rivals, entries("hfg", base, **losses), **by_loss))["finance"] == ("g",)
    settled = {"adapters": {"finance": ["f"], "healthcare": ["h"]}}
    assert table(choose(base, rivals, entries("hfg", base, **losses), settled, **by_loss))["finance"] == ("f",)
    losses["g"]["validation"] = "other rows"
    with pytest.raises(RecipeError, match="cannot compare f, g"):
        choose(base, rivals, entries("hfg", base, **losses), **by_loss)
    with pytest.raises(ModelError, match="'g' has no validation loss"):
        choose(base, rivals, entries("hfg", base, g={"eval_loss": None}), **by_loss)


def test_groups_of_personas_share_a_domain_as_long_as_nobody_has_two_or_none(base: Path) -> None:
    def by_age(least: int) -> list[dict[str, Any]]:
        return [{"name": "y", "personas": {"age": {"max": 29}}}, {"name": "o", "personas": {"age": {"min": least}}}]

    scopes = {"y": {"scope": Scope(personas={"age": (float("-inf"), 29.0)})}}
    for least in (25, 30, 45):
        scopes["o"] = {"scope": Scope(personas={"age": (float(least), float("inf"))})}
        weights = entries("yo", base, **scopes)
        if least == 30:
            chosen = choose(base, by_age(least), weights)
            assert chosen.table is not None
            assert [chosen.table.name_for(persona, "finance") for persona in PEOPLE] == ["y", "o", "o", "o"]
            held = choose(base, by_age(least), weights, generate={"context": "previous"})
            assert held.table is not None  # each interview has one adapter
        elif least == 45:
            with pytest.raises(EngineError, match="No adapter is for the domain 'healthcare' and 2 of 4 personas"):
                choose(base, by_age(least), weights)
            with_base = choose(base, by_age(least), weights, generate={"without_adapter": "base"})
            assert with_base.table is not None
            assert [with_base.table.name_for(persona, "finance") for persona in PEOPLE] == ["y", "none", "none", "o"]
    young = [{"name": "y", "personas": {"age": {"max": 29}}}, {"name": "o"}]
    with pytest.raises(RecipeError, match="The adapters y and o are both for persona 'p0'"):
        choose(base, young, entries("yo", base, y=scopes["y"]))


@pytest.mark.parametrize(
    ("generate", "error", "message"),
    [
        ({"adapters": {"finance": "ff"}}, RecipeError, r"'ff' is none of the run's adapters\. Did you mean 'f'"),
        ({"adapters": {"finances": "f"}}, RecipeError, "'finances' is no domain of this run. Did you mean 'finance'"),
        ({"context": "previous"}, EngineError, "the run's adapters part it by domain: f, h"),
    ],
)
def test_names_that_nobody_has_and_interviews_that_change_hands_are_refused(
    base: Path, generate: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose(base, TWO, entries("hf", base), generate=generate)


def test_only_what_is_needed_must_be_trained(base: Path) -> None:
    missing = entries("hf", base, f={"adapter_hash": ""})
    with pytest.raises(ModelError, match="The adapter 'f' is not trained yet"):
        choose(base, TWO, missing)
    only = choose(base, TWO, missing, generate={"adapters": {"finance": "h"}})
    assert list(only.table.entries) == ["h"] if only.table else False


def test_other_weights_for_a_domain_are_a_change_and_a_new_domain_is_none(base: Path) -> None:
    recipe = adapters_recipe(Path("runs"), base, {"adapters": TWO})
    one = Population(PEOPLE, ITEMS[:1])

    def parts(population: Population, **changes: dict[str, Any]) -> dict[str, Any]:
        weights = choose_adapters(recipe, entries("hf", base, **changes), population, {})
        return content_parts(recipe, FROZEN, weights, population)

    def stored(population: Population) -> dict[str, Any]:
        content = {"parts": parts(population), "items": item_hashes(population)}
        return {"content": content, "ledger": {"layers": []}, "recipe": recipe.model_dump(mode="json")}

    assert parts(POPULATION)["adapter for finance"] == "f 1 on b"
    refuse_changes("here", stored(one), parts(POPULATION), recipe, POPULATION)
    refuse_changes("here", stored(POPULATION), parts(one), recipe, one)
    assert kept_parts(stored(POPULATION), is_first=False) == {
        "adapter for healthcare": "h 1 on b", "adapter for finance": "f 1 on b",
    }  # fmt: skip
    with pytest.raises(RecipeChangedError, match="adapter for finance: f 1 on b → f 2 on b"):
        refuse_changes("here", stored(POPULATION), parts(POPULATION, f={"adapter_hash": "2"}), recipe, POPULATION)


def test_the_choice_is_frozen_domain_by_domain(base: Path) -> None:
    chosen = choose(base, TWO, entries("hf", base))
    assert frozen_choice(chosen, {"adapters": {"education": ["e"]}}) == {
        "adapters": {"education": ["e"], **{domain: [domain[0]] for domain in DOMAINS}}
    }
    assert frozen_choice(Weights(), {}) == {}


def test_keys_about_several_adapters_are_refused_where_there_is_one() -> None:
    def recipe(**sections: Any) -> Recipe:
        return build_recipe({"name": "x", "panel": {"size": 3}, **sections})

    for sections in (
        {"generate": {"adapters": {"finance": "f"}}},
        {"generate": {"without_adapter": "base"}},
        {"finetune": {"choose": "eval_loss"}},
    ):
        with pytest.raises(EngineError, match="is for a run with several adapters"):
            refuse_unsupported(recipe(**sections))
    with pytest.raises(EngineError, match="vllm answers with one adapter"):
        refuse_unsupported(recipe(finetune={"sweep": {"rank": [1, 2]}}, generate={"engine": "vllm"}))
