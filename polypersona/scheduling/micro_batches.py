"""How many rows of a training a kind of hardware was found to hold: one record each, in the user's cache folder.

Written when a training ran out of memory and went on with fewer rows at once; read by the plan of the next one. A
record's parts say what it holds for: another model, precision or length is another record. Knows files and numbers; no
recipe and no clock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from polypersona.errors import StorageError
from polypersona.scheduling.calibration import calibration_folder, key_of
from polypersona.scheduling.machines import GIB, Inventory

FILE = "micro_batches.json"
FORMAT = 1
# Trainings beside each other are threads of one driver.
_WRITING = threading.Lock()


def hardware_of(inventory: Inventory) -> str:
    """Return the kinds of device that a training may land on, with their memory in GiB."""
    if inventory.gpus:
        kinds = {f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB" for gpu in inventory.gpus}
    else:
        kinds = {f"{node.processor or 'CPU'}, {node.memory_bytes / GIB:.0f} GiB" for node in inventory.nodes}
    return " + ".join(sorted(kinds))


def known_micro_batch(parts: Mapping[str, Any]) -> int | None:
    """Return the largest micro-batch that fitted where a larger one did not; None where nothing ran out of memory.

    Raises:
        StorageError: the file cannot be read, or is damaged.
    """
    record = _load().get(key_of(parts))
    return None if record is None else int(record["micro_batch"])


def remember_micro_batch(parts: Mapping[str, Any], micro_batch: int, reason: str, date: str) -> str:
    """Add a record, in place of an earlier one for the same parts, and return the file's path.

    Raises:
        StorageError: the file is damaged, or cannot be written.
    """
    with _WRITING:
        folder, records = calibration_folder(), _load()
        records[key_of(parts)] = {"parts": dict(parts), "micro_batch": micro_batch, "reason": reason, "date": date}
        folder.write_json(FILE, {"format": FORMAT, "micro_batches": dict(sorted(records.items()))})
    return folder.path(FILE)


def _load() -> dict[str, dict[str, Any]]:
    folder = calibration_folder()
    if not folder.exists(FILE):
        return {}
    try:
        content = folder.read_json(FILE)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
        records: dict[str, dict[str, Any]] = dict(content["micro_batches"])
        if any(int(record["micro_batch"]) < 1 for record in records.values()):
            raise ValueError("a record holds no row")
    except (StorageError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else getattr(error, "message", None) or str(error)
        raise StorageError(
            f"The file of known micro-batches {folder.path(FILE)} is damaged: {what.rstrip('.')}.", "Delete it."
        ) from error
    return records
