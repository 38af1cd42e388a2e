"""Measure a run of millions of assignments, from the plan to the proof: `python tests/benchmarks/scale.py`.

Only the forward pass is missing: the fake engine hashes log probabilities, and everything else (prompts, seeds, draws,
records, files, ledger) is what a model's run does. Each step is a command of its own, watched from outside. The
overhead is measured with the tiny model. Needs Linux: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

ITEMS, PERSONAS = 40, 25_000
OVERHEAD_CELLS = 20_000
SHARD_ROWS = 32_000
BARS = {
    "generate_rows_per_s": (">=", 100_000), "driver_peak_mb": ("<=", 700), "actor_peak_mb": ("<=", 400),
    "object_store_peak_mb": ("<=", 200), "verify_s": ("<=", 60), "verify_peak_mb": ("<=", 500), "resume_s": ("<=", 10),
    "status_s": ("<=", 2), "overhead_share": ("<=", 0.05),
}  # fmt: skip
POLL_S = 0.5
STATUS_S = 20.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="assignments of the large run (10,000,000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, name: number")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the runs here (default: a folder that goes)")
    parser.add_argument("--actors", type=int, default=len(os.sched_getaffinity(0)), help="actors (default: one a core)")
    chosen = parser.parse_args(arguments)
    if chosen.rows < ITEMS:
        parser.error(f"--rows: at least {ITEMS}, one persona's")
    return chosen


class Watch:
    """The most memory that processes held, by kind, while something ran; sampled, but read from their own high marks.

    `driver` is the command's own process, `actor` the largest process that holds a `PoolMember` or `ShardActor`,
    `object_store` the shared memory that Ray's store has touched.
    """

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.peaks = {"driver": 0.0, "actor": 0.0, "object_store": 0.0}
        self._process, self._is_over = process, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(POLL_S):
            self._note("driver", status_mb(self._process.pid, "VmHWM"))
            for pid in descendants(self._process.pid):
                title = command_line(pid)
                if title.startswith("ray::") and ("MapWorker" in title or "Shard" in title or "PoolMember" in title):
                    self._note("actor", status_mb(pid, "VmHWM"))
                elif "raylet/raylet" in title:
                    self._note("object_store", store_mb(pid))

    def _note(self, kind: str, found: float) -> None:
        self.peaks[kind] = max(self.peaks[kind], found)


def status_mb(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status in MB; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), 0.0)


def store_mb(raylet: int) -> float:
    """Return how much of its object store a raylet and those that write into it have touched, in MB."""
    try:
        files = [path for path in Path(f"/proc/{raylet}/fd").iterdir() if "plasma" in str(path.readlink())]
        return sum(path.stat().st_blocks * 512 for path in files) / 1e6
    except OSError:
        return 0.0


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and theirs."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text(encoding="utf-8").split():
                yield int(child)
                yield from descendants(int(child))
    except OSError:
        return


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "polypersona", *arguments]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*arguments), env=environment, text=True, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_watched(*arguments: str) -> tuple[float, dict[str, float], str]:
    """Run a command to its end and return its wall seconds, peaks in MB and output."""
    begin = time.monotonic()
    with started(*arguments) as process, Watch(process) as watch:
        output, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return time.monotonic() - begin, watch.peaks, output


def write_recipe(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "out": str(folder), "seed": 7, **content}), encoding="utf-8")
    return path


def closed_items() -> list[str]:
    from polypersona.questionbank import load_instrument
    from polypersona.recipe_sections import InstrumentRecipe

    return [item.item_id for item in load_instrument(InstrumentRecipe()).items if item.is_closed][:ITEMS]


def scale_recipe(folder: Path, name: str, rows: int, actors: int) -> tuple[Path, int]:
    """Return a recipe of about so many closed assignments, and how many exactly: at most `PERSONAS` asked in draws."""
    personas = min(PERSONAS, rows // ITEMS)
    draws = max(1, round(rows / (personas * ITEMS)))
    shard_personas = max(1, SHARD_ROWS // (ITEMS * draws))
    generate = {
        "on": "panel", "engine": "fake", "closed": "score", "draws": draws, "actors": actors,
        "shard_personas": shard_personas,
    }  # fmt: skip
    content = {
        "panel": {"source": "sampled", "size": personas},
        "instrument": {"items": closed_items()},
        "generate": generate,
    }
    return write_recipe(folder, name, content), personas * ITEMS * draws


def events(run: Path, writer: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted((run / "events").glob(f"{writer}*.jsonl")):
        found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def stage_seconds(run: Path) -> float:
    """Return the seconds from the driver's start of the pool to its end."""
    from datetime import datetime

    times = {event["event"]: datetime.fromisoformat(event["time"]) for event in events(run, "driver")}
    return (times["end"] - times["start"]).total_seconds()


