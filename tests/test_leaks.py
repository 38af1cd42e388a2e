"""The leak report counts what it should, on small cases and on a public dataset that leaks."""

import pytest

from polypersona.leaks import find_leaks
from polypersona.records import Example
from polypersona.records_loader import load_records


def row(persona, question, reference, row_id="r"):
    return Example(row_id, (), {"persona_id": persona, "question": question, "reference": reference})


def test_splits_that_share_nothing_have_no_leak():
    report = find_leaks([row("a", "q", "x")], [row("b", "q", "x")], [row("c", "q", "x")])
    counts = report["leaks"]["test_in_train"]
    assert counts["shared_personas"] == counts["rows_with_shared_pair"] == counts["duplicate_rows"] == 0
    assert counts["shared_questions"] == 1
    assert report["repeats"]["repeated_pairs"] == report["repeats"]["contradictions"] == 0
    assert report["synthetic"] is True


def test_a_persona_a_pair_and_a_row_that_leak_are_counted_apart():
    train = [row("a", "q1", "x"), row("a", "q2", "y")]
    test = [row("a", "q1", "x"), row("a", "q2", "z"), row("a", "q3", "x"), row("b", "q1", "x"), row("a", "q1", "w")]
    assert find_leaks(train, [], test)["leaks"]["test_in_train"] == {
        "rows": 5,
        "personas": 2,
        "shared_personas": 1,
        "rows_with_shared_persona": 4,
        "questions": 3,
        "shared_questions": 2,
        "shared_pairs": 2,
        "rows_with_shared_pair": 3,
        "duplicate_rows": 1,
    }


def test_repeats_and_contradictions_are_counted_within_a_split_too():
    rows = [row("a", "q", "yes"), row("a", "q", "yes", "r-dup1"), row("a", "q", "no"), row("b", "q", "yes")]
    assert find_leaks(rows, [], [])["repeats"] == {
        "rows": 4,
        "personas": 2,
        "questions": 1,
        "pairs": 2,
        "repeated_pairs": 1,
        "contradictions": 1,
        "duplicate_rows": 1,
        "ids_marked_duplicate": 1,
    }


def test_the_public_replication_is_found_to_leak(test_data):
    splits = load_records(str(test_data / "polypersona_replication" / "data"), "labels").splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [2854, 356, 358]
    report = find_leaks(splits["train"], splits["validation"], splits["test"])
    counts = report["leaks"]["test_in_train"]
    assert (counts["shared_personas"], counts["personas"]) == (239, 239)
    assert (counts["rows_with_shared_persona"], counts["rows"]) == (358, 358)
    assert (counts["rows_with_shared_pair"], counts["shared_pairs"]) == (180, 170)
    assert counts["duplicate_rows"] == 111
    repeats = report["repeats"]
    assert (repeats["contradictions"], repeats["repeated_pairs"]) == (505, 861)
    assert repeats["ids_marked_duplicate"] == 589
    assert (repeats["rows"], repeats["personas"]) == (3568, 433)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_one_split_alone_leaks_nothing_into_the_others(split):
    rows = {"train": [], "validation": [], "test": [], split: [row("a", "q", "x")]}
    report = find_leaks(rows["train"], rows["validation"], rows["test"])
    assert all(counts["shared_personas"] == 0 for counts in report["leaks"].values())
