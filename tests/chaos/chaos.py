"""Kill a run at random and resume it until it is done: `python tests/chaos/chaos.py --runs 25 --seed 1`.

Every run is made once undisturbed and then struck: an actor, a node's raylet, the head or the driver gets `kill -9`, or
half of all writes fail for a while. The same command is given again until it is done. Then all response and quarantine
files must equal the undisturbed run's byte for byte, and `verify` must be clean. Exits 1 where one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.nodes import Nodes
from chaos.orders import EXACT, FAILING, RANDOM, Order, Plan, build_plans

ROOT = Path(__file__).resolve().parents[2]
NODES = 2
COMMAND_TIMEOUT_S = 180.0
MAX_COMMANDS = 15
ITEMS = ["healthcare.likert.01", "healthcare.open.01", "technology.yesno.01", "technology.likert.01"]
FAILING_PERSONAS = {3: "invalid", 10: "error", 11: "refusal", 24: "invalid", 37: "error"}


@dataclass
class Result:
    """What became of a run."""

    plan: Plan
    hits: list[Order] = field(default_factory=list)
    commands: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not self.problems


class Series:
    """A series of runs on one cluster."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.orders, self.out = folder / "orders", folder / "runs"
        (self.orders / "writers").mkdir(parents=True)
        self.out.mkdir()
        ray_folder = Path(tempfile.mkdtemp(prefix="ch", dir="/tmp"))  # a short path, because sockets lie in it
        (ray_folder / "ray").mkdir()
        # The hook matches paths by their beginning; names of runs are added per command.
        os.environ.update(
            CHAOS_FOLDER=str(self.orders), CHAOS_RUN=str(self.out), CHAOS_SEED=str(seed), OMP_NUM_THREADS="1",
            PYTHONPATH=os.pathsep.join([str(ROOT / "tests" / "chaos" / "hook"), str(ROOT)]),
            # Ray writes there which cluster runs on this machine; nobody else shall join this one.
            RAY_TMPDIR=str(ray_folder),
            RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0",
        )  # fmt: skip
        self.ray_folder, self.nodes = ray_folder, Nodes(ray_folder, NODES)
        self.given: Order | None = None
        self.failing_since: float | None = None
        self.expected: dict[str, dict[str, bytes]] = {}

    def close(self) -> None:
        """End the cluster and delete its logs."""
        self.nodes.stop()
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def calm(self, variant: str) -> dict[str, bytes]:
        """Return the files of the undisturbed run of a variant."""
        if variant not in self.expected:
            self.clear()
            recipe = write_recipe(self.folder, self.out, f"calm-{variant}", variant)
            code, text = self.finish(self.start(recipe), [], None)
            if code != 0:
                raise RuntimeError(f"the undisturbed run failed ({code}): {text}")
            self.expected[variant] = read_files(self.out / f"calm-{variant}")
        return self.expected[variant]

    def disturb(self, plan: Plan) -> Result:
        """Make one run, strike it, resume it until it is done, and compare."""
        expected, result = self.calm(plan.variant), Result(plan)
        name, begin = f"run-{plan.number:02d}", time.monotonic()
        recipe = write_recipe(self.folder, self.out, name, plan.variant)
        waiting, chance = list(plan.orders), random.Random(f"{self.seed}-{plan.number}-pick")
        while result.commands < MAX_COMMANDS:
            self.nodes.repair()
            result.commands += 1
            code, text = self.finish(self.start(recipe), waiting, result, chance)
            if "Traceback" in text:
                result.problems.append(f"a traceback: {text.strip().splitlines()[-1][:200]}")
            if code == 0:
                break
            if self.failing_since is not None:
                time.sleep(1)
            if code > 0 and len(text.strip().splitlines()) > 6:
                result.problems.append(f"more than one clear error: {text[-400:]!r}")
        else:
            result.problems.append(f"not done after {MAX_COMMANDS} commands: {text[-300:]!r}")
        self.clear()
        result.problems += compare(expected, read_files(self.out / name), self.out / name)
        result.seconds = time.monotonic() - begin
        return result

    def start(self, recipe: Path) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-m", "polypersona", "generate", str(recipe)],
            env={**os.environ, "RAY_ADDRESS": self.nodes.address},
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        (self.orders / "pids.json").write_text(json.dumps({"driver": driver.pid}))
        return driver

    def finish(
        self,
        driver: subprocess.Popen[str],
        waiting: list[Order],
        result: Result | None,
        chance: random.Random | None = None,
    ) -> tuple[int, str]:
        """Wait for the driver, giving one order after another; return its exit code and what it said.

        An order that is not carried out when the driver ends stands for the next one.
        """
        reader, end, repaired = _Reader(driver), time.monotonic() + COMMAND_TIMEOUT_S, time.monotonic()
        is_over = False
        while not is_over:
            is_over = driver.poll() is not None
            if not is_over and time.monotonic() > end:
                driver.kill()
                if result is not None:
                    result.problems.append(f"a command took more than {COMMAND_TIMEOUT_S:.0f} s")
            if waiting and self.given is None and not is_over and self.is_time(waiting[0]):
                self.give(waiting[0])
            if self.given is not None and result is not None and self.is_done(self.given, driver, chance, is_over):
                result.hits.append(waiting.pop(0))
                self.clear()
            if not is_over and time.monotonic() - repaired > 1:
                self.nodes.replace_lost()
                repaired = time.monotonic()
            time.sleep(0.05)
        return driver.returncode, reader.text()

    def is_time(self, order: Order) -> bool:
        """Whether an order is of use: where writes fail from the start on, nothing gets under way."""
        return order.moment != FAILING or bool(self.writers("actor"))

    def give(self, order: Order) -> None:
        self.given = order
        if order.moment != RANDOM:
            temporary = self.orders / "order.tmp"
            temporary.write_text(json.dumps(order.as_json()))
            temporary.replace(self.orders / "order.json")

    def is_done(self, order: Order, driver: subprocess.Popen[str], chance: random.Random | None, is_over: bool) -> bool:
        """Return whether an order was carried out; carry it out where that is done from here."""
        if order.moment in EXACT:
            return (self.orders / "hit.json").exists()
        if order.moment == FAILING:
            # The time counts from the first write that fails; a driver that ends of it is started into the same.
            if self.failing_since is None and (self.orders / "failed.jsonl").exists():
                self.failing_since = time.monotonic()
            return self.failing_since is not None and time.monotonic() - self.failing_since >= order.delay_s
        if is_over:
            return False
        actors = self.writers("actor")
        if not actors:
            return False
        if (first := min(_born(path) for path in actors)) and time.time() - first < order.delay_s:
            return False
        assert chance is not None
        return self.kill(order.victim, driver, [int(path.name.split("-")[1]) for path in actors], chance)

    def kill(self, victim: str, driver: subprocess.Popen[str], actors: list[int], chance: random.Random) -> bool:
        """Kill a victim from outside, at whatever moment it is."""
        if victim == "head":
            self.nodes.kill_head()
            driver.kill()  # it runs on the head node
            return True
        pids = {"driver": [driver.pid], "actor": sorted(actors), "node": sorted(self.nodes.raylets())}[victim]
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(pids), signal.SIGKILL)
            return True
        return False

    def writers(self, role: str) -> list[Path]:
        """Return the files of the processes of a role that have written to a run and live."""
        found = sorted((self.orders / "writers").glob(f"{role}-*"))
        return [path for path in found if Path(f"/proc/{path.name.split('-')[1]}").exists()]

    def clear(self) -> None:
        """Take back the order."""
        self.given = self.failing_since = None
        for name in ("order.json", "hit.json", "failed.jsonl"):
            (self.orders / name).unlink(missing_ok=True)


