"""Run by test_telemetry in a process of its own: a local Ray in which an actor of the pool records everything there is.

Prints as JSON what the node's /metrics endpoint has shown: metric → names of its labels, and the last value per metric.
"""

import json
import re
import sys
import time
import urllib.request

import pyarrow as pa
import ray
import ray.data

from polypersona.telemetry import NullRecorder, RayRecorder

ROWS = 40
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


class ShardActor:
    """Stands in the pool where the real one does, and has its name in Ray's metrics."""

    def __init__(self):
        self._recorder = RayRecorder("toy", "fake")
        NullRecorder().record_pending(3)

    def __call__(self, batch):
        with self._recorder.busy():
            time.sleep(0.2)
        committed = pa.table({"prompt_tokens": [10, 10], "reused_prompt_tokens": [4, 4], "new_tokens": [1, 2]})
        quarantined = pa.table({"reason": ["the prompt has 900 tokens", "HTTP 429: slow down"]})
        self._recorder.record_commit(committed, quarantined, 0.2)
        self._recorder.record_failure()
        self._recorder.record_pending(7)
        return batch


def main(port, folder):
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _metrics_export_port=port,
        _temp_dir=folder, _system_config={"metrics_report_interval_ms": 500},
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    labels, values = {}, {}
    stats = ray.data.range(ROWS, override_num_blocks=ROWS).map_batches(
        ShardActor, batch_size=1, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
    )
    for _ in stats.iter_batches(batch_size=None):
        scrape(port, labels, values)
    end = time.monotonic() + 15
    while values.get("ray_polypersona_responses_total") != 2 * ROWS and time.monotonic() < end:
        time.sleep(0.5)
        scrape(port, labels, values)
    print(json.dumps({"labels": {name: sorted(found) for name, found in labels.items()}, "values": values}))


def scrape(port, labels, values):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if not line.startswith("#") and (found := SAMPLE.match(line)):
                labels.setdefault(found[1], set()).update(re.findall(r'(\w+)="', found[2] or ""))
                values[found[1]] = float(found[3])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
