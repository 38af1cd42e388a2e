"""A driver of its own for tests of the pool on several nodes: `pool_driver.py CLUSTER SETTINGS`, prints JSON lines.

SETTINGS is JSON: `folder`, `shards`, `delay_s`, and `pools`, a list of `[kind, actors, most]`; "CPU" is any node.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from pool_jobs import cpu_pool, gpu_pool, make_job, slow_recipe, with_pools

from polypersona.errors import PolypersonaError
from polypersona.shard_pool import answer_shards


def main(address: str, settings: str) -> int:
    given = json.loads(settings)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    job, plan = make_job(slow_recipe(Path(given["folder"]), given["shards"], given["delay_s"]))
    pools = [
        cpu_pool(actors, most=most) if kind == "CPU" else gpu_pool(kind, actors, most)
        for kind, actors, most in given["pools"]
    ]
    try:
        for row in answer_shards(job, with_pools(plan, *pools)):
            print(json.dumps(row), flush=True)
    except PolypersonaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
