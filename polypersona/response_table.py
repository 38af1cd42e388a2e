"""Cells and their answers → the tables that a shard's files hold: column by column, with no object for a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa

from polypersona.engines.base import Answer, Cell
from polypersona.errors import EngineError
from polypersona.gates import FAILED
from polypersona.records import Item, Persona
from polypersona.shardfile import QUARANTINE_SCHEMA
from polypersona.storage import RESPONSE_SCHEMA

NO_OPTION = "the answer is none of the options"
_ORDER_TYPE = RESPONSE_SCHEMA.field("options_as_shown").type
Value = TypeVar("Value")


class AskedCell(NamedTuple):
    """A cell with what its row needs besides the answer."""

    persona: Persona
    wave: int
    draw: int
    cell: Cell

    @property
    def interview(self) -> tuple[str, int, int]:
        """Persona, wave and draw: the cells among which routing looks for gates."""
        return self.persona.persona_id, self.wave, self.draw


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of a shard: those that are committed, and those that failed with their reason.

    `committed` is of `storage.RESPONSE_SCHEMA`, `quarantined` of `shardfile.QUARANTINE_SCHEMA`; both keep the order of
    the cells.
    """

    committed: pa.Table
    quarantined: pa.Table


def build_shard_rows(
    shard: int,
    cells: Sequence[AskedCell],
    answers: Sequence[tuple[Answer, int]],
    *,
    adapter: str | Sequence[str],
    shows_options: bool,
) -> ShardRows:
    """Return the rows of a shard.

    Args:
        shard: its number.
        cells: what was asked.
        answers: each cell's answer, and how often it was asked.
        adapter: who answered, all of them or each.
        shows_options: whether prompts show the options.

    Raises:
        EngineError: an answer's code is none of its item's.
    """
    if not cells:
        return ShardRows(RESPONSE_SCHEMA.empty_table(), QUARANTINE_SCHEMA.empty_table())
    personas, waves, draws, asked = zip(*cells, strict=True)
    ids, items, seeds, orders = zip(*asked, strict=True)
    given, attempts = zip(*answers, strict=True)
    _, texts, dispositions, rationales, codes, labels, probs, errors, prompts, reused, new = zip(*given, strict=True)
    kinds = frozenset(dispositions)
    if kinds != {"complete"}:
        is_complete = [disposition == "complete" for disposition in dispositions]
        codes = tuple(code if here else None for code, here in zip(codes, is_complete, strict=True))
        labels = tuple(label if here else "" for label, here in zip(labels, is_complete, strict=True))
    _refuse_strange_codes(items, codes, dispositions)
    values: dict[str, Sequence[object] | pa.Array] = {
        "assignment_id": ids,
        **_persona_columns(personas),
        **_item_columns(items),
        "wave": waves,
        "draw": draws,
        "text": texts,
        "rationale": rationales,
        "code": codes,
        "codes": pa.nulls(len(cells), RESPONSE_SCHEMA.field("codes").type),
        "value": pa.nulls(len(cells), pa.float64()),
        "label": labels,
        "option_probs": probs,
        "options_as_shown": _shown(items, orders, dispositions) if shows_options else [None] * len(cells),
        "disposition": dispositions,
        "error": errors,
        "attempts": attempts,
        "prompt_tokens": prompts,
        "reused_prompt_tokens": reused,
        "new_tokens": new,
        "adapter": pa.repeat(adapter, len(cells)) if isinstance(adapter, str) else adapter,
        "seed": seeds,
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), len(cells)),
    }
    table = pa.Table.from_arrays(
        [_array(values[field.name], field.type) for field in RESPONSE_SCHEMA], RESPONSE_SCHEMA.names
    )
    return _sort_out(table.cast(RESPONSE_SCHEMA), dispositions, errors)


def _sort_out(table: pa.Table, dispositions: Sequence[str], errors: Sequence[str]) -> ShardRows:
    """Part the rows that failed from those that did not."""
    if frozenset(FAILED).isdisjoint(dispositions):
        return ShardRows(table, QUARANTINE_SCHEMA.empty_table())
    has_failed = [disposition in FAILED for disposition in dispositions]
    reasons = pa.array([error or NO_OPTION for error, failed in zip(errors, has_failed, strict=True) if failed])
    mask = pa.array(has_failed)
    failed = table.filter(mask).append_column(QUARANTINE_SCHEMA.field("reason"), reasons)
    kept = table.filter(pa.array([not failed for failed in has_failed]))
    return ShardRows(compact(kept), compact(failed))


def compact(table: pa.Table) -> pa.Table:
    """Return the table with dictionaries of the values it has, in the order of their first rows."""
    columns = [
        column.cast(column.type.value_type).combine_chunks().dictionary_encode().cast(column.type)
        if pa.types.is_dictionary(column.type)
        else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _refuse_strange_codes(items: Sequence[Item], codes: Sequence[int | None], dispositions: Sequence[str]) -> None:
    by_id = {id(item): item for item in items}
    for number, code, disposition in set(zip(map(id, items), codes, dispositions, strict=True)):
        item = by_id[number]
        if disposition == "complete" and item.options and code not in item.codes:
            raise EngineError(
                f"The engine coded item {item.item_id!r} as {code!r}; its codes are {list(item.codes)}.",
                "Report this as a bug of the engine.",
            )


def _item_columns(items: Sequence[Item]) -> dict[str, pa.Array]:
    """Return the columns that follow from the item alone."""
    rows, distinct = _distinct(items)
    return {
        name: pa.array([getattr(item, name) for item in distinct], pa.string()).take(rows)
        for name in ("item_id", "variant", "domain", "response_type")
    }


def _persona_columns(personas: Sequence[Persona]) -> dict[str, pa.Array]:
    """Return the columns that follow from the persona alone."""
    rows, distinct = _distinct(personas)
    return {
        "persona_id": pa.array([persona.persona_id for persona in distinct], pa.string()).take(rows),
        "weight": pa.array([persona.weight for persona in distinct], pa.float64()).take(rows),
    }


def _distinct(values: Sequence[Value]) -> tuple[pa.Array, list[Value]]:
    """Return the distinct objects in the order of their first rows, and each row's place among them."""
    ids = list(map(id, values))
    distinct = dict(zip(ids, values, strict=True))
    places = {number: place for place, number in enumerate(distinct)}
    return pa.array(map(places.__getitem__, ids), pa.int32(), size=len(ids)), list(distinct.values())


def _shown(
    items: Sequence[Item], orders: Sequence[tuple[int, ...] | None], dispositions: Sequence[str]
) -> pa.Array | list[tuple[int, ...] | None]:
    """Return the order in which each cell's options were shown; None where there were none, or nothing was asked."""
    if not any(orders) and "not_asked" not in dispositions:
        rows, distinct = _distinct(items)
        return pa.array([_own_order(item) for item in distinct], _ORDER_TYPE).take(rows)
    return [
        None if disposition == "not_asked" else order or _own_order(item)
        for item, order, disposition in zip(items, orders, dispositions, strict=True)
    ]


def _own_order(item: Item) -> tuple[int, ...] | None:
    return tuple(range(len(item.options))) or None


def _array(values: Sequence[object] | pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return values if isinstance(values, pa.Array) else pa.array(values, kind)
    strings = values if isinstance(values, pa.Array) else pa.array(values, kind.value_type)
    return strings.dictionary_encode().cast(kind)
