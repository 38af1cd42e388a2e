"""Run: pytest tests/test_evaluate.py. Real local Ray, shards written by hand."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from annotated_runs import rate_all
from scored_runs import people_and_items, row, rows_of, scored_recipe, taught, write_shards

from polypersona import evaluate
from polypersona.engines.base import Answer
from polypersona.errors import RecipeChangedError, RecipeError, StorageError
from polypersona.examples import build_example, render_examples
from polypersona.recipe import build_recipe
from polypersona.records import Assignment
from polypersona.storage import RunDirectory, load_run

FILES = (
    "scores.json", "overall.parquet", "by_domain.parquet", "by_response_type.parquet", "by_item.parquet",
    "by_model.parquet", "by_subgroup.parquet",
)  # fmt: skip


def test_dataset_references_do_not_go_with_a_panel(tmp_path):
    recipe = scored_recipe(tmp_path, reference="dataset")
    write_shards(recipe, rows_of(recipe, taught(1)), 1)
    with pytest.raises(RecipeError, match=r"evaluate\.reference.*panel"):
        evaluate.run(recipe)


def test_without_responses_the_stage_says_what_to_run_first(tmp_path):
    with pytest.raises(StorageError, match="Run generate first"):
        evaluate.run(scored_recipe(tmp_path))


@pytest.mark.ray
def test_one_shard_and_many_give_the_same_bytes_and_a_second_run_does_nothing(local_ray, tmp_path):
    written = []
    for name, num_shards in (("one", 1), ("many", 13)):
        recipe = scored_recipe(tmp_path, name)
        rows = rows_of(recipe, taught(recipe.seed + 1))
        people, items = people_and_items(recipe)
        directory = write_shards(recipe, rows[:-3], num_shards)
        failed = [row(people[0], items[0], disposition="error", error="out of memory") for _ in range(3)]
        write_shards(recipe, failed, 1, "quarantine")
        first = evaluate.run(recipe)
        written.append({file: directory.read(f"scores/{file}") for file in FILES})
        assert first["skipped"] is False
        assert evaluate.run(recipe) == {**first, "skipped": True}
        assert load_run(directory)["stages"]["evaluate"]["conditioning"] == first["conditioning"]
    assert written[0] == written[1]
    scores = json.loads(written[0]["scores.json"])
    assert scores["synthetic"] is True
    assert scores["reference"] == "teacher"
    assert "simulator" in scores["caption"]
    assert "BERTScore is not in the table" in scores["caption"]
    assert "Card similarity is not in the table" in scores["caption"]
    assert scores["dispositions"] == {"complete": 60 * 8 - 3, "error": 3}
    assert scores["conditioning"]["ignores_cards"] is False
    assert {row["group"] for row in scores["by_domain"]} == {"finance", "technology"}
    table = pq.read_table(tmp_path / "one" / "scores" / "by_item.parquet")
    assert table.to_pylist() == scores["by_item"]
    assert table.schema.metadata[b"synthetic"] == b"true"
    assert {row["group"] for row in scores["by_model"]} == {"rules"}
    groups = {row["group"] for row in scores["by_subgroup"]}
    people, _ = people_and_items(recipe)
    words = {f"{name}={value}" for person in people for name, value in person.attributes.items()}
    assert len(groups & words) > 10
    assert any(" to under " in group for group in groups)
    assert min(row["n"] for row in scores["by_subgroup"]) >= 5
    everybody = {row["metric"]: row["n"] for row in scores["overall"]}
    men_and_women = [row for row in scores["by_subgroup"] if row["group"].startswith("gender=")]
    assert sum(row["n"] for row in men_and_women if row["metric"] == "validity") <= everybody["validity"]


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 8), ("instrument.show_options", "letters"), ("generate.rationale", True)]
)
def test_a_recipe_the_responses_were_not_made_with_is_refused_with_the_difference(tmp_path, key, value):
    recipe = scored_recipe(tmp_path)
    write_shards(recipe, rows_of(recipe, taught(recipe.seed)), 1)
    changed = recipe.model_dump(mode="json")
    section, _, name = key.rpartition(".")
    (changed[section] if section else changed)[name] = value
    with pytest.raises(RecipeChangedError, match=f"{key}: .* → {json.dumps(value).strip(chr(34))}"):
        evaluate.run(build_recipe(changed))
    assert not RunDirectory.at(recipe.location).exists("scores/scores.json")


@pytest.mark.ray
def test_files_of_another_run_and_of_uncommitted_shards_are_not_scored_and_a_gap_is_told(local_ray, tmp_path):
    recipe = scored_recipe(tmp_path, metrics=["validity"])
    rows = rows_of(recipe, taught(recipe.seed))
    directory = write_shards(recipe, rows[:-8], 2)
    shard = directory.read("responses/shard-00000-f00d.parquet")
    directory.write("responses/shard-00000-beef.parquet", shard)
    directory.write("quarantine/shard-00007-f00d.parquet", shard)
    assert evaluate.run(recipe)["num_rows"] == len(rows) - 8
    caption = directory.read_json("scores/scores.json")["caption"]
    assert "Generation is not finished: 472 of 480 planned responses are there." in caption


@pytest.mark.ray
def test_other_settings_and_other_responses_are_scored_again(local_ray, tmp_path):
    recipe = scored_recipe(tmp_path)
    rows = rows_of(recipe, taught(recipe.seed))
    write_shards(recipe, rows[:200], 2)
    evaluate.run(recipe)
    chosen = scored_recipe(tmp_path, metrics=["rouge1", "distinct1"], reference="none")
    assert set(evaluate.run(chosen)["scores"]) == {"distinct1"}
    write_shards(recipe, rows, 2)
    assert evaluate.run(chosen)["num_rows"] == len(rows)


def on_test(recipe):
    return recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"on": "test"})})


def write_test_split(recipe, num_people=10):
    """Write a test split and, as responses, its own answers."""
    people, items = people_and_items(recipe)
    examples, rows = [], []
    for person in people[:num_people]:
        for item, given in zip(items, taught(recipe.seed)(person, items), strict=True):
            answer = Answer(Assignment(person.persona_id, item.item_id).assignment_id, **given)
            examples.append(build_example(person, item, answer, "labels"))
            rows.append(row(person, item, **given))
    directory = RunDirectory.at(recipe.location)
    directory.write("dataset/test.jsonl", render_examples(examples))
    write_shards(recipe, rows, 3)
    return directory


@pytest.mark.ray
def test_a_source_with_a_key_is_named_without_it(local_ray, tmp_path):
    recipe = on_test(scored_recipe(tmp_path))
    source = "s3://AKIA0123:secret0123@bucket/records.jsonl"
    recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"source": source})})
    directory = write_test_split(recipe, 2)
    evaluate.run(recipe)
    kept = directory.read("scores/scores.json").decode()
    assert "answers from s3://***@bucket/records.jsonl." in kept
    assert "secret0123" not in kept


@pytest.mark.ray
def test_on_test_responses_meet_the_datasets_answers(local_ray, tmp_path):
    recipe = on_test(scored_recipe(tmp_path))
    directory = write_test_split(recipe)
    summary = evaluate.run(recipe)
    assert summary["reference"] == "dataset"
    assert summary["scores"]["exact_agreement"] == 1
    assert summary["scores"]["bleu"] == pytest.approx(1)
    overall = {row["metric"]: row for row in directory.read_json("scores/scores.json")["overall"]}
    assert overall["stance_agreement"]["floor"] < 1
    assert overall["stance_agreement"]["ceiling_name"] == "retest"


@pytest.mark.ray
def test_a_response_of_another_recipe_is_named_across_the_process_border(local_ray, tmp_path):
    recipe = scored_recipe(tmp_path)
    rows = rows_of(recipe, taught(recipe.seed))
    write_shards(recipe, [*rows[:5], rows[5] | {"item_id": "nowhere.open.01"}], 1)
    with pytest.raises(StorageError, match=r"nowhere\.open\.01"):
        evaluate.run(recipe)
    assert not RunDirectory.at(recipe.location).exists("scores/scores.json")


@pytest.mark.ray
def test_ratings_join_the_scores_without_measuring_anything_again(local_ray, tmp_path):
    recipe = scored_recipe(tmp_path, metrics=["rouge1"])
    directory = write_shards(recipe, rows_of(recipe, taught(recipe.seed)), 2)
    evaluate.run(recipe)
    before = directory.read_json("scores/scores.json")
    assert before["annotation"] == []
    rate_all(directory, 12, "ann", lambda entry: (4, 5 if entry.kind == "model" else 2, "human"))
    assert evaluate.run(recipe)["skipped"] is False
    after = directory.read_json("scores/scores.json")
    assert {key: after[key] for key in after if key != "annotation"} == {
        key: before[key] for key in before if key != "annotation"
    }
    found = {(row["name"], row["kind"]): row for row in after["annotation"]}
    assert found["realism", "model"]["value"] == 4
    assert found["conditioning_gain_consistency", "model − shuffled"]["value"] == 3
    assert found["alpha_realism", "all"]["value"] is None
    assert evaluate.run(recipe)["skipped"] is True
