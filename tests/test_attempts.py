"""pytest tests/test_attempts.py"""

from polypersona.attempts import AttemptCounter
from polypersona.storage import RunDirectory


def counter(tmp_path, session, max_attempts=3):
    return AttemptCounter(RunDirectory.at(tmp_path), "ab", session, max_attempts)


def test_an_attempt_that_the_same_session_begins_again_was_a_death(tmp_path):
    first = counter(tmp_path, "one")
    assert first.begin(7).failures == ()
    assert len(first.begin(7).failures) == 1
    assert len(first.begin(7).failures) == 2


def test_an_attempt_begun_by_a_killed_driver_is_no_failure(tmp_path):
    counter(tmp_path, "one").begin(7)
    assert counter(tmp_path, "two").begin(7).failures == ()


def test_confirmed_failures_outlive_the_driver_and_exhaust_the_shard(tmp_path):
    first = counter(tmp_path, "one")
    first.begin(7)
    first.fail(7, "boom")
    first.begin(7)
    first.begin(7)
    second = counter(tmp_path, "two")
    attempts = second.begin(7)
    assert attempts.failures[0] == "boom"
    assert len(attempts.failures) == 2
    assert not second.is_exhausted(attempts)
    second.fail(7, "again")
    assert second.is_exhausted(second.begin(7))


def test_a_committed_shard_is_forgotten(tmp_path):
    attempts = counter(tmp_path, "one")
    attempts.begin(7)
    attempts.fail(7, "boom")
    attempts.clear(7)
    assert attempts.read(7).failures == ()
