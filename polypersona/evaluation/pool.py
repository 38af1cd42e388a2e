"""A run's pairs of texts, compared: a pool of actors encodes their distinct texts once, part by part, into files.

Reads response shards, writes `scores/neural/part-….parquet`: the pairs' keys with what the encoder says of them. A
part's file is its commit. Its name says the encoder, what is compared, and the pairs in it, so whatever is killed, and
whatever else of the recipe changes, a part that is there is not computed again. Tasks collect the pairs of some shards
each; the driver puts them together bucket by bucket and holds one at a time.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayActorError

from polypersona.errors import ModelError, PolypersonaError, StorageError
from polypersona.evaluation.basis import read_columns
from polypersona.evaluation.pairs import Packer, PairSource, collect, comparison_digest, num_buckets, part_digest
from polypersona.metrics.base import TextPair
from polypersona.metrics.text_pairs import Comparison, PairValues, load_encoder, pair_keys
from polypersona.models.location import weight_bytes
from polypersona.parquet import read_parquet
from polypersona.progress import Progress
from polypersona.scheduling.machines import Decision, Inventory
from polypersona.storage import RunDirectory

FOLDER = "scores/neural"
TASKS_PER_CPU = 4
ROWS_PER_TASK = 50_000
MAX_ATTEMPTS = 3
READERS = 16
# Of a process beside the weights: the interpreter with its libraries, and a part's embeddings.
PROCESS_BYTES = 1 << 30
# The share of a node's memory that encoders may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class NeuralSummary:
    """What the stage did: distinct pairs, parts, those that were there already, and texts encoded in this call."""

    pairs: int
    parts: int
    parts_reused: int
    texts_encoded: int
    actors: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pool:
    """How many encoders run at once, and what each takes."""

    actors: Decision[int]
    num_gpus: float


def plan_pool(inventory: Inventory, num_bytes: int) -> Pool:
    """Return one encoder a GPU, or else one a CPU with one thread, as far as half of each node's memory holds them.

    Encoders always compute with one thread: more of them are faster than more threads, and the number of threads
    could change the last digits of a value.

    Args:
        inventory: what there is.
        num_bytes: of the encoder's weights, 0 where not known.
    """
    if inventory.gpus:
        count = len(inventory.gpus)
        return Pool(Decision(count, f"one encoder on each of {count} GPU(s)"), 1.0)
    each = 2 * num_bytes + PROCESS_BYTES
    places = [
        min(math.floor(node.cpus), math.floor(MEMORY_SHARE * node.memory_bytes / each)) for node in inventory.nodes
    ]
    count = max(1, sum(places))
    cpus = math.floor(inventory.cpus)
    why = "one a CPU" if count >= cpus else f"what half the memory holds at {each / 2**30:.1f} GiB each"
    return Pool(Decision(count, f"{why}, one thread each"), 0.0)


def score_pairs(
    directory: RunDirectory,
    source: PairSource,
    comparison: Comparison,
    files: Sequence[str],
    num_rows: int,
    inventory: Inventory,
    keeper: RunDirectory | None = None,
) -> tuple[PairValues, NeuralSummary]:
    """Encode what is not encoded yet, and return the values of all pairs.

    Args:
        directory: of the run.
        source: which pairs the responses hold.
        comparison: which encoder compares them, and how.
        files: the run's response files.
        num_rows: about how many rows they hold.
        inventory: what there is. Ray has been started.
        keeper: another run, which keeps what is encoded now; parts of both are used, and none is deleted. Without it
            the run keeps its parts, and those of pairs that it no longer has are deleted.

    Raises:
        ModelError: the encoder cannot be loaded, or its process dies again and again.
        StorageError: a shard or a part cannot be read.
    """
    pool = plan_pool(inventory, weight_bytes(comparison.model) or 0)
    prefix = f"{FOLDER}/part-{comparison_digest(comparison)}-"
    keeper, drops = keeper or directory, keeper is None
    there = {
        name: place
        for place in (directory, keeper)
        for name in place.names(FOLDER, ".parquet")
        if name.startswith(prefix)
    }
    names: list[str] = []
    pending: list[_Part] = []
    for pairs in _parts(directory, source, files, num_rows, inventory):
        names.append(f"{prefix}{part_digest(pairs)}.parquet")
        if names[-1] not in there:
            pending.append(_Part(names[-1], ray.put(pairs), len({text for pair in pairs for text in pair})))
    num_encoded = 0
    with Progress(comparison.name, sum(part.num_texts for part in pending), "texts") as progress:
        for part, data, count in _encode(pending, comparison, pool):
            keeper.write(part.name, data)
            there[part.name] = keeper
            num_encoded += count
            progress.advance(part.num_texts)
    values = PairValues.union(
        [
            read_values(place, sorted(name for name in names if there[name] is place), comparison.columns)
            for place in ((directory,) if drops else (directory, keeper))
        ]
    )
    if drops:
        for name in sorted(set(there).difference(names)):
            directory.delete(name)
    actors = pool.actors
    reused = len(names) - len(pending)
    return values, NeuralSummary(
        len(values.keys), len(names), reused, num_encoded, min(actors.value, len(pending)), actors.reason
    )


def read_values(directory: RunDirectory, names: Sequence[str], columns: Sequence[str]) -> PairValues:
    """Return the values of some parts, which have these columns.

    Raises:
        StorageError: a part cannot be read.
    """
    schema = _schema(columns)

    def read(name: str) -> pa.Table:
        try:
            return read_parquet(io.BytesIO(directory.read(name)), schema.names)
        except pa.ArrowException as error:
            raise StorageError(
                f"{directory.path(name)} holds no values of pairs of texts: {error}.",
                "Delete it and run evaluate again.",
            ) from error

    with ThreadPoolExecutor(READERS) as readers:
        tables = [schema.empty_table(), *readers.map(read, names)]
    table = pa.concat_tables(tables)
    values = np.stack([table[name].to_numpy() for name in columns], axis=1)
    return PairValues.of(table["key"].to_numpy(), values.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part to be encoded: its file, a reference to its pairs, and how many texts they have."""

    name: str
    pairs: ray.ObjectRef
    num_texts: int


