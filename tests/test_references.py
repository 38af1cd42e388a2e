"""Run: pytest tests/test_references.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_runs import people_and_items, scored_recipe, taught

from polypersona.engines.base import Answer
from polypersona.errors import RecipeError
from polypersona.examples import build_example
from polypersona.records import Item
from polypersona.references import DatasetReferences, TeacherReferences, refuse_unknown_items, rotation


@given(st.sets(st.text(max_size=6), max_size=30), st.integers(0, 9))
def test_a_rotation_gives_every_persona_another_one_and_uses_each_once(ids, seed):
    found = rotation(ids, seed)
    assert set(found) == set(found.values()) == (ids if len(ids) > 1 else set())
    assert all(mine != other for mine, other in found.items())
    assert found == rotation(sorted(ids, reverse=True), seed)


def test_the_teachers_reference_is_the_answer_it_gives_in_the_dataset(tmp_path):
    recipe = scored_recipe(tmp_path)
    people, items = people_and_items(recipe)
    references = TeacherReferences.build(people, items, recipe.seed, has_rationale=False)
    for item, given_answer in zip(items, taught(recipe.seed)(people[3], items), strict=True):
        found = references.own(people[3].persona_id, item.item_id)
        assert found == (given_answer["text"], given_answer["code"])
        other = references.next_persona[people[3].persona_id]
        assert references.shuffled(people[3].persona_id, item.item_id) == references.own(other, item.item_id)


def test_dataset_references_rotate_within_the_item_and_drop_a_rationale_nobody_asked_for(tmp_path):
    recipe = scored_recipe(tmp_path)
    people, items = people_and_items(recipe)
    item = next(item for item in items if item.is_closed)
    lonely = next(other for other in items if other is not item)
    label = item.options[0]
    examples = [
        build_example(
            person, item, Answer("x", f"{label}. Because of {n}.", "complete", "", item.codes[0], label), "labels"
        )
        for n, person in enumerate(people[:3])
    ]
    examples.append(build_example(people[0], lonely, Answer("y", "Only me.", "complete"), "labels"))
    kept = DatasetReferences.build(examples, 7, has_rationale=True, is_taught_by_rules=False)
    texts = {f"{label}. Because of {n}." for n in range(3)}
    assert {kept.own(person.persona_id, item.item_id).text for person in people[:3]} == texts
    assert {kept.shuffled(person.persona_id, item.item_id).text for person in people[:3]} == texts
    for person in people[:3]:
        assert kept.own(person.persona_id, item.item_id) != kept.shuffled(person.persona_id, item.item_id)
    assert kept.shuffled(people[0].persona_id, lonely.item_id) is None
    assert kept.own(people[9].persona_id, item.item_id) is None
    assert not kept.has_retest
    bare = DatasetReferences.build(examples, 7, has_rationale=False, is_taught_by_rules=True)
    assert bare.own(people[0].persona_id, item.item_id) == (f"{label}.", item.codes[0])
    assert bare.own(people[0].persona_id, lonely.item_id).text == "Only me."
    assert bare.has_retest
    assert bare.retest(people[0].persona_id, item.item_id).code in item.codes


def test_items_the_teacher_does_not_know_are_named():
    with pytest.raises(RecipeError, match=r"x\.open\.01"):
        refuse_unknown_items([Item("x.open.01", "x", "Why?", "open", construct="unheard_of")])
