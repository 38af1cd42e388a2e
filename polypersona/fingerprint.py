"""What a stage's output depends on, as a flat mapping: its digest, and how two of them differ in words.

Takes and gives plain JSON values. Knows no recipe, no file and no stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polypersona.records import digest

_ABSENT = object()


def digest_of(mapping: Mapping[str, Any]) -> str:
    """Return sixteen hex digits that are equal wherever the mapping's JSON is, whatever the order of its keys."""
    return digest(json.dumps(mapping, sort_keys=True, ensure_ascii=False, default=str))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line `key: old → new` for each key whose value differs, by name; empty where nothing does."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if before is _ABSENT or after is _ABSENT or _plain(before) != _plain(after):
            lines.append(f"{key}: {_shown(before)} → {_shown(after)}")
    return lines


def _plain(value: Any) -> Any:
    """Return the value as JSON gives it back, so that a tuple equals the list it was stored as."""
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
