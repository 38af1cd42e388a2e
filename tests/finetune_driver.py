"""A driver of the finetune stage for tests of faults: `python finetune_driver.py RECIPE.json [HOOK ARGUMENT]`.

The hook is called in the workers before each forward: `slow FILE` waits a little until the file exists, `die FILE` has
the second worker kill itself once, where the file does not exist yet, `short ROWS` has no memory for more rows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polypersona import finetune
from polypersona.recipe import build_recipe
from polypersona.worker_group import fit_workers

RESIZE_CHECK_S = 2.0
# Forwards of the second worker before it dies: behind the first checkpoint.
DIES_AT = 33


def slow(file: str) -> Callable[[int], None]:
    def before_forward(rows: int) -> None:
        if not Path(file).exists():
            time.sleep(0.25)

    return before_forward


def die(file: str) -> Callable[[int], None]:
    seen = [0]

    def before_forward(rows: int) -> None:
        import ray.train

        seen[0] += 1
        if ray.train.get_context().get_world_rank() == 1 and seen[0] == DIES_AT and not Path(file).exists():
            Path(file).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return before_forward


def short(most: str) -> Callable[[int], None]:
    def before_forward(rows: int) -> None:
        if rows > int(most):
            raise MemoryError(f"no memory for {rows} rows")

    return before_forward


def main() -> None:
    recipe = build_recipe(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    finetune.RESIZE_CHECK_S = RESIZE_CHECK_S
    if sys.argv[2:]:
        hook = {"slow": slow, "die": die, "short": short}[sys.argv[2]](sys.argv[3])
        finetune.fit_workers = partial(fit_workers, before_forward=hook)  # type: ignore[assignment]
    print(json.dumps(finetune.run(recipe), default=str))


if __name__ == "__main__":
    main()
