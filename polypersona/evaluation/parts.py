"""Work on a run's files, shared out in parts: Ray Data maps tasks over the parts' numbers, each gives one value."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data

from polypersona.errors import PolypersonaError

Job = TypeVar("Job")
Part = TypeVar("Part")
Result = TypeVar("Result")
PARTS_PER_CPU = 4


def share_out(work: Sequence[Part], num_cpus: int) -> list[list[Part]]:
    """Return the work in parts, some for each CPU, dealt out in turn; at least one part."""
    num_parts = max(1, min(len(work), PARTS_PER_CPU * num_cpus))
    return [list(work[first::num_parts]) for first in range(num_parts)]


def map_parts(
    measure: Callable[[Job, Part], Result], job: Job, parts: Sequence[Part], num_cpus: int
) -> Iterator[Result]:
    """Yield what `measure` gives for each part, as they end, at most `num_cpus` at once. Ray has been started.

    Args:
        measure: a function of a module, called in a task.
        job: what all tasks need; it is put once.
        parts: what one task each needs.
        num_cpus: how many tasks run at once.

    Raises:
        PolypersonaError: the one that `measure` has raised.
    """
    context = ray.data.DataContext.get_current()
    was_shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        mapped = ray.data.range(len(parts), override_num_blocks=len(parts)).map_batches(
            _measure,
            batch_size=None,
            batch_format="pyarrow",
            # A list keeps Ray from putting the value itself in place of its reference.
            fn_kwargs={"measure": measure, "job": [ray.put((job, parts))]},
            compute=ray.data.TaskPoolStrategy(size=min(num_cpus, len(parts))),
        )
        for row in mapped.iter_rows():
            result: Result | PolypersonaError = pickle.loads(row["result"])
            if isinstance(result, PolypersonaError):
                raise result
            yield result
    finally:
        context.enable_progress_bars = was_shown


def _measure(ids: pa.Table, measure: Callable[[Any, Any], Any], job: Sequence[Any]) -> pa.Table:
    """Measure the parts of a block, in a task; a named failure comes back as a value, because Ray would bury it."""
    shared, parts = ray.get(job[0])
    results = []
    for place in ids["id"].to_pylist():
        try:
            results.append(measure(shared, parts[place]))
        except PolypersonaError as error:
            results.append(error)
    return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.large_binary())})
