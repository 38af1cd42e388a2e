"""pytest tests/test_bisection.py"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.bisection import MAX_FOUND, MAX_SAMPLES, Search, search_from


def search(num_units, failing, max_tries=3):
    """Search to the end; return the search, its number of probes and that of failures."""
    state, probes, failures = Search.among(num_units), 0, 0
    while not state.is_over:
        state = search_from(json.loads(json.dumps(state.as_json())))  # as between two processes
        asked = set(range(state.probe.begin, state.probe.end))
        probes += 1
        failures += bool(asked & failing)
        state = state.failed("boom", max_tries) if asked & failing else state.answered()
    return state, probes, failures


@given(st.data())
def test_exactly_the_failing_units_are_found_wherever_a_sample_is_answered(data):
    num_units = data.draw(st.integers(2, 300))
    failing = data.draw(st.sets(st.integers(0, num_units - 1), max_size=MAX_SAMPLES - 1))
    state, _, _ = search(num_units, failing)
    if num_units <= len(failing):
        assert state.is_hopeless
    else:
        assert {found.unit for found in state.found} == failing
        assert all((found.tries, found.reason) == (3, "boom") for found in state.found)


def test_where_no_sample_is_answered_the_search_is_hopeless_after_few_failures():
    state, probes, failures = search(5000, set(range(5000)))
    assert state.is_hopeless
    assert state.found == ()
    assert probes == failures == MAX_SAMPLES


def test_one_failing_unit_of_thousands_costs_a_dozen_failures():
    for unit in (0, 1, 2499, 4999):
        _, probes, failures = search(5000, {unit})
        assert probes <= 30
        assert failures <= 16


def test_a_group_that_fails_though_no_unit_does_ends_without_a_find():
    state = Search.among(8)
    while not state.is_over:
        state = state.failed("full", 3) if state.probe.size > 2 else state.answered()
    assert state.found == ()
    assert not state.is_hopeless


def test_a_unit_that_fails_alone_but_not_every_time_is_innocent():
    state, fails = Search.among(2), iter([False, True, True, False, False])
    while not state.is_over:
        state = state.failed("flaky", 3) if next(fails) else state.answered()
    assert state.found == ()


def test_a_shard_with_too_many_failing_units_is_given_up():
    state, _, _ = search(4000, set(range(1, 4000, 4)) - {400, 1200, 2000, 2800, 3600})
    assert state.is_hopeless
    assert len(state.found) == MAX_FOUND + 1


@pytest.mark.parametrize("num_units", [2, 3, 5])
def test_few_units_are_sorted_out_as_long_as_one_is_answered(num_units):
    failing = set(range(num_units - 1))
    state, _, _ = search(num_units, failing)
    assert {found.unit for found in state.found} == failing
