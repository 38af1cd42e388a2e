"""Several trainings at once: starts, largest first, whatever fits beside what runs, and goes on when one fails.

Each training has a thread that waits for its own Ray Train run, whose workers do the computing. Takes demands and a way
to run one of them; gives what became of each as it ends. Knows Ray's boards, no recipe and no run directory.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray

from polypersona.errors import RunFailedError
from polypersona.progress import Progress
from polypersona.scheduling.machines import Inventory
from polypersona.scheduling.packing import Demand, Placed, admit, refuse_misfits, release, rooms_of
from polypersona.worker_group import POLL_S, open_board

Result = TypeVar("Result")
Ended = tuple[str, Result | Exception]


def run_side_by_side(
    demands: Sequence[Demand],
    steps: Mapping[str, int],
    inventory: Inventory,
    run_one: Callable[[str, Any], Result],
    on_begin: Callable[[str, int], None] = lambda name, beside: None,
) -> Iterator[Ended[Result]]:
    """Run all trainings and yield the name of each that ends, with its result or with the error that ended it.

    Args:
        demands: what each takes, by name.
        steps: of each, to show progress by.
        inventory: what they may take together.
        run_one: runs the training of a name to its end, in a thread of its own; gets the board it shall tell its steps.
        on_begin: is told of each training whose first step is near, and how many others are training.

    Raises:
        InfeasiblePlanError: a training does not fit even where nothing else runs.
    """
    refuse_misfits(demands, inventory)
    ended: queue.Queue[Ended[Result]] = queue.Queue()
    waiting, free = list(demands), rooms_of(inventory)
    running: dict[str, Placed] = {}
    with _Boards(steps, on_begin) as boards:
        while waiting or running:
            started, free = admit(waiting, free)
            for placed in started:
                name = placed.demand.name
                waiting.remove(placed.demand)
                running[name] = placed
                board = boards.open(name)
                threading.Thread(target=_run, args=(name, board, run_one, ended), name=name, daemon=True).start()
            name, result = _wait(ended, boards)
            boards.close(name, is_finished=not isinstance(result, Exception))
            free = release(free, running.pop(name))
            yield name, result


def _run(name: str, board: Any, run_one: Callable[[str, Any], Result], ended: queue.Queue[Ended[Result]]) -> None:
    try:
        ended.put((name, run_one(name, board)))
    except Exception as error:  # noqa: BLE001 whatever ends one training, the others go on
        ended.put((name, error))
    except BaseException as error:  # noqa: BLE001 Ray ends a thread so where it has shut down
        ended.put((name, RunFailedError(f"The training was ended by {type(error).__name__}.", "Run it again.")))


def _wait(ended: queue.Queue[Ended[Result]], boards: _Boards) -> Ended[Result]:
    while True:
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=POLL_S)
        boards.look()


class _Boards:
    """The boards of the trainings that run, shown as one bar over the steps of all of them."""

    def __init__(self, steps: Mapping[str, int], on_begin: Callable[[str, int], None]) -> None:
        self._steps = steps
        self._on_begin = on_begin
        self._boards: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._shown = contextlib.ExitStack()
        self._progress: Progress | None = None

    def __enter__(self) -> _Boards:
        return self

    def __exit__(self, *_: object) -> None:
        for board in self._boards.values():
            ray.kill(board)
        self._shown.close()

    def open(self, name: str) -> Any:
        """Return a new board for a training."""
        self._boards[name] = open_board()
        return self._boards[name]

    def look(self) -> None:
        """Read all boards and show how far they are."""
        for name, board in self._boards.items():
            with contextlib.suppress(ray.exceptions.RayError):
                step = ray.get(board.get.remote(), timeout=10)
                if step is not None:
                    self._note(name, int(step))

    def close(self, name: str, *, is_finished: bool) -> None:
        """Drop the board of a training that has ended; all steps of one that got to its end are done."""
        ray.kill(self._boards.pop(name))
        if is_finished:
            self._note(name, self._steps[name])

    def _note(self, name: str, step: int) -> None:
        if name not in self._done:
            self._done[name] = step
            self._on_begin(name, len(self._boards.keys() & self._done.keys() - {name}))
            if self._progress is None:  # starting up says nothing of the pace
                total = sum(self._steps.values())
                self._progress = self._shown.enter_context(Progress("finetune", total, "steps", done=step))
        self._done[name] = max(step, self._done[name])
        if self._progress is not None:
            self._progress.advance(max(0, sum(self._done.values()) - self._progress.pace.done))
