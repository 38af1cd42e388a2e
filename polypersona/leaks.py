"""What the splits of a dataset share, and where it repeats or contradicts itself.

Takes examples, gives counts. A row's pair is its persona id and its question's text: ids of items or rows may be
counters in data made elsewhere. Knows no file and repairs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from polypersona.records import Example

DUPLICATE_MARK = "-dup"

_Pair = tuple[str, str]


def find_leaks(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Return the leak report: what each split shares with another, and repeats over all rows.

    `leaks` holds, for each of `test_in_train`, `validation_in_train` and `test_in_validation`, the first split's
    rows, personas and questions, and how many of them are in the second one too. `repeats` counts over all splits.
    """
    return {
        "synthetic": True,
        "key": "persona_id and question",
        "leaks": {
            "test_in_train": _shared(test, train),
            "validation_in_train": _shared(validation, train),
            "test_in_validation": _shared(test, validation),
        },
        "repeats": _repeats([*train, *validation, *test]),
    }


def _shared(split: Sequence[Example], other: Sequence[Example]) -> dict[str, int]:
    personas = {_persona(row) for row in other}
    questions = {_question(row) for row in other}
    pairs = {_pair(row) for row in other}
    whole = {(*_pair(row), _reference(row)) for row in other}
    own_personas = {_persona(row) for row in split}
    own_questions = {_question(row) for row in split}
    return {
        "rows": len(split),
        "personas": len(own_personas),
        "shared_personas": len(own_personas & personas),
        "rows_with_shared_persona": sum(_persona(row) in personas for row in split),
        "questions": len(own_questions),
        "shared_questions": len(own_questions & questions),
        "shared_pairs": len({_pair(row) for row in split} & pairs),
        "rows_with_shared_pair": sum(_pair(row) in pairs for row in split),
        "duplicate_rows": sum((*_pair(row), _reference(row)) in whole for row in split),
    }


def _repeats(rows: Sequence[Example]) -> dict[str, int]:
    references: dict[_Pair, set[str]] = {}
    for row in rows:
        references.setdefault(_pair(row), set()).add(_reference(row))
    uses = Counter(_pair(row) for row in rows)
    repeated = [pair for pair, count in uses.items() if count > 1]
    return {
        "rows": len(rows),
        "personas": len({_persona(row) for row in rows}),
        "questions": len({_question(row) for row in rows}),
        "pairs": len(uses),
        "repeated_pairs": len(repeated),
        "contradictions": sum(len(references[pair]) > 1 for pair in repeated),
        "duplicate_rows": len(rows) - sum(len(texts) for texts in references.values()),
        "ids_marked_duplicate": sum(DUPLICATE_MARK in str(row.metadata.get("source_id") or row.id) for row in rows),
    }


def _persona(row: Example) -> str:
    return str(row.metadata["persona_id"])


def _question(row: Example) -> str:
    return str(row.metadata["question"])


def _reference(row: Example) -> str:
    return str(row.metadata["reference"])


def _pair(row: Example) -> _Pair:
    return _persona(row), _question(row)
