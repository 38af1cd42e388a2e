"""How fast one core of this machine can be: `python -m benchmarks.ceilings CORE` prints a line of JSON.

The best of several tries of a large matrix product in each number format (GFLOP/s) and of reading a large array (GB/s).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

TRIES = 7
SIDE = 1024
ARRAY_BYTES = 512 << 20


def best_cpu_s(call: Callable[[], object]) -> float:
    call()
    spent = []
    for _ in range(TRIES):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def measure() -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    found = {}
    for name, dtype in (("gflops_bf16", torch.bfloat16), ("gflops_fp32", torch.float32)):
        square = torch.ones(SIDE, SIDE, dtype=dtype)
        found[name] = 2 * SIDE**3 / best_cpu_s(partial(torch.nn.functional.linear, square, square)) / 1e9
    array = torch.ones(ARRAY_BYTES // 4)
    found["gbytes_per_s"] = ARRAY_BYTES / best_cpu_s(array.sum) / 1e9
    return found


def machine() -> dict[str, Any]:
    """Describe the machine from what Linux says about it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        info = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in info.items()}
    flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name", "unknown"),
        "cores": os.cpu_count(),
        "has_bf16": sorted({"avx512_bf16", "amx_bf16"} & set(flags)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    print(json.dumps(measure()))
