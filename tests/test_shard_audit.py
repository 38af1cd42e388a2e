"""pytest tests/test_shard_audit.py"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited_runs import (
    FIRST,
    HELD,
    ITEMS,
    SECOND,
    forget_events,
    make_run,
    rewrite,
    with_value,
)

from polypersona.ledger import Box, item_key
from polypersona.records import digest
from polypersona.shardfile import read_shard
from polypersona.storage import load_run
from polypersona.verify import verify

KEYS = tuple(item_key(item.item_id) for item in ITEMS)


def problems(run):
    return " ".join(verify(run).problems)


def test_a_row_that_was_edited_by_hand_is_found_though_the_footer_fits(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: with_value(table, "code", 0, 2))
    assert verify(run).problems == (f"{FIRST} is not the file that was committed: its hash differs.",)


def test_a_quarantined_row_that_was_edited_by_hand_is_found_though_the_footer_fits(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    rewrite(run, HELD, lambda table: with_value(table, "reason", 0, "no"), planned=4, committed=2, quarantined=2)
    assert verify(run).problems == (f"{HELD} is not the file that was committed: its hash differs.",)


def test_a_quarantine_file_with_other_counts_than_the_responses_is_found(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    forget_events(run)
    rewrite(run, HELD, lambda table: table)
    assert f"{HELD} was not written with {FIRST}: its counts differ." in problems(run)


def test_a_missing_row_is_found_though_the_footer_fits(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: table.slice(1))
    found = problems(run)
    assert "not the file that was committed" in found
    assert "Shard 0 holds 3 assignments; 4 are planned." in found
    assert "-1" in found


def test_a_row_that_moved_to_another_shard_is_found_though_the_footers_fit(tmp_path):
    run = make_run(tmp_path)
    forget_events(run)
    moved, _ = read_shard(run.read(FIRST), FIRST)
    moved = with_value(moved.slice(0, 1), "shard", 0, 1)
    rewrite(run, FIRST, lambda table: table.slice(1))
    rewrite(run, SECOND, lambda table: pa.concat_tables([table, moved]).unify_dictionaries())
    found = problems(run)
    assert "Shard 0 holds 3 assignments; 4 are planned." in found
    assert "Shard 1 holds 5 assignments; 4 are planned." in found
    assert "shard-00001-ab.parquet has rows of 3 personas; 2 are planned." in found


def test_rows_that_say_another_shard_are_found(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: with_value(table, "shard", 3, 2))
    assert "shard-00000-ab.parquet has rows of another shard." in verify(run).problems


def test_a_repeated_row_is_found(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: table.take([0, 1, 2, 0]))
    found = verify(run).problems
    assert "1 assignments are there more than once." in found
    assert "shard-00000-ab.parquet has personas with more or fewer assignments than are planned for them." in found


def test_a_row_of_somebody_who_was_never_asked_is_found(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: with_value(table, "persona_id", 0, "stranger"))
    found = problems(run)
    assert "1 rows whose id is not that of their persona" in found
    assert "3 personas; 2 are planned" in found


@pytest.mark.parametrize("own", ["0" * 16, "short", "", "F" * 16])
def test_an_id_that_does_not_follow_from_the_row_is_found(tmp_path, own):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: with_value(table, "assignment_id", 1, own))
    assert "shard-00000-ab.parquet has 1 rows whose id is not that of" in problems(run)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("item_id", "x.new.01", "items that are not planned: x.new.01"),
        ("variant", "reversed", "items that are not planned: x.likert.01#reversed"),
        ("wave", 2, "waves or draws that are not planned"),
        ("draw", 3, "waves or draws that are not planned"),
    ],
)
def test_a_row_of_what_was_never_asked_is_found_though_its_id_fits(tmp_path, column, value, problem):
    run = make_run(tmp_path)

    def change(table):
        table = with_value(table, column, 0, value)
        row = table.slice(0, 1).to_pylist()[0]
        parts = [row[name] for name in ("persona_id", "item_id", "variant", "wave", "draw")]
        return with_value(table, "assignment_id", 0, digest(*parts))

    rewrite(run, FIRST, change)
    found = problems(run)
    assert problem in found
    assert "rows whose id" not in found


def test_a_cell_that_an_earlier_layer_has_is_not_planned_in_a_later_one(tmp_path):
    run = make_run(tmp_path, size=2, boxes=[Box(2, KEYS[:1]), Box(2, KEYS)])
    first, _ = read_shard(run.read(FIRST), FIRST)
    rewrite(run, SECOND, lambda _: with_value(with_value(first, "shard", 0, 1), "shard", 1, 1))
    found = problems(run)
    assert "shard-00001-ab.parquet has rows of items that are not planned: x.likert.01." in found
    assert "2 assignments are there more than once." in found


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["rationale"]),
        lambda table: table.append_column("extra", pa.array([1] * table.num_rows)),
        lambda table: table.set_column(6, "wave", table.column("wave").cast(pa.int64())),
        lambda table: table.set_column(0, "assignment_id", pa.array([{"a": 1}] * table.num_rows)),
    ],
)
def test_rows_of_another_schema_are_found(tmp_path, change):
    run = make_run(tmp_path)
    table, footer = read_shard(run.read(FIRST), FIRST)
    metadata = table.schema.metadata
    changed = change(table)
    sink = pa.BufferOutputStream()
    pq.write_table(changed.replace_schema_metadata(metadata), sink)
    run.write(FIRST, sink.getvalue())
    assert f"{FIRST} has another schema." in verify(run).problems
    assert footer.shard == 0


def test_each_shard_of_a_test_split_holds_as_many_assignments_as_are_planned(tmp_path):
    run = make_run(tmp_path, asked=((0, 1), (0,), (1,), (0,), (0, 1), (0, 1)))
    assert load_run(run)["ledger"]["shard_cells"] == [3, 2, 4]
    moved, _ = read_shard(run.read(FIRST), FIRST)
    forget_events(run)
    assert verify(run).is_clean
    rewrite(run, FIRST, lambda table: table.slice(1))
    rewrite(run, SECOND, lambda table: pa.concat_tables([table, with_value(moved.slice(0, 1), "shard", 0, 1)]))
    found = problems(run)
    assert "Shard 0 holds 2 assignments; 3 are planned." in found
    assert "Shard 1 holds 3 assignments; 2 are planned." in found
