"""pytest tests/test_attempts.py"""

import pytest

from polypersona.attempts import DEATH, LOADING_DEATH, AttemptCounter
from polypersona.storage import RunDirectory

UNITS = 8


def counter(tmp_path, session="one", max_attempts=3, **options):
    return AttemptCounter(RunDirectory.at(tmp_path), "ab", session, max_attempts, **options)


def ask(tmp_path, failing, dies=True, number=7, **options):
    """Go on as processes that answer, raise or die would, until the shard is answered or given up.

    Returns the attempts at the end and how often something failed.
    """
    failures = 0
    while True:
        attempts = counter(tmp_path, **options)
        known = attempts.begin(number, UNITS)
        if known.verdict:
            return known, failures
        asked = known.asked(UNITS)
        if failing & set(asked):
            failures += 1
            if not dies:
                attempts.fail(number, "boom", UNITS)
        elif known.search is not None:
            attempts.answer(number, UNITS)
        else:
            return known, failures


def test_an_attempt_that_the_same_session_begins_again_was_a_death(tmp_path):
    assert counter(tmp_path).begin(7, UNITS).failures == ()
    assert counter(tmp_path).begin(7, UNITS).failures == (DEATH,)
    assert counter(tmp_path).begin(7, UNITS).failures == (DEATH, DEATH)


def test_an_attempt_begun_by_a_killed_driver_is_no_failure(tmp_path):
    counter(tmp_path, "one").begin(7, UNITS)
    assert counter(tmp_path, "two").begin(7, UNITS).failures == ()


def test_an_attempt_whose_node_is_gone_is_no_failure_and_is_told(tmp_path):
    told = []
    first = counter(tmp_path, node="n1", is_alive=lambda node: True)
    first.begin(7, UNITS)
    second = counter(
        tmp_path, node="n2", is_alive=lambda node: node != "n1", note=lambda event, **facts: told.append((event, facts))
    )
    assert second.begin(7, UNITS).failures == ()
    assert told == [("lost with its node", {"shard": 7, "node": "n1"})]
    assert second.begin(7, UNITS).failures == (DEATH,)


def test_confirmed_failures_outlive_the_driver(tmp_path):
    first = counter(tmp_path, "one")
    first.begin(7, UNITS)
    first.fail(7, "boom", UNITS)
    first.begin(7, UNITS)
    first.begin(7, UNITS)
    assert counter(tmp_path, "two").begin(7, UNITS).failures == ("boom", DEATH)


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("failing", [{0}, {7}, {2, 3}, {0, 4, 6}])
def test_the_units_that_fail_alone_are_isolated_and_the_rest_is_asked_in_one_go(tmp_path, failing, dies):
    known, _ = ask(tmp_path, failing, dies)
    assert {found.unit for found in known.poisoned} == failing
    assert known.asked(UNITS) == [unit for unit in range(UNITS) if unit not in failing]
    reason = "the process died each time it answered this: 3 times with its shard and 3 times alone" if dies else "boom"
    assert {(found.reason, found.tries) for found in known.poisoned} == {(reason, 6)}


def test_a_search_goes_on_in_another_session_and_ends_the_same(tmp_path):
    whole, _ = ask(tmp_path / "whole", {1, 5})
    for session in map(str, range(1000)):
        attempts = counter(tmp_path / "torn", session)
        known = attempts.begin(7, UNITS)
        if not {1, 5} & set(known.asked(UNITS)):
            if known.search is None:
                break
            attempts.answer(7, UNITS)
        elif int(session) % 3 == 0:  # the driver was killed with its actor, which says nothing
            continue
        else:
            counter(tmp_path / "torn", session).begin(7, UNITS)  # it outlived the actor
    assert known.poisoned == whole.poisoned


def test_where_nothing_is_answered_the_shard_is_given_up_with_the_last_reason(tmp_path):
    known, failures = ask(tmp_path, set(range(UNITS)), dies=False)
    assert known.verdict == "boom"
    assert known.poisoned == ()
    assert failures == 3 + 5
    assert counter(tmp_path, "later").begin(7, UNITS).verdict == "boom"


def test_a_shard_that_fails_only_as_a_whole_is_given_up_and_says_so(tmp_path):
    attempts = counter(tmp_path)
    while not (known := attempts.begin(7, UNITS)).verdict:
        if len(known.asked(UNITS)) == UNITS:
            attempts.fail(7, "out of memory", UNITS)
        else:
            attempts.answer(7, UNITS)
    assert known.verdict == "out of memory, though each of its parts alone is answered"


def test_a_shard_that_fails_by_chance_is_answered_after_its_search(tmp_path):
    attempts = counter(tmp_path)
    for _ in range(3):
        attempts.begin(7, UNITS)
    while (known := attempts.begin(7, UNITS)).search is not None:
        attempts.answer(7, UNITS)
    assert known.asked(UNITS) == list(range(UNITS))
    assert (known.poisoned, known.verdict) == ((), "")


def test_a_model_that_cannot_be_loaded_is_blamed_on_no_unit(tmp_path):
    attempts = counter(tmp_path)
    for _ in range(2):
        attempts.begin(7, UNITS, is_loading=True)
        attempts.fail_loading(7, "no such device")
    attempts.begin(7, UNITS, is_loading=True)
    known = attempts.begin(7, UNITS, is_loading=True)
    assert known.verdict == LOADING_DEATH
    assert known.load_failures == ("no such device", "no such device", LOADING_DEATH)
    assert known.search is None


def test_a_death_after_the_model_was_loaded_is_the_shards_own(tmp_path):
    attempts = counter(tmp_path)
    attempts.begin(7, UNITS, is_loading=True)
    attempts.loaded(7)
    assert attempts.begin(7, UNITS, is_loading=True).failures == (DEATH,)


def test_a_committed_shard_is_forgotten_and_a_retry_counts_for_itself(tmp_path):
    first, again = counter(tmp_path), counter(tmp_path, round=2)
    first.begin(7, UNITS)
    first.fail(7, "boom", UNITS)
    assert again.begin(7, UNITS).failures == ()
    first.clear(7)
    assert first.read(7).failures == ()
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir()) == ["shard-00007-r2-ab.json"]
