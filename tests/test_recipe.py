"""A recipe is read strictly: unknown keys, doubtful values and unset variables are named, nothing is guessed."""

import shlex

import click
import pytest
from conftest import find_test_data

from polypersona.cli.main import COMMANDS, cli
from polypersona.errors import RecipeError
from polypersona.recipe import STAGES, Recipe, build_recipe, change_of, flatten, load_recipe
from polypersona.recipe_sections import PRESETS, AttributeMapping, FinetuneRecipe, finetune_settings
from polypersona.resources import resource

MINIMAL = {"name": "toy", "panel": {"size": 3}}
RECIPES = sorted(path.name for path in resource("jobs").glob("*.yaml"))


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(data):
    with pytest.raises(RecipeError) as caught:
        build_recipe({**MINIMAL, **data})
    return str(caught.value)


def test_a_recipe_has_the_defaults_of_the_design():
    recipe = build_recipe(MINIMAL)
    assert (recipe.out, recipe.seed, recipe.location) == ("runs", 7, "runs/toy")
    assert (recipe.dataset.records, recipe.dataset.splits) == (3568, (0.8, 0.1, 0.1))
    assert (recipe.model.base, recipe.model.adapter) == ("tiny", "run")
    assert (recipe.generate.temperature, recipe.generate.shard_personas, recipe.generate.max_attempts) == (0.8, 64, 3)


@pytest.mark.parametrize(
    ("out", "location"),
    [
        ("runs", "runs/toy"),
        ("/tmp/runs/", "/tmp/runs/toy"),
        ("/", "/toy"),
        ("s3://bucket/runs", "s3://bucket/runs/toy"),
        ("s3://bucket/runs?region=eu&scheme=http", "s3://bucket/runs/toy?region=eu&scheme=http"),
        ("odd?/runs", "odd?/runs/toy"),
    ],
)
def test_the_run_directory_is_out_and_name(out, location):
    assert build_recipe({**MINIMAL, "out": out}).location == location


def test_a_file_is_read_with_its_overrides(tmp_path):
    path = write(tmp_path, "name: toy\npanel: {size: 3}\ngenerate: {on: test}\n")
    recipe = load_recipe(
        path, ["generate.draws=3", "name=other", "instrument.domains=[finance, lifestyle]", "model.adapter=none"]
    )
    assert (recipe.name, recipe.generate.on, recipe.generate.draws) == ("other", "test", 3)
    assert recipe.instrument.domains == ["finance", "lifestyle"]
    assert recipe.model.adapter == "none"


def test_the_last_of_two_overrides_of_a_key_wins(tmp_path):
    path = write(tmp_path, "name: toy\npanel: {size: 3}\n")
    assert load_recipe(path, ["generate.draws=3", "generate.draws=4"]).generate.draws == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate.draws", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("name.first=3", "'name' is a value, not a section"),
        ("generate.draws=[1", "the value is not valid YAML"),
        ("generate.drows=3", "'generate.drows' is no key of a recipe. Did you mean 'draws'?"),
        ("generate.draws=0", "generate.draws: input should be greater than or equal to 1"),
        ("generate.draws=", "generate.draws: input should be a valid integer"),
    ],
)
def test_an_override_that_is_none_is_named(tmp_path, override, message):
    path = write(tmp_path, "name: toy\npanel: {size: 3}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [toy\n", "line 2: this is not valid YAML"),
        ("- toy\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: toy\x00\n", "this is not valid YAML"),
        ("name: toy\nseed: 1\nseed: 2\n", "line 3: this is not valid YAML: the key 'seed' twice"),
        ("name: toy\npanel: {size: 3, size: 4}\n", "line 2: this is not valid YAML: the key 'size' twice"),
        ("name: toy\n", "panel.size is missing"),
        ("panel: {size: 3}\n", "'name' is missing"),
        ("name: toy\n1: 2\n", "keys should be strings"),
    ],
)
def test_a_file_that_is_no_recipe_is_named_with_its_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_shipped_recipe_is_found_by_its_name_from_anywhere_unless_the_user_has_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("jobs/demo.yaml") == load_recipe(resource("jobs/demo.yaml"))
    with pytest.raises(RecipeError, match=r"There is no recipe 'jobs/nowhere\.yaml'"):
        load_recipe("jobs/nowhere.yaml")
    with pytest.raises(RecipeError, match=r"There is no recipe 'demo\.yaml'"):
        load_recipe("demo.yaml")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "demo.yaml").write_text("name: mine\npanel: {size: 3}\n")
    assert load_recipe("jobs/demo.yaml").name == "mine"


