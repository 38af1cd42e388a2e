"""A retry of a shard's quarantined rows: which cells it asks again, and what becomes of the rows.

What is answered moves into the committed rows, in the order of the plan; the rest stays quarantined with its new
reason. `attempts` add up. Where an interview is one conversation, it is held again as a whole, because its answers
stand in each other's prompts, and replaces the earlier one unless it would lose an answer that was committed. Takes and
gives tables; knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from polypersona.response_table import AskedCell, ShardRows, compact


def cells_to_retry(cells: Sequence[AskedCell], quarantined: Collection[str], *, is_interview: bool) -> list[AskedCell]:
    """Return the cells that are asked again.

    Args:
        cells: the shard's cells.
        quarantined: the assignment ids of its quarantined rows.
        is_interview: an interview is one conversation.
    """
    if not is_interview:
        return [asked for asked in cells if asked.cell.assignment_id in quarantined]
    interviews = {asked.interview for asked in cells if asked.cell.assignment_id in quarantined}
    return [asked for asked in cells if asked.interview in interviews]


def merge_rows(cells: Sequence[AskedCell], earlier: ShardRows, again: ShardRows, *, is_interview: bool) -> ShardRows:
    """Return the shard's rows after a retry.

    Args:
        cells: all of the shard's cells, which give the order.
        earlier: all of its rows before.
        again: the rows of the cells that were asked again.
        is_interview: an interview is one conversation.
    """
    again = _with_earlier_attempts(earlier, again)
    if is_interview:
        again = _without_losses(cells, earlier, again)
    replaced = pa.concat_arrays([_ids(again.committed), _ids(again.quarantined)])
    order = pa.array([asked.cell.assignment_id for asked in cells])
    return ShardRows(
        _merge(earlier.committed, again.committed, replaced, order),
        _merge(earlier.quarantined, again.quarantined, replaced, order),
    )


def _with_earlier_attempts(earlier: ShardRows, again: ShardRows) -> ShardRows:
    ids = pa.concat_arrays([_ids(earlier.committed), _ids(earlier.quarantined)])
    counts = pa.concat_arrays(
        [table.column("attempts").combine_chunks() for table in (earlier.committed, earlier.quarantined)]
    )

    def add(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("attempts")
        before = counts.take(pc.index_in(_ids(table), value_set=ids))
        total = pc.min_element_wise(
            pc.add(table.column(index).cast(pa.int32()), before.cast(pa.int32())), pa.scalar(2**15 - 1, pa.int32())
        )
        return table.set_column(index, table.schema.field(index), total.cast(table.schema.field(index).type))

    return ShardRows(add(again.committed), add(again.quarantined))


def _without_losses(cells: Sequence[AskedCell], earlier: ShardRows, again: ShardRows) -> ShardRows:
    """Leave out the interviews in which a cell failed that has a committed row."""
    interviews = {asked.cell.assignment_id: asked.interview for asked in cells}
    lost = set(_ids(earlier.committed).to_pylist()) & set(_ids(again.quarantined).to_pylist())
    worse = {interviews[id_] for id_ in lost}

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pa.array([interviews[id_] not in worse for id_ in _ids(table).to_pylist()], pa.bool_()))

    return ShardRows(keep(again.committed), keep(again.quarantined)) if worse else again


def _merge(earlier: pa.Table, again: pa.Table, replaced: pa.Array, order: pa.Array) -> pa.Table:
    kept = earlier.filter(pc.invert(pc.is_in(_ids(earlier), value_set=replaced)))
    merged = pa.concat_tables([_plain(kept), _plain(again)])
    places = pc.index_in(_ids(merged), value_set=order)
    return compact(merged.take(pc.sort_indices(places)).cast(again.schema).combine_chunks())


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with its dictionaries written out, as those of two tables differ."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _ids(table: pa.Table) -> pa.Array:
    return table.column("assignment_id").combine_chunks()
