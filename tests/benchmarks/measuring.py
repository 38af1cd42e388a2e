"""Runs the variants of one model in turn, in an order that rotates from repetition to repetition, and keeps every run.

The processes of a phase live together and only one of them works at a time, on one core. A variant that cannot run is
kept with its reason. Knows no ratio and prints nothing but progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import Installer
from benchmarks.processes import PeerError, Worker

PREPARE_S, RUN_S = 300, 900


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer the rows: a peer's module with a number format, and the peer's mode."""

    name: str
    module: str
    mode: str
    dtype: str
    environment: str = ""
    is_converted: bool = False

    @property
    def process(self) -> tuple[str, str]:
        """Variants with the same value share a process, and so a loaded model."""
        return self.module, self.dtype


def _peers(dtype: str, suffix: str) -> list[Variant]:
    return [
        Variant(f"packed{suffix}.text", "packed", "text", dtype),
        Variant(f"static32{suffix}", "plain_generate", "static32", dtype),
        Variant(f"packed{suffix}.scored", "packed", "scored", dtype),
        Variant(f"bucketed32{suffix}", "plain_generate", "bucketed32", dtype),
    ]


CTRANSLATE2 = Variant("ctranslate2_int8", "ctranslate2_int8", "text", "int8", "ctranslate2", is_converted=True)
OPENVINO = Variant("openvino_bf16", "openvino_genai_batching", "text", "bfloat16", "openvino", is_converted=True)
OPENVINO_FP32 = Variant("openvino_fp32", "openvino_genai_batching", "text", "float32", "openvino", is_converted=True)
# The second phase asks the fast peers again, so that its ratios, too, are of one run.
PHASES = {
    "bf16": [*_peers("bfloat16", ""), CTRANSLATE2, OPENVINO],
    "fp32": [*_peers("float32", "_fp32"), CTRANSLATE2, OPENVINO, OPENVINO_FP32],
}


@dataclass(frozen=True, slots=True)
class Run:
    """One variant's figures in one repetition."""

    phase: str
    repetition: int
    variant: str
    rows: int
    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def rate(self) -> float:
        """Rows per CPU-second."""
        return self.rows / self.cpu_s


@dataclass(slots=True)
class Outcome:
    """Everything that came of one model."""

    runs: list[Run] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # variant -> reason


def make_ready(folder: Path, installer: Installer) -> None:
    """Install and convert all that a model's variants need, so that nothing is built between figures."""
    for variant in {variant.process: variant for variants in PHASES.values() for variant in variants}.values():
        try:
            peer_files(variant, folder, installer)
        except PeerError as error:
            installer.tell(f"{variant.name} will not run: {error}")


def rotated(variants: Sequence[Variant], repetition: int, repetitions: int) -> list[Variant]:
    """Give the order of a repetition: each begins a further share of the list later."""
    start = repetition * len(variants) // repetitions % len(variants)
    return [*variants[start:], *variants[:start]]


def measure(folder: Path, installer: Installer, core: int, personas: int, phase: str, repetitions: int) -> Outcome:
    """Run one phase of one model."""
    outcome = Outcome()
    settings = {"core": core, "workload": str(folder / "workload.json"), "personas": personas}
    workers: dict[tuple[str, str], Worker] = {}
    try:
        for variant in PHASES[phase]:
            try:
                if variant.process not in workers:
                    workers[variant.process] = _start(variant, folder, installer, settings)
            except PeerError as error:
                outcome.not_run[variant.name] = str(error)
        for repetition in range(repetitions):
            for variant in rotated(PHASES[phase], repetition, repetitions):
                if variant.name not in outcome.not_run:
                    _run(variant, workers[variant.process], phase, repetition, outcome, installer.tell)
    finally:
        for worker in workers.values():
            worker.close()
    return outcome


def peer_files(variant: Variant, folder: Path, installer: Installer) -> tuple[Path, Path]:
    """Give the interpreter and the model of a variant; make them where they are missing.

    Raises:
        PeerError: they cannot be made.
    """
    python = installer.python_of(variant.environment)
    return python, installer.converted(variant.module, python, folder) if variant.is_converted else folder


def _start(variant: Variant, folder: Path, installer: Installer, settings: dict[str, Any]) -> Worker:
    python, model = peer_files(variant, folder, installer)
    log = installer.cache / "logs" / f"{folder.name}-{variant.module}-{variant.dtype}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return Worker.start(python, variant.module, {**settings, "folder": str(model), "dtype": variant.dtype}, log)


def _run(
    variant: Variant, worker: Worker, phase: str, repetition: int, outcome: Outcome, tell: Callable[[str], None]
) -> None:
    try:
        worker.ask(PREPARE_S, do="prepare")
        run = Run(phase, repetition, variant.name, **worker.ask(RUN_S, do="run", mode=variant.mode))
    except PeerError as error:
        outcome.not_run[variant.name] = str(error)
        tell(f"  {variant.name}: not run: {error}")
        return
    outcome.runs.append(run)
    tell(f"  {phase} {repetition + 1}: {variant.name} {run.rate:.2f} rows per CPU-second, {run.wall_s:.1f} s")
