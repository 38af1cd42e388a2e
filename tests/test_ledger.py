"""pytest tests/test_ledger.py"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.errors import StorageError
from polypersona.ledger import (
    Box,
    Ledger,
    committed_files,
    committed_shards,
    item_key,
    ledger_from,
    quarantine_number,
    shard_name,
    shard_number,
)
from polypersona.rounds import current_quarantine, delete_leftovers
from polypersona.storage import RunDirectory

# Names that end as a shard's file does: somebody's notes, copies, another way to write the number.
FOREIGN = (
    "notes-ab.parquet", "shard-ab.parquet", "shard-x-ab.parquet", "shard--1-ab.parquet", "shard-1-ab.parquet",
    "copy-00001-ab.parquet", "shard-00001-copy-ab.parquet", "shard-00001-rx-ab.parquet", "shard-00001-r01-ab.parquet",
)  # fmt: skip
BOXES = st.lists(
    st.builds(
        Box,
        personas=st.integers(1, 12),
        items=st.sets(st.sampled_from("abcde"), min_size=1).map(lambda keys: tuple(sorted(keys))),
        waves=st.integers(1, 3),
        draws=st.integers(1, 3),
    ),
    min_size=1,
    max_size=5,
)


def all_cells(ledger):
    """Return every cell of every shard as (persona, item key, wave, draw)."""
    cells = []
    for number in range(ledger.num_shards):
        shard = ledger.shard(number)
        box = ledger.layers[shard.layer].box
        for persona in range(shard.begin, shard.end):
            cells += [
                (persona, box.items[slot.item], slot.wave, slot.draw) for slot in ledger.slots(shard.layer, persona)
            ]
    return cells


def cells_of(box):
    return {
        (persona, key, wave, draw)
        for persona in range(box.personas)
        for key in box.items
        for wave in range(1, box.waves + 1)
        for draw in range(1, box.draws + 1)
    }


@settings(max_examples=200, deadline=None)
@given(boxes=BOXES, size=st.integers(1, 5))
def test_any_sequence_of_extensions_holds_every_cell_exactly_once(boxes, size):
    ledger = Ledger(size)
    for box in boxes:
        before = all_cells(ledger)
        ledger = ledger.extend(box)
        assert all_cells(ledger)[: len(before)] == before
    cells = all_cells(ledger)
    assert len(cells) == len(set(cells)) == ledger.num_cells
    assert set(cells) == set().union(*map(cells_of, boxes))
    assert sum(ledger.num_shard_cells(number) for number in range(ledger.num_shards)) == ledger.num_cells


@settings(max_examples=50, deadline=None)
@given(boxes=BOXES, size=st.integers(1, 5))
def test_no_shard_is_empty_and_json_gives_the_ledger_back(boxes, size):
    ledger = Ledger(size)
    for box in boxes:
        ledger = ledger.extend(box)
    assert all(ledger.num_shard_cells(number) > 0 for number in range(ledger.num_shards))
    assert ledger_from(json.loads(json.dumps(ledger.as_json()))) == ledger


def test_a_recipe_that_asks_for_no_more_adds_no_layer():
    ledger = Ledger(4).extend(Box(8, ("a", "b"), draws=2))
    assert ledger.extend(Box(8, ("b", "a"), draws=2)) is ledger
    assert ledger.extend(Box(5, ("a",))) is ledger


def test_a_larger_panel_adds_shards_of_the_new_personas_only():
    ledger = Ledger(4).extend(Box(10, ("a", "b")))
    grown = ledger.extend(Box(13, ("a", "b")))
    added = [grown.shard(number) for number in range(ledger.num_shards, grown.num_shards)]
    assert [(shard.begin, shard.end) for shard in added] == [(10, 12), (12, 13)]
    assert grown.num_cells - ledger.num_cells == 6


def test_persona_cells_come_by_wave_then_draw_then_item():
    ledger = Ledger(4).extend(Box(1, ("a", "b"), waves=2, draws=2))
    order = [(slot.wave, slot.draw, slot.item) for slot in ledger.slots(0, 0)]
    assert order == sorted(order)


def test_personas_may_be_asked_different_items():
    asked = [(0,), (0, 1), (), (1,)]
    ledger = Ledger(2).extend(Box(4, ("a", "b"), draws=2), asked=asked)
    assert ledger.num_cells == 8
    assert [ledger.num_shard_cells(number, asked) for number in range(ledger.num_shards)] == [6, 2]


def test_an_unknown_shard_is_named():
    with pytest.raises(StorageError, match="no shard 2"):
        Ledger(4).extend(Box(8, ("a",))).shard(2)


def test_shard_names_carry_their_number_in_order():
    assert shard_name(17, "ab") == "shard-00017-ab.parquet"
    assert shard_number("responses/shard-123456-ab.parquet", "ab") == 123456
    assert quarantine_number("quarantine/shard-00017-ab.parquet", "ab") == 17
    assert quarantine_number("quarantine/shard-00017-r12-ab.parquet", "ab") == 17


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_no_shard_is_named_like_is_none_of_the_runs(tmp_path, name):
    run = RunDirectory.at(tmp_path)
    for folder in ("responses", "quarantine"):
        run.write(f"{folder}/{shard_name(1, 'ab')}", b"x")
        run.write(f"{folder}/{name}", b"x")
    assert committed_files(run, "ab") == {1: f"responses/{shard_name(1, 'ab')}"}
    assert committed_shards(run, "ab") == {1}
    assert current_quarantine(run, "ab") == {1: f"quarantine/{shard_name(1, 'ab')}"}
    delete_leftovers(run, "ab")
    assert len(run.names("quarantine")) == 2  # somebody else's file is not the run's to delete


def test_variants_have_keys_of_their_own():
    assert item_key("x.likert.01") == "x.likert.01"
    assert item_key("x.likert.01", "negated") == "x.likert.01#negated"


def test_only_files_of_the_fingerprint_count_as_committed(tmp_path):
    run = RunDirectory.at(tmp_path)
    run.write(f"responses/{shard_name(3, 'ab')}", b"x")
    run.write(f"responses/{shard_name(4, 'cd')}", b"x")
    run.write(f"quarantine/{shard_name(5, 'ab')}", b"x")
    assert committed_shards(run, "ab") == {3}