class _Reader:
    """Reads what a process says on stderr, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line)

    def text(self) -> str:
        self._thread.join(timeout=5)
        return "".join(self._lines)


def _born(path: Path) -> float:
    return path.stat().st_mtime


def write_recipe(folder: Path, out: Path, name: str, variant: str) -> Path:
    """Write a run's panel and recipe. All variants of one kind differ by name only."""
    size, delay_s, shard_personas = (72, 0.25, 2) if variant == "fake" else (64, 0, 8)
    panel = folder / f"panel-{variant}.jsonl"
    rows = []
    for place in range(size):
        failing = FAILING_PERSONAS.get(place) if variant == "fake" else None
        extra: dict[str, Any] = {"fake_failure": failing} if failing else {"fake_delay_s": delay_s} if delay_s else {}
        rows.append(
            {"id": f"p{place:03d}", "age": 20 + place % 60, "occupation": ("nurse", "farmer")[place % 2], **extra}
        )
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate: dict[str, Any] = {
        "actors": NODES,
        "shard_personas": shard_personas,
        "max_attempts": 6,
        "max_quarantined": 1.0,
    }
    model: dict[str, Any] = {}
    if variant == "fake":
        generate |= {"engine": "fake", "order": "random"}
    else:
        generate |= {"engine": "packed", "max_new_tokens": 24, "rationale": True}
        model = {"base": "tiny", "adapter": "none", "dtype": "fp32"}
    recipe = {
        "name": name, "out": str(out), "seed": 7, "panel": {"source": str(panel)}, "instrument": {"items": ITEMS},
        "generate": generate, **({"model": model} if model else {}),
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def read_files(run: Path) -> dict[str, bytes]:
    """Return the bytes of a run's response and quarantine files."""
    files = [path for part in ("responses", "quarantine") for path in sorted((run / part).glob("shard-*"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def compare(expected: dict[str, bytes], found: dict[str, bytes], run: Path) -> list[str]:
    """Return what differs from the undisturbed run, and what `verify` says."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is too much" for name in sorted(found.keys() - expected.keys())]
    problems += [f"{name} differs" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    audit = subprocess.run(
        [sys.executable, "-m", "polypersona", "verify", str(run)],
        env={**os.environ, "CHAOS_FOLDER": ""}, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip
    if audit.returncode != 0:
        problems.append(f"verify: {(audit.stdout + audit.stderr).strip()[-400:]}")
    for folder in ("attempts", "probes"):
        left = sorted(path.name for path in (run / folder).glob("*"))
        if left:
            problems.append(f"left in {folder}/: {', '.join(left[:3])}")
    if (run / "lease.json").exists():
        problems.append("lease.json is left")
    left = sorted(str(path.relative_to(run)) for path in run.rglob(".*.tmp"))
    if left:
        problems.append(f"left half-written: {', '.join(left[:3])}")
    return problems


def figures(results: Sequence[Result]) -> dict[str, float]:
    """Return the series as numbers."""
    hits = Counter(order.moment for result in results for order in result.hits)
    victims = Counter(order.victim for result in results for order in result.hits)
    moments = (*EXACT, FAILING, RANDOM)
    return {
        "runs": len(results),
        "runs_equal": sum(result.is_equal for result in results),
        "commands": sum(result.commands for result in results),
        "orders_missed": sum(len(result.plan.orders) - len(result.hits) for result in results),
        **{f"hits_{moment.replace(' ', '_').replace('.', '_')}": hits[moment] for moment in moments},
        **{f"victims_{victim}": victims[victim] for victim in ("actor", "node", "driver", "head", "writes")},
        "seconds": round(sum(result.seconds for result in results), 1),
    }


def tell(result: Result) -> None:
    hits = "; ".join(map(str, result.hits)) or "never hit"
    state = "equal" if result.is_equal else "DIFFERS"
    figures = f"{state:8s}{result.commands:3d} commands {result.seconds:6.1f} s"
    print(f"{result.plan.number:3d}  {result.plan.variant:5s} {figures}  {hits}")
    for problem in result.problems:
        print(f"       {problem}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, metavar="N", help="how many runs (default: 25)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides every strike (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, name: number")
    parser.add_argument("--only", metavar="K", help="only some runs of the series: 3, or 5-9")
    parser.add_argument("--no-model", action="store_true", help="the fake engine only")
    parser.add_argument("--max-minutes", type=float, default=60.0, help="begin no run after so long (default: 60)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all runs in this new folder")
    chosen = parser.parse_args(arguments)
    first, _, last = (chosen.only or f"0-{chosen.runs}").partition("-")
    wanted = range(int(first), int(last or first) + 1)
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="chaos"))
    folder.mkdir(parents=True, exist_ok=True)
    plans = build_plans(chosen.runs, chosen.seed, with_model=not chosen.no_model)
    begin, results = time.monotonic(), []
    series = Series(folder.resolve(), chosen.seed)
    try:
        for plan in plans:
            # The cluster must not outlive this process; Ray's own handler, set with each node, waits half a minute.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            if plan.number in wanted and time.monotonic() - begin < 60 * chosen.max_minutes:
                results.append(series.disturb(plan))
                tell(results[-1])
    finally:
        series.close()
        if chosen.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    found = figures(results)
    for name, value in found.items():
        print(f"{name:28s}{value:10g}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["runs"] == found["runs_equal"] > 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
