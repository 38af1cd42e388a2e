"""The blind sample: which answers raters see, and which kind each of them is.

A kind is `model` (the run's answer beside the card it was made for), `shuffled` (another persona's answer to the same
question beside that card) or `human`. Every cell is shown once, so no card and question are seen with two answers.

The sample is a function of the run's seed and of assignment ids. Cells come in the order of their seeded hashes, and
kinds are balanced in blocks, so a larger sample begins with the smaller one. Responses are read shard by shard, three
times; what is held does not grow with the run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polypersona.chatml import card_attributes, render_value
from polypersona.errors import StorageError
from polypersona.ledger import committed_files
from polypersona.parquet import read_parquet
from polypersona.records import Item, Persona, digest, seed_from
from polypersona.storage import RunDirectory

Kind = Literal["model", "shuffled", "human"]
KINDS: tuple[Kind, ...] = ("model", "shuffled", "human")
BLOCK = 12
_SHOWN = ("complete", "truncated")
_COLUMNS = ("persona_id", "item_id", "variant", "disposition", "text")
_ANSWERS = (*_COLUMNS, "assignment_id")
_HASH = "hash"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to rate: a card, a question and an answer. Raters are shown neither `kind` nor where it is from."""

    entry_id: str
    kind: Kind
    persona_id: str
    item_id: str
    card: tuple[tuple[str, str], ...]
    about: str
    domain: str
    question: str
    options: tuple[str, ...]
    answer: str
    answered_by: str

    def blinded(self) -> dict[str, Any]:
        """Return what a rater may see, as JSON values."""
        return {
            "id": self.entry_id,
            "card": [list(pair) for pair in self.card],
            "about": self.about,
            "domain": self.domain.replace("_", " "),
            "question": self.question,
            "options": list(self.options),
            "answer": self.answer,
        }


def build_entry(kind: Kind, cell: str, persona: Persona, item: Item, answer: str, answered_by: str) -> Entry:
    """Return an entry; `cell` tells it from others, and its id says nothing of its kind."""
    card = tuple((name.replace("_", " "), render_value(value)) for name, value in card_attributes(persona))
    return Entry(
        digest("annotation entry", cell), kind, persona.persona_id, item.item_id, card, persona.text, item.domain,
        item.stem, item.options_as_shown, answer, answered_by,
    )  # fmt: skip


def draw_sample(
    run: RunDirectory,
    fingerprint: str,
    seed: int,
    count: int,
    personas: Mapping[str, Persona],
    items: Mapping[str, Item],
    humans: Sequence[Entry] = (),
) -> list[Entry]:
    """Return up to `count` entries in the order raters see them.

    Args:
        run: whose committed responses are drawn from; changed forms of items are left out.
        fingerprint: the run's.
        seed: the run's.
        count: how many; fewer where the run has fewer answers to questions that two personas answered.
        personas: the run's, by id.
        items: the run's, by id.
        humans: human answers that may be mixed in.

    Raises:
        StorageError: a file is damaged, or its rows are of personas or items that the recipe lacks.
    """
    names = list(committed_files(run, fingerprint).values())
    shared = _shared_items(_stream(run, names, _COLUMNS))
    cells = _lowest(_stream(run, names, _ANSWERS), shared, seed, count)
    kinds: tuple[Kind, ...] = KINDS if humans else KINDS[:2]
    ordered = sorted(humans, key=lambda entry: digest(seed, entry.entry_id))
    entries: list[Entry] = []
    for kind in _kinds(kinds, seed):
        if len(entries) == count or not cells:
            break
        if kind != "human":
            entries.append(_entry(kind, cells.pop(0), personas, items))
        elif ordered:
            entries.append(ordered.pop(0))
    partners = _partners(_stream(run, names, _ANSWERS), [one for one in entries if one.kind == "shuffled"], seed)
    return [
        replace(one, answer=partners[one.entry_id][0], answered_by=partners[one.entry_id][1])
        if one.kind == "shuffled"
        else one
        for one in entries
    ]