class _EncoderActor:
    """Holds an encoder. Failures that have a name come back as values."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def encode(self, pairs: list[TextPair]) -> tuple[bytes, int] | PolypersonaError:
        """Return a part's file and how many texts were encoded for it."""
        try:
            encoder = load_encoder(self._comparison, threads=1)
        except PolypersonaError as error:
            return error
        before = encoder.num_encoded
        values = encoder.match(pairs).astype(np.float32)
        columns = [pa.array(pair_keys(pairs)), *(pa.array(column) for column in values.T)]
        num_texts = encoder.num_encoded - before
        metadata = {"synthetic": "true", "encoder": self._comparison.signature, "texts_encoded": str(num_texts)}
        sink = io.BytesIO()
        table = pa.Table.from_arrays(columns, schema=_schema(self._comparison.columns).with_metadata(metadata))
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue(), num_texts


def _encode(parts: Sequence[_Part], comparison: Comparison, pool: Pool) -> Iterator[tuple[_Part, bytes, int]]:
    """Yield every part with its file and the number of texts encoded, as they are done."""
    actor_class = ray.remote(_EncoderActor).options(num_cpus=1, num_gpus=pool.num_gpus, max_restarts=0)
    waiting, attempts = list(reversed(parts)), Counter[str]()
    idle = [actor_class.remote(comparison) for _ in range(min(pool.actors.value, len(parts)))]
    running: dict[ray.ObjectRef, tuple[Any, _Part]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                actor, part = idle.pop(), waiting.pop()
                attempts[part.name] += 1
                running[actor.encode.remote(part.pairs)] = actor, part
            done = ray.wait(list(running), num_returns=1)[0][0]
            actor, part = running.pop(done)
            try:
                result: tuple[bytes, int] | PolypersonaError = ray.get(done)
            except RayActorError as error:
                if attempts[part.name] >= MAX_ATTEMPTS:
                    raise ModelError(
                        f"The encoder's process died {MAX_ATTEMPTS} times on the same {part.num_texts} texts.",
                        f"Give the machine more memory, or name a smaller encoder in {comparison.key}.",
                    ) from error
                waiting.append(part)
                idle.append(actor_class.remote(comparison))
                continue
            if isinstance(result, PolypersonaError):
                raise result
            idle.append(actor)
            yield part, *result
    finally:
        for actor in [*idle, *(actor for actor, _ in running.values())]:
            ray.kill(actor)


def _parts(
    directory: RunDirectory, source: PairSource, files: Sequence[str], num_rows: int, inventory: Inventory
) -> Iterator[list[TextPair]]:
    """Yield the parts: tasks collect the pairs of some shards each, the driver cuts bucket after bucket."""
    num_tasks = min(len(files), max(TASKS_PER_CPU * math.ceil(inventory.cpus), num_rows // ROWS_PER_TASK))
    # A list keeps Ray from putting the values in place of their reference.
    job, count = [ray.put((directory, source))], num_buckets(source)
    task = ray.remote(_collect).options(num_cpus=1, num_returns=count + 1)
    collected = [task.remote(job, files[first::num_tasks]) for first in range(num_tasks)]
    packer = Packer()
    for error in ray.get([refs[-1] for refs in collected]):
        if error is not None:
            raise error
    for bucket in range(count):
        yield from packer.add(ray.get([refs[bucket] for refs in collected]))
        for refs in collected:
            refs[bucket] = None
    last = packer.close()
    if last:
        yield last


def _collect(job: Sequence[Any], names: Sequence[str]) -> tuple[pa.Table | PolypersonaError | None, ...]:
    """Return the pairs of some shards, one table a bucket, and at the end the failure, if it has a name."""
    directory, source = ray.get(job[0])
    try:
        found = collect(source, (read_columns(directory, name, source.columns) for name in names))
    except PolypersonaError as error:
        return *([None] * num_buckets(source)), error
    return *found, None


def _schema(columns: Sequence[str]) -> pa.Schema:
    """Return the schema of a part: a pair's key and its values."""
    return pa.schema(
        [pa.field("key", pa.uint64(), nullable=False), *(pa.field(name, pa.float32()) for name in columns)]
    )
