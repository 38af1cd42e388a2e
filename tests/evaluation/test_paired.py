"""Run: pytest tests/evaluation/test_paired.py. Two runs written by hand; the last tests on a real local Ray."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner
from scored_runs import people_and_items, persona_blind, row, rows_of, scored_recipe, table, taught, write_shards
from toy_encoder import write_encoder

from polypersona import evaluate
from polypersona.cli.main import cli
from polypersona.errors import StorageError
from polypersona.evaluation.paired import Measures, compare_runs, difference_rows, measure_bucket
from polypersona.evaluation.pool import FOLDER
from polypersona.metrics.catalogue import PERSONA_NAMES, choose_metrics
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.personas import PersonaMetrics
from polypersona.metrics.table import build_rows
from polypersona.references import TeacherReferences, rotation
from polypersona.scoring import Scorer, Settings
from polypersona.storage import RunDirectory

METRICS = ["stance_agreement", "exact_agreement", "bleu", "rouge1"]


def measures_of(recipe, metrics=METRICS) -> Measures:
    people, items = people_and_items(recipe)
    references = TeacherReferences.build(people, items, recipe.seed, has_rationale=False)
    by_id = {item.item_id: item for item in items}
    settings = Settings(choose_metrics(metrics, None)[0], (), by_id, references, recipe.seed, 300)
    others = rotation([person.persona_id for person in people], recipe.seed)
    return Measures(settings, PersonaMetrics.of(items, people, others, metrics, recipe.seed, 300), items)


def overall(measures, tally):
    return {one["metric"]: one for one in difference_rows(measures, tally, "overall")}


def test_a_run_differs_from_itself_by_nothing_and_from_a_persona_blind_one_by_what_the_persona_adds(tmp_path):
    recipe = scored_recipe(tmp_path)
    measures = measures_of(recipe)
    own, blind = rows_of(recipe, taught(recipe.seed + 1)), rows_of(recipe, persona_blind(recipe))
    same = overall(measures, measure_bucket(measures, own, own))
    assert {one["difference"] for one in same.values()} == {0.0}
    assert {one["p"] for one in same.values()} == {None}
    found = overall(measures, measure_bucket(measures, own, blind))["stance_agreement"]
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["effect"] > 0.3
    assert found["p"] < 0.01
    assert found["personas"] == 60


def test_pairing_makes_the_interval_narrower_than_two_runs_apart_would(tmp_path):
    recipe = scored_recipe(tmp_path)
    measures = measures_of(recipe)
    own = rows_of(recipe, taught(recipe.seed + 1))
    changed = [one | ({"text": "No."} if place % 50 == 0 else {}) for place, one in enumerate(own)]
    paired = overall(measures, measure_bucket(measures, own, changed))["rouge1"]
    scorer = Scorer.build(measures.settings)
    scorer.add(table(own))
    alone = next(
        one for one in build_rows(measures.settings.layout, scorer.partial.sums, "overall") if one["metric"] == "rouge1"
    )
    assert 0 < paired["low"] < paired["difference"] < paired["high"]
    assert paired["high"] - paired["low"] < 0.5 * (alone["high"] - alone["low"])


def test_only_cells_that_both_answered_count_and_any_split_gives_the_same_figures(tmp_path):
    recipe = scored_recipe(tmp_path)
    measures = measures_of(recipe)
    own, other = rows_of(recipe, taught(recipe.seed + 1)), rows_of(recipe, taught(recipe.seed + 2))
    people, items = people_and_items(recipe)
    own[0] = row(people[0], items[0], disposition="error", error="out of memory")
    whole = measure_bucket(measures, own, other[:-8])
    assert whole.cells["overall", "all"] == len(own) - 8
    assert overall(measures, whole)["rouge1"]["n"] == len(own) - 9
    split = None
    for start in (0, 1, 2):
        chosen = {person.persona_id for person in people[start::3]}
        sides = [[one for one in rows if one["persona_id"] in chosen] for rows in (own, other[:-8])]
        random.Random(start).shuffle(sides[0])
        part = measure_bucket(measures, *sides)
        if split is None:
            split = part
        else:
            split.merge(part)
    for kind in ("overall", "domain", "item"):
        assert difference_rows(measures, split, kind) == difference_rows(measures, whole, kind)


def test_the_effect_is_that_of_the_personas_for_whom_the_metric_is_defined(tmp_path):
    recipe = scored_recipe(tmp_path)
    measures = measures_of(recipe)
    own, other = rows_of(recipe, taught(recipe.seed + 1)), rows_of(recipe, persona_blind(recipe))
    people, items = people_and_items(recipe)
    counted = {person.persona_id for person in people[::3]}
    by_id = {item.item_id: item for item in items}
    own_few = [
        one
        if one["persona_id"] in counted
        else row(
            next(p for p in people if p.persona_id == one["persona_id"]), by_id[one["item_id"]], disposition="error"
        )
        for one in own
    ]
    found = overall(measures, measure_bucket(measures, own_few, other))
    alone = overall(
        measures,
        measure_bucket(measures, *([one for one in rows if one["persona_id"] in counted] for rows in (own, other))),
    )
    for name in METRICS:
        assert found[name]["personas"] == len(counted)
        assert found[name]["effect"] == pytest.approx(alone[name]["effect"])


def test_whole_personas_are_compared_on_the_cells_that_both_runs_answered(tmp_path):
    recipe = scored_recipe(tmp_path)
    measures = measures_of(recipe, PERSONA_NAMES)
    own, other = rows_of(recipe, taught(recipe.seed + 1)), rows_of(recipe, persona_blind(recipe))
    tally = measure_bucket(measures, own, other[8:])
    people = measures.people
    alone = []
    for rows in (own[8:], other[8:]):
        sums, interviews = people.empty(), Interviews.of(rows, measures.items)
        people.add(sums, [(interviews.persona_ids, people.measure(interviews))])
        alone.append({kind: people.build_rows(sums, kind, measures.items) for kind in ("overall", "domain", "item")})
    for kind, mine in alone[0].items():
        theirs = {(one["group"], one["metric"]): one["score"] for one in alone[1][kind]}
        both = [one for one in mine if (one["group"], one["metric"]) in theirs]
        found = difference_rows(measures, tally, kind)
        assert [(one["group"], one["metric"]) for one in found] == [(one["group"], one["metric"]) for one in both]
        for one, single in zip(found, both, strict=True):
            assert (one["score"], one["n"]) == (single["score"], single["n"])
            assert one["difference"] == pytest.approx(single["score"] - theirs[one["group"], one["metric"]])
    facts = overall(measures, tally)["fact_faithfulness"]
    assert 0.5 < facts["low"] < facts["difference"] < facts["high"]
    assert facts["personas"] == 59


@pytest.mark.slow
@pytest.mark.ray
def test_what_the_runs_evaluations_have_encoded_is_not_encoded_again(local_ray, tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    runs, scores = [], []
    for name, answers in (("a", taught(8)), ("b", None)):
        recipe = scored_recipe(
            tmp_path,
            name,
            metrics=["bertscore_f1", "card_similarity"],
            bertscore_model=encoder,
            embedding_model=encoder,
        )
        runs.append(write_shards(recipe, rows_of(recipe, answers or persona_blind(recipe)), 2))
        scores.append(evaluate.run(recipe)["scores"])
    parts = [run.names(FOLDER, ".parquet") for run in runs]
    content = compare_runs(*runs)
    assert [run.names(FOLDER, ".parquet") for run in runs] == parts
    assert {row["metric"]: (row["score"], row["other"]) for row in content["overall"]} == {
        name: (scores[0][name], scores[1][name]) for name in ("bertscore_f1", "card_similarity")
    }
    # Without the second run's parts they are made, and kept with the first run.
    for name in parts[1]:
        runs[1].delete(name)
    assert compare_runs(*runs) == content
    assert runs[1].names(FOLDER, ".parquet") == []
    assert set(runs[0].names(FOLDER, ".parquet")) == {*parts[0], *parts[1]}


@pytest.mark.ray
def test_two_runs_are_compared_by_the_command_whatever_their_shards(local_ray, tmp_path):
    files = []
    for place, shards in enumerate(((1, 3), (5, 2))):
        runs = []
        for name, answers, count in zip(("a", "b"), (taught, persona_blind), shards, strict=True):
            recipe = scored_recipe(tmp_path / str(place), name, metrics=METRICS)
            rows = rows_of(recipe, answers(recipe.seed + 1) if answers is taught else answers(recipe))
            runs.append(write_shards(recipe, rows, count))
        result = CliRunner().invoke(cli, ["difference", *(run.path() for run in runs)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "a minus b (synthetic): 480 cells of 60 personas and 8 items" in result.output
        stored = json.loads(runs[0].read("scores/against-b.json"))
        files.append({key: value for key, value in stored.items() if key not in ("run", "against")})
    assert files[0] == files[1]
    assert {one["group"] for one in files[0]["by_domain"]} == {"finance", "technology"}


def test_runs_without_a_common_item_are_refused(tmp_path):
    first = scored_recipe(tmp_path, "first")
    write_shards(first, rows_of(first, taught(1))[:8], 1)
    second = first.model_copy(
        update={"name": "second", "instrument": first.instrument.model_copy(update={"domains": ["healthcare"]})}
    )
    write_shards(second, rows_of(second, taught(1))[:8], 1)
    with pytest.raises(StorageError, match="no item in common"):
        compare_runs(RunDirectory.at(first.location), RunDirectory.at(second.location))
