"""Everything a report is made of, read from a run's files; the responses in one pass.

Gives the files' contents as they are; decides nothing about what is shown.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from polypersona import __version__
from polypersona.annotation.results import count_rated, load_annotations, score_ratings
from polypersona.annotation.store import FOLDER as ANNOTATIONS
from polypersona.annotation.store import SAMPLE as RATED
from polypersona.errors import StorageError
from polypersona.parquet import read_parquet
from polypersona.recipe import Recipe
from polypersona.records import digest
from polypersona.report.human import TABLES as HUMAN_TABLES
from polypersona.report.human import HumanEvidence
from polypersona.report.sample import Sample
from polypersona.report.source import Source, load_source
from polypersona.report.tally import Tally, asked_rows, stream_rows
from polypersona.rounds import current_quarantine
from polypersona.storage import RunDirectory

ALONE = "run"
SCORES, HUMAN, BIAS = "scores/scores.json", "scores/human.json", "scores/bias.json"
AGAINST = "scores/against-"
_TRAINING = "training.json"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report is made of. `adapters` has the training of each adapter; the only one is named `run`."""

    recipe: Recipe
    run: Mapping[str, Any]
    scores: Mapping[str, Any]
    adapters: Mapping[str, Mapping[str, Any]]
    tally: Tally
    source: Source
    quarantine: Mapping[str, int] = field(default_factory=dict)
    human: HumanEvidence | None = None
    bias: Any = None
    ratings: Sequence[Mapping[str, Any]] = ()
    raters: Mapping[str, int] = field(default_factory=dict)
    against: Sequence[Mapping[str, Any]] = ()


def gather(directory: RunDirectory, recipe: Recipe, state: Mapping[str, Any]) -> tuple[Evidence, Sample]:
    """Read a run.

    Args:
        directory: of the run.
        recipe: of the run.
        state: its run.json.

    Raises:
        StorageError: a file cannot be read.
    """
    tally, sample = Tally(is_greedy=recipe.generate.temperature == 0), Sample()
    for table in stream_rows(directory):
        tally.add(table)
        sample.add(asked_rows(table))
    ratings, raters = _load_ratings(directory)
    evidence = Evidence(
        recipe,
        state,
        _json_or(directory, SCORES, {}),
        {name: directory.read_json(file) for name, file in training_files(directory).items()},
        tally,
        load_source(directory, recipe, frozenset(sample.rows)),
        count_quarantine(directory, state),
        _load_human(directory),
        _json_or(directory, BIAS, None),
        ratings,
        raters,
        [directory.read_json(name) for name in against_files(directory)],
    )
    return evidence, sample


def training_files(directory: RunDirectory) -> dict[str, str]:
    """Return where the training of each adapter of the run stands, by the adapter's name."""
    found = {ALONE: f"adapter/{_TRAINING}"} if directory.exists(f"adapter/{_TRAINING}") else {}
    fs, root = directory.filesystem()
    folders = fs.get_file_info(pafs.FileSelector(f"{root}/adapters", allow_not_found=True))
    for info in sorted(folders, key=lambda one: one.base_name):
        name = f"adapters/{info.base_name}/{_TRAINING}"
        if info.type == pafs.FileType.Directory and directory.exists(name):
            found[info.base_name] = name
    return found


def against_files(directory: RunDirectory) -> list[str]:
    """Return the files of paired tests against other runs."""
    return [name for name in directory.names("scores", ".json") if name.startswith(AGAINST)]


def count_quarantine(directory: RunDirectory, state: Mapping[str, Any]) -> Counter[str]:
    """Return how many rows were set aside, by reason; `state` is the run's run.json.

    Raises:
        StorageError: a file of quarantined rows cannot be read.
    """
    reasons: Counter[str] = Counter()
    for name in current_quarantine(directory, state["fingerprint"]).values() if "fingerprint" in state else ():
        advice = "Delete it and the file of that name in responses/, and run generate again."
        reasons.update(str(row["reason"]) for row in _read_rows(directory, name, advice, ["reason"]))
    return reasons


def digest_inputs(directory: RunDirectory, recipe: Recipe, state: Mapping[str, Any], page: str) -> str:
    """Return a digest of what a report is made of: small files by content, others by name and size.

    Args:
        directory: of the run.
        recipe: of the run.
        state: its run.json.
        page: a digest of the page's own template, style and script.
    """
    stages = {name: value for name, value in state.get("stages", {}).items() if name != "report"}
    parts: list[object] = [__version__, page, recipe.model_dump_json()]
    parts.append(json.dumps({**state, "stages": stages}, sort_keys=True, default=str))
    small = [SCORES, HUMAN, BIAS, *training_files(directory).values(), *against_files(directory), RATED]
    parts.extend(directory.read(name) if directory.exists(name) else b"" for name in small)
    for folder, suffix in _LARGE:
        parts.extend(sorted((name, size) for name, size in directory.sizes(folder).items() if name.endswith(suffix)))
    return digest(*parts)


_LARGE = (
    ("responses", ".parquet"), ("quarantine", ".parquet"), ("dataset", ".jsonl"), ("scores", ".parquet"),
    (ANNOTATIONS, ".jsonl"),
)  # fmt: skip


def _load_human(directory: RunDirectory) -> HumanEvidence | None:
    if not directory.exists(HUMAN):
        return None
    advice = "Run polypersona compare again."
    names = {table: f"scores/human_{table}.parquet" for table in HUMAN_TABLES}
    tables = {
        table: list(_read_rows(directory, name, advice)) for table, name in names.items() if directory.exists(name)
    }
    return HumanEvidence(directory.read_json(HUMAN), tables)


def _load_ratings(directory: RunDirectory) -> tuple[list[dict[str, Any]], dict[str, int]]:
    if not directory.exists(RATED) or not directory.names(ANNOTATIONS, ".jsonl"):
        return [], {}
    try:
        sample, raters = load_annotations(directory)
    except StorageError:
        if any(directory.sizes(ANNOTATIONS).get(name) for name in directory.names(ANNOTATIONS, ".jsonl")):
            raise
        return [], {}
    return score_ratings(sample, raters), {name: count for name, count in count_rated(sample, raters).items() if count}


def _read_rows(
    directory: RunDirectory, name: str, advice: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    try:
        table = read_parquet(io.BytesIO(directory.read(name)), columns)
    except pa.ArrowException as error:
        raise StorageError(f"{directory.path(name)} cannot be read: {error}.", advice) from error
    yield from table.to_pylist()


def _json_or(directory: RunDirectory, name: str, otherwise: Any) -> Any:
    return directory.read_json(name) if directory.exists(name) else otherwise
