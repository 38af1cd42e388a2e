"""A report of a million responses is a file that can be sent by mail, made without holding the responses."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from report.made_up import write_adapters, write_battery
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.parquet import read_parquet
from polypersona.report import stage
from polypersona.shardfile import Footer, render_shard
from polypersona.storage import RESPONSE_SCHEMA

MEGABYTE = 1_000_000
PERSONAS, PER_PERSONA, COPIES = 500, 40, 51


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_of_a_million_responses_stays_under_five_megabytes(tmp_path):
    recipe = toy_recipe(tmp_path)
    long = dict.fromkeys(range(0, 20000, 3), "A thoughtful answer of some length, as people give them. " * 8)
    run = write_run(recipe, toy_personas(PERSONAS), toy_items(None), per_persona=PER_PERSONA, texts=long, quarantined=0)
    write_adapters(run, [f"adapter-{place}" for place in range(12)])
    write_battery(run)
    names = run.names("responses", ".parquet")
    rows = pa.concat_tables([read_parquet(run.local_path(name)).cast(RESPONSE_SCHEMA) for name in names])
    for name in names:
        run.delete(name)
    for copy in range(COPIES):
        people = pc.binary_join_element_wise(rows["persona_id"].cast(pa.string()), f"copy {copy}", " ")
        place = rows.schema.get_field_index("persona_id")
        field = rows.schema.field(place)
        table = rows.set_column(place, field, people.cast(field.type))
        footer = Footer("f00d", copy, table.num_rows, table.num_rows, 0)
        run.write(f"responses/shard-{copy:05d}-f00d.parquet", render_shard(table, footer))
    found = stage.run(recipe)
    assert found["rows"] == PERSONAS * PER_PERSONA * COPIES > 1_000_000
    assert found["bytes"] < 5 * MEGABYTE
