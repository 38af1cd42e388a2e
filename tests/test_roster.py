"""The adapters that a recipe asks for."""

import pytest

from polypersona.errors import RecipeError
from polypersona.recipe import build_recipe
from polypersona.recipe_sections import finetune_settings
from polypersona.roster import build_roster, has_several
from polypersona.scopes import EVERYTHING


def roster(**finetune):
    return build_roster(build_recipe({"name": "x", "panel": {"size": 3}, "finetune": {"rank": 16, **finetune}}))


def test_without_a_list_there_is_one_adapter_for_everything():
    [member] = roster()
    assert (member.name, member.scope, member.folder, member.checkpoints) == ("run", EVERYTHING, "adapter", "train")
    assert not has_several(member.recipe)


def test_each_adapter_has_its_own_part_base_and_settings_and_the_runs_for_the_rest():
    first, second = roster(
        epochs=2,
        adapters=[
            {
                "name": "health",
                "domains": ["healthcare"],
                "rank": 8,
                "max_grad_norm": 2,
                "base": "Qwen/Qwen2-1.5B-Instruct",
            },
            {"name": "young", "personas": {"age": {"min": 18, "max": 29}, "gender": ["female"]}},
        ],
    )
    assert (first.folder, first.checkpoints) == ("adapters/health", "train/health")
    assert finetune_settings(first.recipe.finetune).rank == 8
    assert finetune_settings(first.recipe.finetune).epochs == 2
    assert [finetune_settings(one.recipe.finetune).max_grad_norm for one in (first, second)] == [2.0, 0.3]
    assert first.recipe.model.base == "Qwen/Qwen2-1.5B-Instruct"
    assert second.recipe.model.base == "tiny"
    assert finetune_settings(second.recipe.finetune).rank == 16
    assert second.scope.personas == {"age": (18.0, 29.0), "gender": ("female",)}


def test_a_sweep_is_the_cross_product_of_its_values():
    members = roster(sweep={"domains": [["healthcare"], ["finance", "education"]], "rank": [8, 16]})
    assert [member.name for member in members] == [
        "healthcare-rank8", "healthcare-rank16", "finance-education-rank8", "finance-education-rank16",
    ]  # fmt: skip
    assert [finetune_settings(member.recipe.finetune).rank for member in members] == [8, 16, 8, 16]
    assert members[2].scope.domains == ("finance", "education")
    by_people = roster(sweep={"base": ["Qwen/Qwen2-1.5B-Instruct"], "personas": [{"age": {"min": 60}}, {}]})
    assert [member.name for member in by_people] == ["Qwen2-1.5B-Instruct-age-60", "Qwen2-1.5B-Instruct-everyone"]


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"adapters": [{"name": "run"}]}, "the name 'run' is taken by model.adapter"),
        ({"adapters": [{"name": "Health"}, {"name": "health"}]}, "2 adapters are named 'health'"),
        ({"sweep": {}}, "finetune.sweep names no values"),
        ({"sweep": {"personas": [{"age": ["1"]}, {"age": ["1"]}]}}, "2 adapters are named 'age-1'"),
    ],
)
def test_names_that_would_share_a_folder_or_mean_something_else_are_refused(finetune, message):
    with pytest.raises(RecipeError, match=message):
        roster(**finetune)
