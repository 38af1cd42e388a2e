"""The shard ledger: which cells a run has, which shard holds which, and which shards are committed.

A run's cells are layers. The first layer is what the first start asked for: personas × items × waves × draws. When the
recipe grows (more personas, items, waves, draws), a further layer covers the cells of the new box that no earlier box
holds; committed files stay as they are. Within a layer a shard is a block of `shard_personas` personas with all their
cells of that layer. So the plan is a few numbers in run.json and a pure function of them: no table of row ids exists.

A shard is committed when its file is in `responses/`. Knows storage, no engine, no recipe and no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from polypersona.errors import StorageError
from polypersona.storage import RunDirectory

Asked: TypeAlias = Sequence[Sequence[int]]
RESPONSES, QUARANTINE = "responses", "quarantine"


@dataclass(frozen=True, slots=True)
class Box:
    """The cells one recipe asks for: the first `personas` of the panel × items × waves × draws.

    `items` are keys (`item_id`, with `#variant` where there is one), in the order they are asked.
    """

    personas: int
    items: tuple[str, ...]
    waves: int = 1
    draws: int = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """What one start added: the cells of `box` that no earlier layer's box holds.

    Only personas from `first_persona` on have such cells. Shards `first_shard` … `first_shard + num_shards - 1` hold
    them. `digest` is the content of the box's personas, so that a later start can tell whether they are still the same.
    """

    box: Box
    first_persona: int
    first_shard: int
    num_shards: int
    num_cells: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of a layer: personas `begin` … `end` - 1 of the panel, with their cells of that layer."""

    number: int
    layer: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One cell of a persona: which item (index into the box's items), which wave, which draw."""

    item: int
    wave: int
    draw: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """All layers of a run and the size of its shards."""

    shard_personas: int
    layers: tuple[Layer, ...] = ()

    @property
    def num_shards(self) -> int:
        """Shards of all layers."""
        return sum(layer.num_shards for layer in self.layers)

    @property
    def num_cells(self) -> int:
        """Cells of all layers."""
        return sum(layer.num_cells for layer in self.layers)

    def shard(self, number: int) -> Shard:
        """Return the shard of that number.

        Raises:
            StorageError: no layer has it.
        """
        for index, layer in enumerate(self.layers):
            block = number - layer.first_shard
            if 0 <= block < layer.num_shards:
                size = self.shard_personas
                block += layer.first_persona // size
                begin, end = max(layer.first_persona, block * size), min(layer.box.personas, (block + 1) * size)
                return Shard(number, index, begin, end)
        raise StorageError(f"The run has {self.num_shards} shards, and no shard {number}.", "Name a shard of the run.")

    def earlier_shards(self, shard: Shard) -> tuple[int, ...]:
        """Return the shards of earlier layers with cells of the same personas: every layer has the same blocks."""
        block, found = shard.begin // self.shard_personas, []
        for layer in self.layers[: shard.layer]:
            place = block - layer.first_persona // self.shard_personas
            if 0 <= place < layer.num_shards:
                found.append(layer.first_shard + place)
        return tuple(found)

    def slots(self, layer: int, persona: int) -> tuple[Slot, ...]:
        """Return the cells of one persona that this layer added: by wave, then draw, then item."""
        earlier = tuple(other.box for other in self.layers[:layer] if persona < other.box.personas)
        return _slots(self.layers[layer].box, earlier)

    def extend(self, box: Box, digest: str = "", asked: Asked | None = None) -> Ledger:
        """Return the ledger with a layer for what the box has and the run lacks; itself where it lacks nothing.

        Args:
            box: what is asked for now. Smaller than before in any direction is no reason to drop anything.
            digest: content of the box's personas.
            asked: the items of each persona (indices into the box's items), where not every persona gets all.
        """
        added = Layer(box, 0, self.num_shards, 0, 0, digest)
        grown = Ledger(self.shard_personas, (*self.layers, added))
        index = len(self.layers)
        # Later personas are in no more of the earlier boxes than sooner ones, so those with new cells are a tail.
        starts = sorted({0, *(layer.box.personas for layer in self.layers if layer.box.personas < box.personas)})
        first, num_cells = box.personas, 0
        for start, stop in zip(starts, [*starts[1:], box.personas], strict=True):
            slots = grown.slots(index, start)
            here = _count(slots, start, stop, asked)
            num_cells += here
            if here and first == box.personas:
                first = start
        if num_cells == 0:
            return self
        size = self.shard_personas
        num_shards = (box.personas - 1) // size - first // size + 1
        layer = Layer(box, first, self.num_shards, num_shards, num_cells, digest)
        return Ledger(size, (*self.layers, layer))

    def num_shard_cells(self, number: int, asked: Asked | None = None) -> int:
        """Return how many cells a shard has; `asked` as in `extend`."""
        shard = self.shard(number)
        borders = {layer.box.personas for layer in self.layers[: shard.layer]}
        starts = sorted({shard.begin, *(border for border in borders if shard.begin < border < shard.end)})
        return sum(
            _count(self.slots(shard.layer, start), start, stop, asked)
            for start, stop in zip(starts, [*starts[1:], shard.end], strict=True)
        )

    def as_json(self, asked: Asked | None = None) -> dict[str, Any]:
        """Return the ledger as JSON values; `ledger_from` reads them back.

        Where not every persona gets all items (`asked`), `shard_cells` says how many cells each shard has.
        """
        cells = [] if asked is None else [self.num_shard_cells(number, asked) for number in range(self.num_shards)]
        return {
            **({"shard_cells": cells} if cells else {}),
            "shard_personas": self.shard_personas,
            "num_shards": self.num_shards,
            "num_cells": self.num_cells,
            "layers": [asdict(layer) for layer in self.layers],
        }


def ledger_from(stored: Mapping[str, Any]) -> Ledger:
    """Return the ledger that `as_json` wrote."""
    layers = []
    for layer in stored["layers"]:
        box = Box(**{**layer["box"], "items": tuple(layer["box"]["items"])})
        layers.append(Layer(**{**layer, "box": box}))
    return Ledger(stored["shard_personas"], tuple(layers))


@lru_cache(maxsize=64)
def _slots(box: Box, earlier: tuple[Box, ...]) -> tuple[Slot, ...]:
    held = [(frozenset(other.items), other.waves, other.draws) for other in earlier]
    return tuple(
        Slot(item, wave, draw)
        for wave in range(1, box.waves + 1)
        for draw in range(1, box.draws + 1)
        for item, key in enumerate(box.items)
        if not any(key in items and wave <= waves and draw <= draws for items, waves, draws in held)
    )


def _count(slots: Sequence[Slot], start: int, stop: int, asked: Asked | None) -> int:
    if asked is None:
        return len(slots) * (stop - start)
    per_item: dict[int, int] = {}
    for slot in slots:
        per_item[slot.item] = per_item.get(slot.item, 0) + 1
    return sum(per_item.get(item, 0) for items in asked[start:stop] for item in items)


def item_key(item_id: str, variant: str = "") -> str:
    """Return what names an item and its variant: `item_id`, or `item_id#variant`."""
    return f"{item_id}#{variant}" if variant else item_id


def shard_name(number: int, fingerprint: str) -> str:
    """Return a shard's file name, equal in every folder."""
    return f"shard-{number:05d}-{fingerprint}.parquet"


def quarantine_name(number: int, fingerprint: str, round: int = 0) -> str:
    """Return the file name of a shard's quarantined rows; a retry writes those that are left under its round's name."""
    return f"shard-{number:05d}-r{round}-{fingerprint}.parquet" if round else shard_name(number, fingerprint)


def shard_number(name: str, fingerprint: str) -> int | None:
    """Return whose response file it is by its name; None where no shard of the run has that name, as of a copy."""
    name = name.rsplit("/", 1)[-1]
    found = re.match(r"shard-(\d+)-", name)
    return int(found[1]) if found and name == shard_name(int(found[1]), fingerprint) else None


def quarantine_number(name: str, fingerprint: str) -> int | None:
    """Return whose quarantine file it is by its name, in whatever round; None where no shard of the run has that."""
    name = name.rsplit("/", 1)[-1]
    found = re.match(r"shard-(\d+)-(?:r(\d+)-)?", name)
    is_own = found is not None and name == quarantine_name(int(found[1]), fingerprint, int(found[2] or 0))
    return int(found[1]) if found and is_own else None


def committed_files(run: RunDirectory, fingerprint: str) -> dict[int, str]:
    """Return the shards' files in `responses/` by their numbers; what else lies there is none of the run's."""
    named = {name: shard_number(name, fingerprint) for name in run.names(RESPONSES, f"-{fingerprint}.parquet")}
    return {number: name for name, number in named.items() if number is not None}


def committed_shards(run: RunDirectory, fingerprint: str) -> set[int]:
    """Return the numbers of the shards whose file is in `responses/`."""
    return set(committed_files(run, fingerprint))