def test_a_recipe_that_does_not_exist_and_a_folder_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"There is no recipe .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("data", "key", "near"),
    [
        ({"generat": {}}, "generat", "generate"),
        ({"generate": {"temprature": 1}}, "generate.temprature", "temperature"),
        ({"panel": {"size": 3, "mapping": {"age": {"colum": "a"}}}}, "panel.mapping.age.colum", "column"),
        ({"cluster": {"limit": {}}}, "cluster.limit", "limits"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(data, key, near):
    message = refusal(data)
    assert f"{key!r} is no key of a recipe. Did you mean {near!r}?" in message
    assert "Allowed here: " in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"panel": None}, "panel: this is a section"),
        ({"panel": {}}, "recipe: panel.size is missing"),
        ({"panel": {"size": 0}}, "panel.size: input should be greater than or equal to 1 (got 0)"),
        ({"panel": {"size": 3, "mapping": {"age": ["a"]}}}, "panel.mapping.age: input should be a valid string"),
        ({"panel": {"size": 3, "mapping": {"age": {"values": {}}}}}, "'panel.mapping.age.column' is missing"),
        ({"panel": {"size": 3, "text": 3}}, "panel.text: input should be a valid string or a valid list"),
        ({"name": "../up"}, "name: string should match pattern"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"name": ""}, "name: string should match pattern"),
        ({"out": ""}, "out: string should have at least 1 character"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"dataset": {"splits": [0.8, 0.1, 0.2]}}, "must sum to 1"),
        ({"dataset": {"splits": [1.2, -0.1, -0.1]}}, "must not be negative"),
        ({"dataset": {"splits": [0.8, 0.2]}}, "dataset.splits.2"),
        ({"generate": {"engine": "pakced"}}, "Did you mean 'packed'?"),
        ({"generate": {"actors": 0}}, "generate.actors: input should be 'auto' or greater than or equal to 1 (got 0)"),
        ({"generate": {"actors": "many"}}, "generate.actors: input should be 'auto' or a valid integer"),
        ({"generate": {"slots": -1}}, "generate.slots: input should be 'auto' or greater than or equal to 1"),
        ({"finetune": {"workers": 0}}, "finetune.workers: input should be 'auto' or greater than or equal to 1"),
        ({"finetune": {"max_grad_norm": 0}}, "finetune.max_grad_norm: input should be greater than 0 (got 0)"),
        ({"finetune": {"max_grad_norm": float("inf")}}, "finetune.max_grad_norm: input should be a finite number"),
        ({"generate": {"temperature": float("inf")}}, "generate.temperature: input should be a finite number"),
        ({"generate": {"temperature": float("nan")}}, "generate.temperature: input should be a finite number"),
        ({"generate": {"stop": [""]}}, "generate.stop.0: string should have at least 1 character"),
        ({"generate": {"repetition_penalty": 0}}, "generate.repetition_penalty: input should be greater than 0"),
        ({"generate": {"top_p": 0}}, "generate.top_p: input should be greater than 0"),
        ({"generate": {"rationale": "maybe"}}, "generate.rationale: input should be a valid boolean"),
        ({"generate": {"draws": 2.5}}, "generate.draws: input should be a valid integer"),
        ({"instrument": {"response_types": ["likrt"]}}, "Did you mean 'likert'?"),
        ({"cluster": {"limits": {"CPU": "two"}}}, "cluster.limits.CPU: input should be a valid number"),
        ({"cluster": {"limits": {"cpus": 2}}}, "cluster.limits: 'cpus' cannot be limited, only 'CPU' and 'GPU' can"),
        ({"cluster": {"prices": {"TPU": 2.5}}}, "cluster.prices: 'TPU' cannot be priced, only 'CPU' and 'GPU' can"),
        ({"cluster": {"prices": {"GPU": -1}}}, "cluster.prices: a price per hour is a number from 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_key(data, message):
    text = refusal(data)
    assert message in text
    assert text.startswith("recipe: ")


def test_yaml_words_for_yes_and_no_stay_words(tmp_path):
    path = write(tmp_path, "name: toy\npanel: {size: 3, mapping: {x: {column: on, values: {Yes: No, y: off}}}}\n")
    assert load_recipe(path).panel.mapping["x"] == AttributeMapping(column="on", values={"Yes": "No", "y": "off"})


def test_survey_codes_may_be_written_as_numbers(tmp_path):
    path = write(tmp_path, "name: toy\npanel: {size: 3, mapping: {gender: {column: sex, values: {1: male, 2: 0}}}}\n")
    assert load_recipe(path).panel.mapping["gender"] == AttributeMapping(column="sex", values={"1": "male", "2": "0"})


def test_environment_variables_expand_in_every_string(monkeypatch):
    monkeypatch.setenv("PP_DATA", "/data")
    monkeypatch.setenv("PP_EMPTY", "")
    monkeypatch.delenv("PP_UNSET", raising=False)
    recipe = build_recipe(
        {
            "name": "toy",
            "out": "${PP_UNSET:-runs}/${PP_EMPTY:-plain}",
            "panel": {"source": "${PP_DATA}/a.csv", "text": ["${PP_DATA}"], "mapping": {"a": {"column": "${PP_DATA}"}}},
            "generate": {"draws": "${PP_UNSET:-3}"},
        }
    )
    assert recipe.out == "runs/plain"
    assert recipe.panel.source == "/data/a.csv"
    assert recipe.panel.text == ["/data"]
    assert recipe.panel.mapping["a"] == AttributeMapping(column="/data")
    assert recipe.generate.draws == 3


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("PP_UNSET", raising=False)
    assert "the environment variable PP_UNSET is not set" in refusal({"out": "${PP_UNSET}/runs"})


# What each change means for an existing run. A new field fails here until somebody decides.
CONTENT = {
    "seed",
    *(f"panel.{key}" for key in ("source", "mapping", "id", "text", "weight", "distinct", "accept_license")),
    *(f"instrument.{key}" for key in ("bank", "show_options")),
    *(f"dataset.{key}" for key in ("source", "teacher", "records", "split_by", "splits")),
    *(f"dataset.survey.{key}" for key in ("codebook", "items", "withheld", "attributes", "bands")),
    *(f"model.{key}" for key in ("base", "dtype", "quantization", "adapter", "revision", "trust_remote_code")),
    *(f"finetune.{key}" for key in ("preset", "epochs", "learning_rate", "rank", "alpha", "dropout")),
    *(f"finetune.{key}" for key in ("batch_size", "accumulation", "max_length", "max_grad_norm", "loss")),
    *(f"finetune.{key}" for key in ("validation_rows", "validate_steps", "best_metric", "patience")),
    *(f"generate.{key}" for key in ("on", "engine", "closed", "rationale", "context", "order", "calibration")),
    *(f"generate.{key}" for key in ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "slots")),
    *(f"generate.{key}" for key in ("repetition_penalty", "stop", "length_norm", "shard_personas", "persona")),
    *(f"generate.endpoint.{key}" for key in ("url", "model", "instruct")),
}
EXTENSION = {
    "panel.size",
    *(f"instrument.{key}" for key in ("domains", "items", "response_types", "max_items")),
    *(f"finetune.{key}" for key in ("adapters", "sweep", "choose")),
    *(f"generate.{key}" for key in ("draws", "waves", "adapters", "without_adapter")),
}
SPEED = {
    "name",
    "out",
    *(f"finetune.{key}" for key in ("workers", "max_failures")),
    *(f"generate.{key}" for key in ("actors", "max_attempts", "max_quarantined", "max_hours")),
    *(f"generate.endpoint.{key}" for key in ("key_variable", "limit_parameter", "concurrency", "timeout_s")),
    *(f"generate.endpoint.{key}" for key in ("max_retries", "requests_per_minute")),
    *(f"evaluate.{key}" for key in ("metrics", "reference", "bertscore_model", "embedding_model", "bootstrap")),
    *(f"cluster.{key}" for key in ("limits", "prices", "policy", "memory_gb")),
}


