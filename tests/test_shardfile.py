"""pytest tests/test_shardfile.py"""

from dataclasses import replace

import pyarrow as pa
import pytest
from response_rows import CLOSED_ROW, make_table

from polypersona.errors import StorageError
from polypersona.shardfile import (
    Footer,
    content_hash,
    read_footer,
    read_shard,
    render_shard,
)
from polypersona.storage import RESPONSE_SCHEMA

ROW = CLOSED_ROW
OPEN = {
    **ROW, "assignment_id": "ff", "code": None, "option_probs": None, "options_as_shown": None, "label": "",
    "text": "Well, ünï.",
}  # fmt: skip
FOOTER = Footer("ab", 3, 2, 2, 0)


def test_the_same_rows_give_the_same_bytes():
    assert render_shard(make_table([ROW, OPEN]), FOOTER) == render_shard(make_table([ROW, OPEN]), FOOTER)


def test_rows_and_footer_come_back_as_they_were():
    table, footer = read_shard(render_shard(make_table([ROW, OPEN]), FOOTER), "a file")
    assert table.schema.equals(RESPONSE_SCHEMA)
    assert table.num_rows == 2
    assert table.column("text").to_pylist() == ["Agree.", "Well, ünï."]
    assert table.column("option_probs").to_pylist()[1] is None
    assert table.schema.metadata[b"synthetic"] == b"true"
    assert replace(footer, content_hash="") == FOOTER
    assert footer.content_hash == content_hash(table)


def test_a_shard_without_rows_keeps_its_schema():
    table, footer = read_shard(render_shard(make_table([]), Footer("ab", 3, 0, 0, 0)), "a file")
    assert table.schema.equals(RESPONSE_SCHEMA)
    assert table.num_rows == 0
    assert footer.content_hash == content_hash(table)


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "Agree!"},
        {"code": 5},
        {"code": None},
        {"option_probs": None},
        {"option_probs": (0.1, 0.8)},
        {"weight": 1.0},
        {"seed": 1},
        {"disposition": "refusal"},
    ],
)
def test_the_content_hash_sees_every_column(changed):
    assert content_hash(make_table([ROW])) != content_hash(make_table([{**ROW, **changed}]))


def test_the_content_hash_ignores_chunks_and_dictionaries():
    whole = make_table([ROW, OPEN])
    chunked = pa.concat_tables([make_table([ROW]), make_table([OPEN])])
    plain = whole.set_column(1, "persona_id", whole.column("persona_id").cast(pa.string()))
    assert content_hash(whole) == content_hash(chunked) == content_hash(plain)


def test_the_content_hash_tells_where_one_text_ends():
    first = [{**ROW, "text": "ab"}, {**ROW, "text": "c"}]
    second = [{**ROW, "text": "a"}, {**ROW, "text": "bc"}]
    assert content_hash(make_table(first)) != content_hash(make_table(second))


def test_the_round_of_a_retry_stands_in_the_footer_of_a_retry_only():
    first, later = (render_shard(make_table([ROW]), replace(FOOTER, round=number)) for number in (0, 2))
    assert read_shard(first, "a file")[1].round == 0
    assert b"round" not in read_shard(first, "a file")[0].schema.metadata
    assert read_shard(later, "a file")[1].round == 2


def test_a_damaged_file_is_named():
    with pytest.raises(StorageError, match="a file is damaged"):
        read_shard(b"PAR1 nonsense", "a file")


@pytest.mark.parametrize("broken", [{"shard": ""}, {"planned": None}, {"fingerprint": None}])
def test_a_file_whose_footer_is_not_a_shards_is_named(broken):
    stored = {"schema_version": "1", "shard": "0", "planned": "0", "committed": "0", "quarantined": "0"}
    stored |= {"fingerprint": "f", "content_hash": "c"} | broken
    schema = RESPONSE_SCHEMA.with_metadata({key: value for key, value in stored.items() if value is not None})
    with pytest.raises(StorageError, match="a file is no shard of a run"):
        read_footer(schema, "a file")


def test_a_file_of_another_schema_version_is_refused():
    schema = make_table([ROW]).schema.with_metadata({"schema_version": "9"})
    with pytest.raises(StorageError, match="schema version 9"):
        read_footer(schema, "a file")
