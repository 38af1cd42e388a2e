from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.errors import StorageError
from polypersona.report.tally import Tally, box_statistics, stream_rows
from polypersona.storage import RunDirectory


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60))
def test_box_figures_equal_those_of_the_listed_values(values):
    box = box_statistics(Counter(values), max_outliers=1000)
    first, median, third = np.percentile(values, (25, 50, 75))
    assert (box.first, box.median, box.third) == pytest.approx((first, median, third))
    assert box.mean == pytest.approx(np.mean(values))
    reach = 1.5 * (third - first)
    outside = [value for value in values if not first - reach <= value <= third + reach]
    assert box.num_outliers == len(outside)
    assert set(box.outliers) == set(outside)
    assert box.low <= box.first <= box.median <= box.third <= box.high


def test_no_values_have_no_box():
    assert box_statistics({}) is None


def test_counts_equal_those_of_the_listed_rows(tmp_path):
    run = write_run(toy_recipe(tmp_path), toy_personas(12), toy_items())
    tables = list(stream_rows(run))
    rows = pa.concat_tables(tables).to_pylist()
    tally = Tally()
    for table in tables:
        tally.add(table)
    assert tally.num_rows == len(rows)
    assert tally.num_personas == len({row["persona_id"] for row in rows})
    assert tally.by(0) == Counter(row["domain"] for row in rows)
    assert tally.by(2) == Counter(row["disposition"] for row in rows)
    assert tally.new_tokens == sum(row["new_tokens"] for row in rows)
    codes = Counter((row["item_id"], row["code"]) for row in rows if row["code"] is not None)
    assert {(item, code): n for item, entry in tally.items.items() for code, n in entry.counts.items()} == codes
    item = next(iter(tally.items))
    listed = np.array([row["option_probs"] for row in rows if row["item_id"] == item])
    np.testing.assert_allclose(tally.items[item].probability_sum, listed.sum(axis=0))
    lengths = Counter(
        len(row["text"])
        for row in rows
        if row["domain"] == "finance" and row["response_type"] == "open" and row["disposition"] != "refusal"
    )
    assert tally.lengths["finance", True] == lengths


def test_a_damaged_file_is_named(tmp_path):
    run = RunDirectory.at(tmp_path)
    run.write("responses/shard-00000-x.parquet", b"not parquet")
    with pytest.raises(StorageError, match=r"shard-00000-x\.parquet"):
        list(stream_rows(run))
