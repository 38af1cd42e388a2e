"""Rows of responses as mappings, and the tables made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from polypersona.storage import RESPONSE_SCHEMA

CLOSED_ROW: Mapping[str, Any] = {
    "assignment_id": "00112233445566aa", "persona_id": "p1", "item_id": "x.likert.01", "variant": "", "domain": "x",
    "response_type": "likert", "wave": 1, "draw": 1, "weight": 1.5, "text": "Agree.", "rationale": "", "code": 4,
    "codes": None, "value": None, "label": "Agree", "option_probs": (0.1, 0.9), "options_as_shown": (0, 1),
    "disposition": "complete", "error": "", "attempts": 1, "prompt_tokens": 10, "reused_prompt_tokens": 5,
    "new_tokens": 2, "adapter": "run", "seed": 2**62, "shard": 3,
}  # fmt: skip


def make_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema = RESPONSE_SCHEMA) -> pa.Table:
    """Return the rows as a table of a shard's file."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def rows_of(table: pa.Table) -> list[SimpleNamespace]:
    """Return a table's rows with columns as attributes and lists as tuples."""
    return [
        SimpleNamespace(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
        for row in table.to_pylist()
    ]
