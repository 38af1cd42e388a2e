import random

import pyarrow as pa
import pytest
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.report.sample import Sample
from polypersona.report.tally import stream_rows


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    run = write_run(toy_recipe(tmp_path_factory.mktemp("run")), toy_personas(40), toy_items(), quarantined=0)
    return pa.concat_tables(stream_rows(run))


def take(table, order, **limits):
    sample = Sample(**limits)
    for start in range(0, len(order), 7):
        sample.add(table.take(order[start : start + 7]))
    return sample


def test_a_small_run_is_shown_whole(table):
    sample = take(table, list(range(len(table))))
    assert sample.is_everything
    assert sum(map(len, sample.rows.values())) == len(table) == sample.num_rows


@pytest.mark.parametrize("limits", [{"max_personas": 7}, {"max_rows": 61}, {"max_characters": 4000}])
def test_the_sample_keeps_its_limit_and_whole_personas_whatever_the_order(table, limits):
    order = list(range(len(table)))
    first = take(table, order, **limits)
    random.Random(1).shuffle(order)
    second = take(table, order, **limits)
    assert not first.is_everything
    assert first.personas() == second.personas()
    assert all(len(first.rows[persona]) == 12 for persona in first.personas())
    size = {"max_personas": len(first.rows), "max_rows": first.num_rows}
    size["max_characters"] = sum(len(row["text"]) for rows in first.rows.values() for row in rows)
    assert all(size[name] <= limit for name, limit in limits.items())
    larger = take(table, order, **{name: 2 * limit for name, limit in limits.items()})
    assert larger.personas()[: len(first.rows)] == first.personas()


def test_a_single_persona_with_too_many_rows_is_cut(table):
    sample = take(table, list(range(12)), max_rows=5)
    assert [len(rows) for rows in sample.rows.values()] == [5]
    assert not sample.is_everything
