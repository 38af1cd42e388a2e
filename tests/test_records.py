"""Ids follow from content alone and stay what they are for ever; records are frozen values."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.records import Assignment, Item, Persona, digest, seed_from

PARTS = st.tuples(st.text(), st.text(), st.text(), st.integers(1, 9), st.integers(1, 10**6))
LIKERT = Item("health.likert.01", "health", "I feel well.", "likert", ("No", "Maybe", "Yes"))


# Computed once with Python's hashlib; a change of any of them would orphan every response ever written.
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("p1", "healthcare.likert.03", "", 1, 1), "d4858799ddfdaad7"),
        (("p1", "healthcare.likert.03", "", 1, 2), "bec13e26e5fb1b37"),
        (("p1", "healthcare.likert.03", "reversed", 2, 1), "7521659cc6221f07"),
    ],
)
def test_assignment_ids_are_the_same_for_ever(parts, expected):
    assert Assignment(*parts).assignment_id == expected


def test_seeds_are_the_same_for_ever():
    assert Assignment("p1", "healthcare.likert.03").seed(7) == 2930466432225576079


@given(PARTS, PARTS)
def test_two_assignments_share_an_id_only_where_all_five_parts_are_equal(first, second):
    same = Assignment(*first).assignment_id == Assignment(*second).assignment_id
    assert same == (first == second)


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_a_digest_tells_where_one_part_ends_and_the_next_begins(parts):
    assert digest(*parts) != digest("".join(parts))


@given(st.integers(0, 2**40), PARTS)
def test_seeds_fit_a_signed_64_bit_column_and_depend_on_the_runs_seed(run_seed, parts):
    assignment = Assignment(*parts)
    assert 0 <= assignment.seed(run_seed) < 2**63
    assert assignment.seed(run_seed) != assignment.seed(run_seed + 1)
    assert assignment.seed(run_seed) == seed_from(run_seed, assignment.assignment_id)


def test_codes_are_one_to_k_unless_the_item_has_its_own():
    assert LIKERT.codes == (1, 2, 3)
    assert dataclasses.replace(LIKERT, codes=(0, 5, 9)).codes == (0, 5, 9)
    assert Item("x.open.01", "x", "Why?", "open").codes == ()


def test_an_item_with_options_is_closed():
    assert LIKERT.is_closed
    assert not Item("x.open.01", "x", "Why?", "open").is_closed


@pytest.mark.parametrize("record", [LIKERT, Persona("p1", {"age": 30}), Assignment("p1", "i1")])
def test_records_are_frozen_and_survive_pickling(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, "other")
    with pytest.raises((AttributeError, TypeError)):
        record.invented = 1
    assert pickle.loads(pickle.dumps(record)) == record