def test_what_a_change_of_each_field_means_is_decided():
    keys = set(flatten(build_recipe(MINIMAL)))
    assert keys == CONTENT | EXTENSION | SPEED
    assert {key for key in keys if change_of(key) == "content"} == CONTENT
    assert {key for key in keys if change_of(key) == "extension"} == EXTENSION
    assert {key for key in keys if change_of(key) == "speed"} == SPEED


@pytest.mark.parametrize("key", ["nonsense", "generate.nonsense", "generate.draws.deeper", ""])
def test_an_unknown_field_counts_as_content(key):
    assert change_of(key) == "content"


def test_a_recipe_survives_its_own_dump():
    recipe = build_recipe(MINIMAL)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


# PolyPersona paper, sections IV-C and V-A.
PAPER = {
    "epochs": 3,
    "learning_rate": 2e-4,
    "rank": 16,
    "alpha": 32,
    "dropout": 0.05,
    "batch_size": 4,
    "accumulation": 4,
    "weight_decay": 1e-3,
    "warmup_ratio": 0.03,
    "max_grad_norm": 0.3,
    "scheduler": "cosine",
}


def test_the_paper_preset_has_the_papers_values():
    settings = finetune_settings(FinetuneRecipe(preset="paper"))
    assert {name: getattr(settings, name) for name in PAPER} == PAPER
    assert settings.global_batch == 16


