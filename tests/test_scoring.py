"""Run: pytest tests/test_scoring.py. No Ray: tables in, scores out."""

from __future__ import annotations

import random

import pytest
from scored_runs import people_and_items, persona_blind, row, rows_of, scored_recipe, table, taught

from polypersona.errors import StorageError
from polypersona.metrics.catalogue import choose_metrics
from polypersona.metrics.table import build_rows, build_set_rows, conditioning
from polypersona.recipe import Recipe
from polypersona.references import References, TeacherReferences
from polypersona.scoring import Partial, Scorer, Settings

TEACHER = object()


def settings_of(
    recipe: Recipe, references: References | object | None = TEACHER, num_replicates: int = 300
) -> Settings:
    people, items = people_and_items(recipe)
    if references is TEACHER:
        references = TeacherReferences.build(people, items, recipe.seed, has_rationale=False)
    sums, sets = choose_metrics([], None)
    by_id = {item.item_id: item for item in items}
    return Settings(sums, sets, by_id, references, recipe.seed, num_replicates)  # type: ignore[arg-type]


def score(settings: Settings, partial: Partial, kind: str = "overall") -> dict[tuple[str, str], dict[str, object]]:
    rows = build_rows(settings.layout, partial.sums, kind)  # type: ignore[arg-type]
    rows += build_set_rows(
        settings.set_metrics,
        partial.ngrams,
        kind,
        has_reference=settings.references is not None,  # type: ignore[arg-type]
    )
    return {(row["metric"], row["group"]): row for row in rows}


def measured(settings: Settings, rows) -> Partial:
    scorer = Scorer.build(settings)
    scorer.add(table(rows))
    return scorer.partial


def test_the_teachers_own_answers_score_one_and_gain_over_the_shuffled_floor(tmp_path):
    recipe = scored_recipe(tmp_path)
    settings = settings_of(recipe)
    found = score(settings, measured(settings, rows_of(recipe, taught(recipe.seed))))
    for name in ("stance_agreement", "exact_agreement", "near_agreement", "quadratic_kappa", "bleu", "rougeL"):
        scores = found[name, "all"]
        assert scores["score"] == pytest.approx(1, abs=1e-6)
        assert scores["floor"] < 0.9
        assert scores["floor_name"] == "shuffled"
    assert 0.6 < found["stance_agreement", "all"]["ceiling"] < 1
    assert found["exact_agreement", "all"]["uniform"] < found["exact_agreement", "all"]["ceiling"]
    verdict = conditioning(list(found.values()))
    assert verdict["metric"] == "stance_agreement"
    assert 0 < verdict["low"] < verdict["gain"] < verdict["high"]
    assert verdict["ignores_cards"] is False


def test_a_second_opinion_scores_what_the_retest_ceiling_says(tmp_path):
    recipe = scored_recipe(tmp_path)
    settings = settings_of(recipe)
    found = score(settings, measured(settings, rows_of(recipe, taught(recipe.seed + 1))))
    for name in ("stance_agreement", "exact_agreement", "quadratic_kappa"):
        assert found[name, "all"]["score"] == found[name, "all"]["ceiling"]


def test_answers_that_ignore_the_persona_gain_nothing_though_their_overlap_looks_fine(tmp_path):
    recipe = scored_recipe(tmp_path)
    settings = settings_of(recipe)
    found = score(settings, measured(settings, rows_of(recipe, persona_blind(recipe))))
    verdict = conditioning(list(found.values()))
    assert verdict["low"] < 0 < verdict["high"]
    assert verdict["ignores_cards"] is True
    assert found["rouge1", "all"]["score"] > 0.3
    assert abs(found["bleu", "all"]["gain"]) < 0.1


def test_any_sharding_gives_the_same_scores(tmp_path):
    recipe = scored_recipe(tmp_path)
    settings = settings_of(recipe, num_replicates=40)
    rows = rows_of(recipe, taught(recipe.seed + 3))
    whole = measured(settings, rows)
    random.Random(1).shuffle(rows)
    merged = Partial.empty(settings)
    for start in (300, 0, 120):
        stop = {0: 120, 120: 300, 300: len(rows)}[start]
        merged.merge(measured(settings, rows[start:stop]))
    assert merged.dispositions == whole.dispositions
    for kind in ("overall", "domain", "response_type", "item"):
        assert score(settings, merged, kind) == score(settings, whole, kind)


def test_without_references_only_measures_that_need_none_are_there(tmp_path):
    recipe = scored_recipe(tmp_path)
    settings = settings_of(recipe, None)
    found = score(settings, measured(settings, rows_of(recipe, taught(recipe.seed))))
    names = {name for name, _ in found}
    assert {"validity", "survey_quality", "distinct1"} <= names
    assert not names & {"bleu", "rouge1", "exact_agreement", "stance_agreement"}
    assert conditioning(list(found.values()))["gain"] is None


def test_failed_cells_lower_validity_and_are_no_text(tmp_path):
    recipe = scored_recipe(tmp_path)
    people, items = people_and_items(recipe)
    closed = next(item for item in items if item.is_closed)
    label = closed.options[0]
    rows = [
        row(people[0], closed, text=f"{label}.", code=closed.codes[0], label=label),
        row(people[1], closed, disposition="error", error="out of memory"),
        row(people[2], closed, text="As an AI I cannot.", disposition="refusal"),
        row(people[3], closed, disposition="not_asked"),
        row(people[4], closed, text=f"{label}.", code=closed.codes[0], variant="reversed"),
    ]
    settings = settings_of(recipe)
    partial = measured(settings, rows)
    found = score(settings, partial)
    assert found["validity", "all"]["score"] == pytest.approx(1 / 3, abs=1e-8)
    assert (found["validity", "all"]["n"], found["bleu", "all"]["n"], found["distinct1", "all"]["n"]) == (3, 1, 1)
    assert partial.dispositions == {"complete": 2, "error": 1, "refusal": 1, "not_asked": 1}
    assert partial.variants == 1


def test_nothing_to_score_is_none_with_n_zero(tmp_path):
    recipe = scored_recipe(tmp_path)
    people, items = people_and_items(recipe)
    settings = settings_of(recipe)
    found = score(settings, measured(settings, [row(people[0], items[0], disposition="error")]))
    for name in ("bleu", "rouge1", "exact_agreement", "quadratic_kappa", "stance_agreement", "distinct2"):
        scores = found.get((name, "all"))
        assert scores is None or (scores["n"] == 0 and scores["score"] is None and scores["low"] is None)
    assert found["bleu", "all"]["gain"] is None


def test_a_response_to_an_unknown_item_or_of_an_unknown_persona_is_named(tmp_path):
    recipe = scored_recipe(tmp_path)
    people, items = people_and_items(recipe)
    stranger = [row(people[0], items[0], text="Yes.") | {"item_id": "nowhere.open.01"}]
    with pytest.raises(StorageError, match=r"nowhere\.open\.01"):
        measured(settings_of(recipe), stranger)
    with pytest.raises(StorageError, match="'nobody'"):
        measured(settings_of(recipe), [row(people[0], items[0], text="Yes.") | {"persona_id": "nobody"}])
