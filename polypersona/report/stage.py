"""The report stage: reads a run's files, writes `report.html` and `report.json`.

Streams the responses once; holds counters and the sample of answers that the page shows. The same files give the same
bytes, so a report of unchanged files is not written again.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa

from polypersona import __version__
from polypersona.errors import StorageError
from polypersona.parquet import read_parquet
from polypersona.recipe import Recipe
from polypersona.records import digest
from polypersona.report.content import Evidence, build_content
from polypersona.report.page import assets_digest, browser_data, render_page
from polypersona.report.sample import Sample
from polypersona.report.source import load_source
from polypersona.report.tally import Tally, asked_rows, stream_rows
from polypersona.rounds import current_quarantine
from polypersona.storage import RunDirectory, load_run, update_run

PAGE, NUMBERS = "report.html", "report.json"
_SMALL_FILES = ("scores/scores.json", "adapter/training.json")


def run(recipe: Recipe) -> dict[str, Any]:
    """Write the report of the recipe's run and return where it is.

    Raises:
        StorageError: the run has not begun, or one of its files cannot be read.
    """
    directory = RunDirectory.at(recipe.location)
    state = load_run(directory)
    if not state and not directory.names("responses", ".parquet"):
        raise StorageError(f"There is no run at {directory.path()}.", "Run the recipe first, or name its folder.")
    inputs = digest_inputs(directory, recipe, state)
    if directory.exists(PAGE) and directory.exists(NUMBERS) and directory.read_json(NUMBERS).get("inputs") == inputs:
        return {"report": directory.path(PAGE), "skipped": True}
    evidence, sample = gather(directory, recipe, state)
    content = {"inputs": inputs, **build_content(evidence)}
    page = render_page(content, browser_data(sample, evidence.source, evidence.tally)).encode()
    directory.write_json(NUMBERS, content)
    directory.write(PAGE, page)
    figures = {"bytes": len(page), "rows": evidence.tally.num_rows, "shown_rows": sample.num_rows}
    update_run(directory, {"stages": {"report": {"state": "finished", "figures": figures}}})
    return {"report": directory.path(PAGE), **figures, "skipped": False}


def gather(directory: RunDirectory, recipe: Recipe, state: dict[str, Any]) -> tuple[Evidence, Sample]:
    """Read everything a report is made of; the responses in one pass."""
    tally, sample = Tally(), Sample()
    for table in stream_rows(directory):
        tally.add(table)
        sample.add(asked_rows(table))
    scores, training = (directory.read_json(name) if directory.exists(name) else {} for name in _SMALL_FILES)
    source = load_source(directory, recipe, frozenset(sample.rows))
    return Evidence(recipe, state, scores, training, tally, source, count_quarantine(directory, state)), sample


def count_quarantine(directory: RunDirectory, state: dict[str, Any]) -> Counter[str]:
    """Return how many rows were set aside, by reason; `state` is the run's run.json.

    Raises:
        StorageError: a file of quarantined rows cannot be read.
    """
    reasons: Counter[str] = Counter()
    fs, root = directory.filesystem()
    for name in current_quarantine(directory, state["fingerprint"]).values() if "fingerprint" in state else ():
        try:
            table = read_parquet(f"{root}/{name}", ["reason"], fs)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{directory.path(name)} cannot be read: {error}.",
                "Delete it and the file of that name in responses/, and run generate again.",
            ) from error
        reasons.update(str(reason) for reason in table["reason"].to_pylist())
    return reasons


def digest_inputs(directory: RunDirectory, recipe: Recipe, state: dict[str, Any]) -> str:
    """Return a digest of what the report is made of: small files by content, shards and splits by name and size."""
    stages = {name: value for name, value in state.get("stages", {}).items() if name != "report"}
    parts: list[object] = [__version__, assets_digest(), recipe.model_dump_json()]
    parts.append(json.dumps({**state, "stages": stages}, sort_keys=True, default=str))
    parts.extend(directory.read(name) if directory.exists(name) else b"" for name in _SMALL_FILES)
    fs, root = directory.filesystem()
    for folder, suffix in (("responses", ".parquet"), ("quarantine", ".parquet"), ("dataset", ".jsonl")):
        for name in directory.names(folder, suffix):
            parts.append((name, fs.get_file_info(f"{root}/{name}").size))
    return digest(*parts)
