"""Measure the packed engine against what a user would run instead: `python tests/benchmarks/engine.py`.

One pinned run on one core, one thread per process, the variants interleaved and rotated: three repetitions in bf16,
one in fp32. On first use it makes models, environments and conversions in a cache folder, outside of the timed run.
Answers are of models with random weights: only speed means anything here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import ceilings, environments, measuring, shapes, table, workload
from benchmarks.processes import environment

REPETITIONS = {"bf16": 3, "fp32": 1}
QUICK_PERSONAS = {"small": 4, "110m": 1}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, name: number")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="also write every single run and the versions here")
    parser.add_argument("--models", default="small,110m", help="which models, separated by commas (default: both)")
    parser.add_argument("--quick", action="store_true", help="few personas, one repetition, bf16 only: does it work?")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "polypersona-bench", metavar="DIR")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core to run on")
    chosen = parser.parse_args(arguments)
    chosen.models = chosen.models.split(",")
    if unknown := sorted(set(chosen.models) - set(shapes.SHAPES)):
        parser.error(f"--models: {', '.join(unknown)} is not known; the models are {', '.join(shapes.SHAPES)}")
    if chosen.core not in os.sched_getaffinity(0):
        parser.error(f"--core: {chosen.core} is not one of {sorted(os.sched_getaffinity(0))}")
    return chosen


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure_ceilings(core: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ceilings", str(core)],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def shares(
    name: str, rows: Sequence[workload.Row], rates: dict[str, Any], ceiling: dict[str, float]
) -> dict[str, float]:
    """Give what part of the core's matrix-product ceiling each packed variant reaches; attention is not counted."""
    shape = shapes.SHAPES[name]
    found = {}
    for variant, figures in rates.items():
        if variant.startswith("packed"):
            layers, head = workload.positions(rows, is_scored=variant.endswith("scored"))
            operations = 2 * (shape.layer_weights * layers + shape.head_weights * head)
            peak = ceiling["gflops_fp32" if "_fp32" in variant else "gflops_bf16"] * 1e9
            found[variant] = operations / figures["cpu_s"] / peak
    return found


def measure_model(
    name: str, folder: Path, chosen: argparse.Namespace, installer: environments.Installer, ceiling: dict[str, float]
) -> dict[str, Any]:
    """Run all phases of a model, print its tables, give its figures."""
    personas = QUICK_PERSONAS[name] if chosen.quick else shapes.SHAPES[name].personas
    rows = [row for row in workload.load(folder / "workload.json") if row.persona < personas]
    phases = {}
    for phase, repetitions in ({"bf16": 1} if chosen.quick else REPETITIONS).items():
        tell(f"{name}, {phase}: {len(rows)} rows, {repetitions} repetition{'s' * (repetitions > 1)}")
        phases[phase] = measuring.measure(folder, installer, chosen.core, personas, phase, repetitions)
    found, rates = table.ratios(name, phases), table.rates(phases)
    not_run = {variant: why for outcome in phases.values() for variant, why in outcome.not_run.items()}
    warnings = [line for outcome in phases.values() for line in table.uneven(outcome, sum(row.length for row in rows))]
    gemm = shares(name, rows, rates, ceiling)
    print("", *table.rate_lines(name, rates, not_run), "", *table.ratio_lines(found), sep="\n")
    print(
        "",
        *(f"{variant}: {share:.0%} of the core's matrix-product ceiling" for variant, share in gemm.items()),
        sep="\n",
    )
    print(*(f"NOT COMPARABLE: {line}" for line in warnings), sep="\n", flush=True)
    return {
        "workload": workload.describe(rows),
        "rates": rates,
        "ratios": [{**asdict(row), "is_reached": row.is_reached} for row in found],
        "share_of_gemm_ceiling": gemm,
        "not_run": not_run,
        "warnings": warnings,
        "runs": [asdict(run) for outcome in phases.values() for run in outcome.runs],
    }


def print_machine(machine: dict[str, Any]) -> None:
    """Say where the figures come from, and what to hold against them."""
    words = (f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in machine.items())
    print("Machine:", ", ".join(words))
    if not machine["has_bf16"]:
        print("This host computes bf16 slowly; the bars are meant for one with avx512_bf16 or amx_bf16.")
    if machine["load_at_start"] > 1:
        print("Other processes share this machine: trust ratios, and only large ones.")


def versions() -> dict[str, str]:
    """Give the versions of this environment's libraries and of the peers'."""
    found = {package: importlib.metadata.version(package) for package in ("polypersona", "torch", "transformers")}
    for peer in environments.ENVIRONMENTS.values():
        found[peer.name] = " ".join(peer.requirements.read_text(encoding="utf-8").split())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    chosen.cache.mkdir(parents=True, exist_ok=True)
    installer = environments.Installer(chosen.cache, tell)
    folders = {name: shapes.prepare(name, chosen.cache, tell) for name in chosen.models}
    for folder in folders.values():
        measuring.make_ready(folder, installer)
    start = time.perf_counter()
    machine = {**ceilings.machine(), "core": chosen.core, **measure_ceilings(chosen.core)}
    print_machine(machine)
    models = {name: measure_model(name, folders[name], chosen, installer, machine) for name in chosen.models}
    ratios = {row["name"]: row["value"] for found in models.values() for row in found["ratios"]}
    bars = [row["is_reached"] for found in models.values() for row in found["ratios"] if row["bar"] is not None]
    seconds = time.perf_counter() - start
    print(f"\n{sum(bar is True for bar in bars)} of {len(bars)} bars reached; {seconds / 60:.1f} minutes.")
    if chosen.json:
        rates = {
            f"{name}.{variant}.rows_per_cpu_s": rate["rows_per_cpu_s"]
            for name, found in models.items()
            for variant, rate in found["rates"].items()
        }
        figures = {**ratios, **rates, "gflops_bf16": machine["gflops_bf16"], "gflops_fp32": machine["gflops_fp32"]}
        figures |= {"gbytes_per_s": machine["gbytes_per_s"], "duration_s": seconds}
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if chosen.runs:
        result = {"machine": machine, "versions": versions(), "models": models, "is_quick": chosen.quick}
        chosen.runs.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(variant.startswith("packed") for found in models.values() for variant in found["not_run"]))


if __name__ == "__main__":
    sys.exit(main())
