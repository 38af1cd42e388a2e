"""The questions a benchmark asks: personas, items, prompts as token ids and how long every answer is.

Takes a size and a tokenizer-like function; gives rows that are the same on every machine. All text is invented and
synthetic. Knows no model and no engine, and imports nothing but the standard library, so that a worker in any
environment can read a workload back from its JSON file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import phrases

CLOSED_ITEMS = 12
OPEN_ITEMS = 9
ITEMS_PER_PERSONA = 20  # one of the 21 is left out: a closed one for every other persona, an open one for the rest
CLOSED_LENGTHS = (8, 15)  # tokens of a closed answer that is written, inclusive
OPEN_LENGTHS = (30, 64)
LETTERS = "ABCDE"
SAMPLING: dict[str, Any] = {"top_k": 50, "top_p": 0.95, "temperature": 0.8}

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One question to one persona.

    `ids` is the whole prompt. Its first `shared` tokens are the same for all rows, its first `prefix` tokens for all
    rows of the persona. `length` is how many tokens the answer has, `options` the letters' token ids of a closed one.
    """

    persona: int
    item: int
    ids: list[int]
    shared: int
    prefix: int
    length: int
    options: list[int]

    @property
    def kind(self) -> str:
        return "closed" if self.options else "open"


def build(num_personas: int, encode: Encode, seed: int = 0) -> list[Row]:
    """Give the rows, persona by persona."""
    rng = random.Random(seed)
    shared = encode(phrases.opening())
    cards = [encode(phrases.card(rng)) for _ in range(num_personas)]
    items = [phrases.closed_item(rng) for _ in range(CLOSED_ITEMS)] + [
        (phrases.open_item(rng), 0) for _ in range(OPEN_ITEMS)
    ]
    questions = [encode(phrases.closing(text)) for text, _ in items]
    letters = [encode(letter)[0] for letter in LETTERS]
    asked = [(persona, item) for persona in range(num_personas) for item in _asked(persona, rng)]
    lengths = _lengths([items[item][1] > 0 for _, item in asked], rng)
    return [
        Row(
            persona=persona,
            item=item,
            ids=shared + cards[persona] + questions[item],
            shared=len(shared),
            prefix=len(shared) + len(cards[persona]),
            length=length,
            options=letters[: items[item][1]],
        )
        for (persona, item), length in zip(asked, lengths, strict=True)
    ]


def _asked(persona: int, rng: random.Random) -> list[int]:
    closed, opened = list(range(CLOSED_ITEMS)), list(range(CLOSED_ITEMS, CLOSED_ITEMS + OPEN_ITEMS))
    shortened = closed if persona % 2 == 0 else opened
    shortened.remove(rng.choice(shortened))
    order = closed + opened
    rng.shuffle(order)
    return order


def _lengths(closed: Sequence[bool], rng: random.Random) -> list[int]:
    """Spread each kind's lengths evenly over its range, in random order; the sum is the rounded mean times the rows.

    So an engine that can only write one length per kind writes exactly as many tokens as one that stops row by row.
    """
    lengths = [0] * len(closed)
    for kind, (low, high) in ((True, CLOSED_LENGTHS), (False, OPEN_LENGTHS)):
        mine = [index for index, flag in enumerate(closed) if flag is kind]
        spread = [low + round(place * (high - low) / (len(mine) - 1)) for place in range(len(mine))]
        excess = sum(spread) - len(mine) * round(sum(spread) / len(mine))
        step = -1 if excess > 0 else 1
        middle = len(mine) // 2
        for place in range(middle - abs(excess) // 2, middle - abs(excess) // 2 + abs(excess)):
            spread[place] += step
        rng.shuffle(spread)
        for index, length in zip(mine, spread, strict=True):
            lengths[index] = length
    return lengths


def mean_length(rows: Sequence[Row], kind: str) -> int:
    """Give the length an engine writes that stops all rows of a kind together."""
    mine = [row.length for row in rows if row.kind == kind]
    return round(sum(mine) / len(mine))


def by_persona(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Give each persona's rows together, in order."""
    for persona in sorted({row.persona for row in rows}):
        yield [row for row in rows if row.persona == persona]


def positions(rows: Sequence[Row], is_scored: bool) -> tuple[int, int]:
    """Give the fewest positions that must pass a model's layers, and its head, where beginnings are shared.

    The last token that is written passes neither.
    """
    prompts = rows[0].shared + sum(len(row.ids) - row.prefix for row in rows)
    prompts += sum(asked[0].prefix - asked[0].shared for asked in by_persona(rows))
    written = [1 if is_scored and row.options else row.length for row in rows]
    return prompts + sum(written) - len(written), sum(written)


def describe(rows: Sequence[Row]) -> dict[str, float]:
    """Give a workload's averages per row, for the report."""
    count = len(rows)
    return {
        "rows": count,
        "personas": len({row.persona for row in rows}),
        "closed_share": sum(row.kind == "closed" for row in rows) / count,
        "prompt_tokens": sum(len(row.ids) for row in rows) / count,
        "shared_tokens": sum(row.shared for row in rows) / count,
        "persona_tokens": sum(row.prefix - row.shared for row in rows) / count,
        "question_tokens": sum(len(row.ids) - row.prefix for row in rows) / count,
        "new_tokens": sum(row.length for row in rows) / count,
        "new_tokens_closed": mean_length(rows, "closed"),
        "new_tokens_open": mean_length(rows, "open"),
    }


def save(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows]) + "\n", encoding="utf-8")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