def test_a_value_of_the_recipe_replaces_the_presets():
    settings = finetune_settings(FinetuneRecipe(preset="tiny", epochs=0.5, rank=4, max_grad_norm=1))
    assert (settings.epochs, settings.rank, settings.max_grad_norm) == (0.5, 4, 1.0)
    assert settings.learning_rate == PRESETS["tiny"].learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_loads_and_begins_with_the_command_that_runs_it(name, monkeypatch):
    if data := find_test_data():
        monkeypatch.setenv("POLYPERSONA_TEST_DATA", str(data))
    path = resource(f"jobs/{name}")
    recipe = load_recipe(path)
    assert recipe.location
    first = path.read_text(encoding="utf-8").splitlines()[0]
    program, command, *arguments = shlex.split(first.removeprefix("# "))
    assert (program, arguments[0]) == ("polypersona", f"jobs/{name}")
    assert command in COMMANDS
    context = click.Context(cli)
    found = cli.get_command(context, command)
    assert found is not None
    parsed = found.make_context(command, list(arguments), parent=context)
    load_recipe(path, parsed.params["overrides"])
    assert parsed.params.get("first", STAGES[0]) in STAGES


def test_the_design_s_recipes_are_shipped():
    assert {"demo.yaml", "gss.yaml", "paper.yaml", "smoke.yaml"} <= set(RECIPES)


def test_the_demo_reproduces_the_papers_composition():
    recipe = load_recipe(resource("jobs/demo.yaml"))
    assert (recipe.panel.size, recipe.dataset.records, recipe.dataset.splits) == (433, 3568, (0.8, 0.1, 0.1))
    assert recipe.dataset.split_by == "persona"


def test_the_gss_recipe_asks_twenty_closed_items_of_five_domains(monkeypatch):
    from polypersona.questionbank import load_instrument

    monkeypatch.setenv("POLYPERSONA_TEST_DATA", "/data")
    recipe = load_recipe(resource("jobs/gss.yaml"))
    items = load_instrument(recipe.instrument).items
    assert len(items) == 20
    assert all(item.is_closed for item in items)
    assert len({item.domain for item in items}) == 5
    assert recipe.panel.source == "/data/gss_agents/gss_agents.jsonl"
