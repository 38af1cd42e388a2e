from hypothesis import given
from hypothesis import strategies as st

from benchmarks import phrases, workload
from benchmarks.shapes import SHAPES


def encode(text):
    """One id per word: enough to count."""
    return [len(word) for word in text.split()]


def rows_of(personas, seed=0):
    return workload.build(personas, encode, seed)


def test_the_workload_is_the_same_every_time_and_another_with_another_seed():
    assert rows_of(4) == rows_of(4)
    assert rows_of(4) != rows_of(4, seed=1)


def test_every_persona_is_asked_twenty_items_of_which_57_percent_are_closed():
    for shape in SHAPES.values():
        rows = rows_of(shape.personas)
        assert len(rows) == shape.personas * 20
        assert len({(row.persona, row.item) for row in rows}) == len(rows)
        assert 0.57 <= workload.describe(rows)["closed_share"] < 0.58


def test_rows_share_the_opening_and_those_of_a_persona_the_card():
    for asked in workload.by_persona(rows_of(4)):
        assert len({tuple(row.ids[: row.prefix]) for row in asked}) == 1
        assert all(row.ids[: row.shared] == encode(phrases.opening()) for row in asked)
        assert all(row.shared < row.prefix < len(row.ids) for row in asked)


def test_closed_rows_have_one_letter_per_option_and_open_ones_none():
    rows = rows_of(2)
    assert {row.kind for row in rows} == {"closed", "open"}
    assert {len(row.options) for row in rows if row.kind == "closed"} <= {2, 5}
    assert {len(row.options) for row in rows if row.kind == "open"} == {0}


@given(st.integers(1, 20), st.integers(0, 1000))
def test_writing_the_mean_of_each_kind_writes_as_many_tokens_as_stopping_row_by_row(personas, seed):
    rows = rows_of(personas, seed)
    for kind, (low, high) in (("closed", workload.CLOSED_LENGTHS), ("open", workload.OPEN_LENGTHS)):
        lengths = [row.length for row in rows if row.kind == kind]
        assert low <= min(lengths)
        assert max(lengths) <= high
        assert sum(lengths) == workload.mean_length(rows, kind) * len(lengths)


def test_a_workload_comes_back_from_its_file(tmp_path):
    rows = rows_of(1)
    workload.save(rows, tmp_path / "rows.json")
    assert workload.load(tmp_path / "rows.json") == rows


def test_positions_count_what_is_shared_once_and_no_last_token():
    first = workload.Row(0, 0, [1, 2, 3, 4, 5], shared=2, prefix=3, length=4, options=[])
    second = workload.Row(0, 1, [1, 2, 3, 9], shared=2, prefix=3, length=8, options=[7, 8])
    # 2 shared, 1 of the persona, 2 and 1 of the questions; 3 and 7 written tokens are read again
    assert workload.positions([first, second], is_scored=False) == (16, 12)
    assert workload.positions([first, second], is_scored=True) == (9, 5)