def _stream(run: RunDirectory, names: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield each shard's answers that may be shown, ids plain; where it is read, the assignment's also as a number."""
    fs, root = run.filesystem()
    for name in names:
        try:
            table = read_parquet(f"{root}/{name}", columns, fs)
            for column in ("persona_id", "item_id", "variant", "disposition"):
                table = table.set_column(table.schema.get_field_index(column), column, table[column].cast(pa.string()))
            keep = pc.and_(pc.equal(table["variant"], ""), pc.is_in(table["disposition"], pa.array(_SHOWN)))
            keep = pc.and_(keep, pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table["text"])), 0))
            table = table.filter(keep)
            if "assignment_id" in columns:
                hashes = np.frombuffer(bytes.fromhex("".join(table["assignment_id"].to_pylist())), dtype=">u8")
                table = table.append_column(_HASH, pa.array(hashes.astype(np.uint64)))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{run.path(name)} cannot be read: {error}.", "Delete it and run generate again."
            ) from error
        yield table


def _shared_items(tables: Iterable[pa.Table]) -> pa.Array:
    """Return the items that at least two personas answered: only they have another persona's answer."""
    first: dict[str, str] = {}
    shared: set[str] = set()
    for table in tables:
        pairs = table.group_by(["item_id"]).aggregate([("persona_id", "min"), ("persona_id", "max")])
        columns = (pairs[name].to_pylist() for name in ("item_id", "persona_id_min", "persona_id_max"))
        for item, low, high in zip(*columns, strict=True):
            if low != high or first.setdefault(item, low) != low:
                shared.add(item)
    return pa.array(sorted(shared), pa.string())


def _lowest(tables: Iterable[pa.Table], shared: pa.Array, seed: int, count: int) -> list[dict[str, Any]]:
    """Return the `count` cells with the lowest seeded hashes, in their order."""
    salt = seed_from("annotation sample", seed)
    lowest: list[tuple[int, str, dict[str, Any]]] = []
    for table in tables:
        chosen = table.filter(pc.is_in(table["item_id"], shared))
        keys = _mixed(chosen[_HASH].to_numpy(), salt)
        nearest = np.argsort(keys, kind="stable")[:count]
        rows = chosen.take(pa.array(nearest)).to_pylist()
        found = [(int(key), row["assignment_id"], row) for key, row in zip(keys[nearest], rows, strict=True)]
        lowest = heapq.nsmallest(count, [*lowest, *found], key=lambda one: one[:2])
    return [row for _, _, row in lowest]


def _partners(tables: Iterable[pa.Table], entries: Sequence[Entry], seed: int) -> dict[str, tuple[str, str]]:
    """Return for each entry another persona's answer to its question, and whose: a random one that stays the same."""
    best: dict[str, tuple[int, str, str]] = {}
    by_item: dict[str, list[Entry]] = {}
    for entry in entries:
        by_item.setdefault(entry.item_id, []).append(entry)
    wanted = pa.array(sorted(by_item), pa.string())
    for table in tables:
        asked = table.filter(pc.is_in(table["item_id"], wanted))
        for item in asked["item_id"].unique().to_pylist():
            rows = asked.filter(pc.equal(asked["item_id"], item))
            for entry in by_item[item]:
                others = rows.filter(pc.not_equal(rows["persona_id"], entry.persona_id))
                if others.num_rows == 0:
                    continue
                keys = _mixed(others[_HASH].to_numpy(), seed_from("annotation partner", seed, entry.entry_id))
                place = int(np.argmin(keys))
                found = (int(keys[place]), others["text"][place].as_py(), others["persona_id"][place].as_py())
                best[entry.entry_id] = min(best.get(entry.entry_id, found), found)
    return {name: (text, persona) for name, (_, text, persona) in best.items()}


def _entry(kind: Kind, row: Mapping[str, Any], personas: Mapping[str, Persona], items: Mapping[str, Item]) -> Entry:
    persona, item = personas.get(row["persona_id"]), items.get(row["item_id"])
    if persona is None or item is None:
        what = f"the persona {row['persona_id']!r}" if persona is None else f"the item {row['item_id']!r}"
        raise StorageError(
            f"The responses hold {what}, which the run's recipe lacks.",
            "Put the panel and the instrument back as they were when the run was made.",
        )
    return build_entry(kind, row["assignment_id"], persona, item, row["text"], row["persona_id"])


def _kinds(kinds: Sequence[Kind], seed: int) -> Iterator[Kind]:
    """Yield kinds without end, each equally often in every block."""
    block = 0
    while True:
        mixed = list(kinds) * (BLOCK // len(kinds))
        random.Random(seed_from("annotation kinds", seed, block)).shuffle(mixed)
        yield from mixed
        block += 1


def _mixed(hashes: npt.NDArray[np.uint64], salt: int) -> npt.NDArray[np.uint64]:
    """Return other hashes for another salt: the finalizer of SplitMix64 (Steele et al. 2014)."""
    mixed = hashes.astype(np.uint64) ^ np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
