"""Ratings on the disk: nothing acknowledged is lost, and nothing half-written counts."""

import pyarrow.fs as pafs
import pytest
from annotated_runs import annotated_run, write_humans

from polypersona.annotation.session import open_session
from polypersona.annotation.store import (
    SAMPLE,
    Rating,
    append_rating,
    check_rater,
    load_rater,
    load_raters,
    load_sample,
)
from polypersona.errors import PolypersonaError, StorageError
from polypersona.storage import RunDirectory


@pytest.fixture
def s3_run(monkeypatch):
    """A run on a real S3 server (moto) on this machine."""
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, "true")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    fs, path = pafs.FileSystem.from_uri(f"s3://rated{options}&allow_bucket_creation=true")
    fs.create_dir(path)
    yield RunDirectory.at(f"s3://rated/runs/toy{options}")
    server.stop()


def rating(entry="e1", realism=4, **changes):
    return Rating(**{"entry": entry, "realism": realism, "consistency": 2, "guess": "human", **changes})


def test_ratings_are_lines_that_are_only_added_and_the_last_of_an_entry_counts(tmp_path):
    run = RunDirectory.at(tmp_path)
    append_rating(run, "anna", rating())
    before = run.read("annotations/anna.jsonl")
    append_rating(run, "anna", rating("e2"))
    append_rating(run, "anna", rating(realism=1))
    append_rating(run, "bo", rating(realism=5))
    assert run.read("annotations/anna.jsonl").startswith(before)
    assert run.read("annotations/anna.jsonl").count(b"\n") == 3
    anna, bo = load_raters(run)
    assert {name: one.realism for name, one in anna.ratings.items()} == {"e1": 1, "e2": 4}
    assert (bo.rater, bo.ratings["e1"].realism) == ("bo", 5)


def test_on_an_object_store_ratings_are_kept_as_well(s3_run):
    for entry in ("e1", "e2"):
        append_rating(s3_run, "anna", rating(entry))
    assert set(load_rater(s3_run, "anna").ratings) == {"e1", "e2"}
    assert [one.rater for one in load_raters(s3_run)] == ["anna"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_crash_cut_off_swallows_neither_its_neighbours_nor_the_next(tmp_path, cut):
    run = RunDirectory.at(tmp_path)
    for entry in ("e1", "e2"):
        append_rating(run, "anna", rating(entry))
    path = run.local_path("annotations/anna.jsonl")
    path.write_bytes(path.read_bytes()[: -1 - cut])
    append_rating(run, "anna", rating("e3"))
    found = load_rater(run, "anna")
    assert set(found.ratings) == {"e1", "e3"}
    assert found.num_broken == 1


def test_a_line_that_only_lacks_its_end_counts(tmp_path):
    run = RunDirectory.at(tmp_path)
    append_rating(run, "anna", rating())
    path = run.local_path("annotations/anna.jsonl")
    path.write_bytes(path.read_bytes()[:-1])
    append_rating(run, "anna", rating("e2"))
    assert set(load_rater(run, "anna").ratings) == {"e1", "e2"}


def test_a_line_that_is_no_rating_is_named(tmp_path):
    run = RunDirectory.at(tmp_path)
    run.write("annotations/anna.jsonl", b'{"entry": "e1", "realism": 9, "consistency": 1, "guess": "human"}\n')
    with pytest.raises(StorageError, match=r"line 1: this is no rating \(realism is 9"):
        load_rater(run, "anna")


def test_a_full_or_forbidden_place_is_named_and_a_link_is_not_followed(tmp_path):
    run = RunDirectory.at(tmp_path / "run")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine\n")
    run.write("annotations/other.jsonl", b"")
    run.local_path("annotations/anna.jsonl").symlink_to(outside)
    with pytest.raises(StorageError, match="a link there leads out"):
        append_rating(run, "anna", rating())
    assert outside.read_text() == "mine\n"
    run.local_path("annotations/bo.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        append_rating(run, "bo", rating())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "sample", "a" * 41, ".x", "ä"])
def test_a_rater_whose_name_is_no_file_name_is_refused(name):
    with pytest.raises(PolypersonaError, match="cannot be called"):
        check_rater(name)
    assert check_rater(" Anna-2 ") == "anna-2"


def test_a_session_goes_on_where_it_ended_and_all_raters_see_the_same(tmp_path):
    run = annotated_run(tmp_path)
    first = open_session(run, 10, "anna")
    first.rate({"entry": first.entries[0].entry_id, "realism": 5, "consistency": 4, "guess": "human", "seconds": 3.5})
    again, other = open_session(run, 10, "Anna"), open_session(run, 10, "bo")
    assert again.entries == first.entries == other.entries
    assert (again.num_rated, other.num_rated) == (1, 0)
    assert again.ratings[first.entries[0].entry_id].at.endswith("+00:00")
    assert again.as_json()["ratings"] == {first.entries[0].entry_id: {"realism": 5, "consistency": 4, "guess": "human"}}


def test_a_sample_grows_without_changing_what_was_rated(tmp_path):
    run = annotated_run(tmp_path)
    small = open_session(run, 10, "anna")
    large = open_session(run, 30, "anna")
    assert large.entries[:10] == small.entries
    assert len(load_sample(run).entries) == 30
    assert open_session(run, 10, "bo").entries == small.entries
    assert len(load_sample(run).entries) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": "none"}, "no such entry"), ({"realism": 6}, "realism is 6"), ({"realism": True}, "realism is True"),
        ({"consistency": None}, "consistency is None"), ({"guess": "robot"}, "guess is 'robot'"),
        ({"seconds": -1}, "seconds is -1"), ({"seconds": "1"}, "seconds is '1'"), ({"entry": 3}, "names its entry"),
    ],
)  # fmt: skip
def test_what_is_no_rating_is_not_kept(tmp_path, changes, message):
    session = open_session(annotated_run(tmp_path), 5, "anna")
    good = {"entry": session.entries[0].entry_id, "realism": 1, "consistency": 1, "guess": "human"}
    with pytest.raises(ValueError, match=message):
        session.rate({**good, **changes})
    assert session.num_rated == 0
    assert not session.run.exists("annotations/anna.jsonl")


def test_human_answers_are_not_mixed_into_a_sample_that_was_rated_without_them(tmp_path):
    run, human = annotated_run(tmp_path), write_humans(tmp_path)
    assert not any(entry.kind == "human" for entry in open_session(run, 12, "anna").entries)
    session = open_session(run, 12, "anna", human)  # nothing was rated yet
    assert sum(entry.kind == "human" for entry in session.entries) == 4
    session.rate({"entry": session.entries[0].entry_id, "realism": 1, "consistency": 1, "guess": "human"})
    assert open_session(run, 12, "bo").entries == session.entries
    assert len(open_session(run, 24, "bo", human).entries) == 24
    with pytest.raises(StorageError, match="was drawn with human ones"):
        open_session(run, 36, "bo")
    (tmp_path / "more").mkdir()
    with pytest.raises(StorageError, match="drawn with other human answers"):
        open_session(run, 12, "bo", write_humans(tmp_path / "more", 3))


def test_a_run_without_answers_and_a_sample_that_is_none_are_named(tmp_path):
    with pytest.raises(StorageError, match="There are no responses"):
        open_session(RunDirectory.at(tmp_path / "none"), 5, "anna")
    run = annotated_run(tmp_path)
    run.write(SAMPLE, b'{"sample_version": 99}')
    with pytest.raises(StorageError, match="no sample that this version reads"):
        open_session(run, 5, "anna")
