"""How many rows of a training a kind of hardware was found to hold: one record each, in the user's cache folder.

Written when a training ran out of memory and went on with fewer rows at once; read by the plan of the next one. A
record's parts say what it holds for: another model, precision or length is another record. Knows files and numbers; no
recipe and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polypersona.scheduling.machines import GIB, Inventory
from polypersona.scheduling.record_file import LEAVE_IT, RecordFile, SetAside, key_of

FILE = "micro_batches.json"


def hardware_of(inventory: Inventory) -> str:
    """Return the kinds of device that a training may land on, with the memory they have in GiB, free or not."""
    if inventory.gpus:
        kinds = {f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB" for gpu in inventory.gpus}
    else:
        kinds = {
            f"{node.processor or 'CPU'}, {(node.physical_bytes or node.memory_bytes) / GIB:.0f} GiB"
            for node in inventory.nodes
        }
    return " + ".join(sorted(kinds))


def has_record(hardware: str) -> bool:
    """Return whether anything is known of a kind of hardware, whatever was trained on it.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    return any(record["parts"].get("hardware") == hardware for record in _MICRO_BATCHES.load().values())


def known_micro_batch(parts: Mapping[str, Any]) -> int | None:
    """Return the largest micro-batch that fitted where a larger one did not; None where nothing ran out of memory.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    record = _MICRO_BATCHES.load().get(key_of(parts))
    return None if record is None else int(record["micro_batch"])


def remember_micro_batch(parts: Mapping[str, Any], micro_batch: int, reason: str, date: str) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    return _MICRO_BATCHES.put(parts, {"parts": parts, "micro_batch": micro_batch, "reason": reason, "date": date})


def set_aside_micro_batches() -> SetAside | None:
    """Keep a damaged file of them aside, and return what was wrong with it; None where nothing is."""
    return _MICRO_BATCHES.set_aside()


def _checked(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    if int(stored["micro_batch"]) < 1:
        raise ValueError("a record holds no row")
    if not isinstance(stored["parts"], Mapping):
        raise TypeError("a record's parts are no mapping")
    return stored


_MICRO_BATCHES = RecordFile(FILE, "micro_batches", "file of known micro-batches", LEAVE_IT, _checked, dict)