def measure_scale(folder: Path, name: str, rows: int, actors: int) -> dict[str, float]:
    """Generate, look at the status meanwhile, verify, and run the same command again."""
    recipe, planned = scale_recipe(folder, name, rows, actors)
    status: list[float] = []
    begin = time.monotonic()
    with started("generate", str(recipe)) as process, Watch(process) as watch:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STATUS_S)
            if (folder / name / "events").exists() and process.poll() is None:
                at = time.monotonic()
                subprocess.run(command("status", str(folder / name)), stdout=subprocess.DEVNULL, check=True)
                status.append(time.monotonic() - at)
        if process.returncode != 0:
            raise SystemExit(f"generate ended with {process.returncode}")
    wall_s, peaks = time.monotonic() - begin, watch.peaks
    seconds = stage_seconds(folder / name)
    verify_s, verify_peaks, said = run_watched("verify", str(folder / name))
    resume_s, _, again = run_watched("generate", str(recipe))
    if f"{planned:,} committed" not in said or "nothing to do" not in again:
        raise SystemExit(f"{name} is not what was planned: {said} {again}")
    return {
        "rows": planned,
        "generate_rows_per_s": planned / seconds,
        "generate_s": seconds,
        "command_s": wall_s,
        "driver_peak_mb": peaks["driver"],
        "actor_peak_mb": peaks["actor"],
        "object_store_peak_mb": peaks["object_store"],
        "verify_s": verify_s,
        "verify_peak_mb": verify_peaks["driver"],
        "resume_s": resume_s,
        "status_s": sorted(status)[len(status) // 2] if status else float("nan"),
    }


def measure_overhead(folder: Path) -> dict[str, float]:
    """Return which share of the actors' CPU-seconds, between first and last commit, was not their engine's."""
    content = {
        "panel": {"source": "sampled", "size": OVERHEAD_CELLS // ITEMS},
        "instrument": {"items": closed_items()},
        "model": {"base": "tiny", "adapter": "none"},
        "generate": {"on": "panel", "engine": "packed", "closed": "score", "actors": 2, "shard_personas": 25},
    }
    run_watched("generate", str(write_recipe(folder, "overhead", content)))
    spent = engine = 0.0
    for path in sorted((folder / "overhead" / "events").glob("actor-*.jsonl")):
        commits = [event for event in events(folder / "overhead", path.stem) if event["event"] == "commit"]
        if commits:
            spent += commits[-1]["cpu_s"] - commits[0]["cpu_s"]
            engine += commits[-1]["engine_cpu_s"] - commits[0]["engine_cpu_s"]
    return {"overhead_share": 1 - engine / spent, "overhead_cpu_s": spent}


def render(figures: Mapping[str, float]) -> str:
    lines = []
    for name, value in figures.items():
        sign, bar = BARS.get(name, ("", None))
        verdict = ""
        if bar is not None:
            is_met = value >= bar if sign == ">=" else value <= bar
            verdict = f"{sign} {bar:,}  {'met' if is_met else 'MISSED'}"
        lines.append(f"{name:32} {value:>16,.3f}  {verdict}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="polypersona-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        small = measure_scale(folder, "tenth", chosen.rows // 10, chosen.actors)
        figures = measure_scale(folder, "whole", chosen.rows, chosen.actors)
        figures |= {f"{name}_at_a_tenth": small[name] for name in small if name.endswith("_mb") or name == "rows"}
        figures |= measure_overhead(folder)
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(render(figures))
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
