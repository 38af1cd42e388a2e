"""Measure the training loop: `python tests/benchmarks/finetune.py --json FILE`.

Against a plain Trainer script with random batches (`peers/plain_trainer.py`), on the default dataset and on records of
10 to 400 tokens: real tokens per CPU-second, same rows, batch, precision and steps, one thread. And under Ray Train
against the same loop without it: seconds of training, start-up printed apart. Every figure is the median of repetitions
that are interleaved, each in a process of its own; loading the model is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

VARIANTS = ("loop", "trainer")
BARS = {"default": 1.15, "mixed": 1.4}
RAY_BAR = 1.1
MIXED_TOKENS = (10, 400)
MAX_LENGTH = 512
TIMEOUT_S = 1800


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, name: number")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run against the Trainer (default: 40)")
    parser.add_argument("--ray-steps", type=int, default=160, help="steps of a run under Ray (default: 160)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default=native_dtype(), help="(default: what the CPU is fast in)"
    )
    parser.add_argument("--without-ray", action="store_true", help="leave out the part under Ray")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def native_dtype() -> str:
    """Return bf16 where the CPU has instructions for it, else fp32."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def make_default(folder: Path, rows: int) -> None:
    """Write the default dataset's first training rows as the dataset of a run."""
    from polypersona import dataset
    from polypersona.recipe import build_recipe
    from polypersona.storage import RunDirectory

    whole = build_recipe({"name": "whole", "out": str(folder), "seed": 7, "panel": {"size": 433}})
    dataset.run(whole)
    lines = RunDirectory.at(whole.location).read("dataset/train.jsonl").splitlines()
    write_rows(folder, [json.loads(line) for line in lines[:rows]])


def make_mixed(folder: Path, rows: int) -> None:
    """Write records whose length in tokens is uniform over `MIXED_TOKENS`, as far as the template allows."""
    from polypersona.chatml import encode_example
    from polypersona.models.loading import load_tokenizer

    tokenizer, shuffler = load_tokenizer("tiny"), random.Random(7)
    words = [
        "work",
        "health",
        "city",
        "school",
        "care",
        "money",
        "time",
        "people",
        "trust",
        "family",
        "tax",
        "road",
        "law",
        "news",
        "price",
        "home",
    ]
    made = []
    for number in range(rows):
        wanted = shuffler.randint(*MIXED_TOKENS)
        count, messages = 1, make_messages(["work"], 1)
        while True:
            drawn = [shuffler.choice(words) for _ in range(count)]
            grown = make_messages(drawn, max(1, count // 4))
            if sum(map(len, encode_example(tokenizer, grown))) > wanted:
                break
            messages, count = grown, count + max(1, count // 16)
        made.append({"id": str(number), "messages": messages, "metadata": {}})
    write_rows(folder, made)


def make_messages(words: Sequence[str], num_answer: int) -> list[dict[str, str]]:
    question, answer = words[num_answer:] or words, words[:num_answer]
    return [{"role": "user", "content": " ".join(question)}, {"role": "assistant", "content": " ".join(answer)}]


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    target = folder / "bench" / "dataset"
    target.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (target / "train.jsonl").write_text(text, encoding="utf-8")
    (target / "validation.jsonl").write_text("", encoding="utf-8")


def run_one(variant: str, folder: Path, dtype: str, steps: int) -> dict[str, float]:
    """Run one variant in this process and return tokens, CPU-seconds and seconds of training."""
    import torch

    torch.set_num_threads(1)
    if variant == "ray":
        return run_ray(folder, dtype)
    if variant == "trainer":
        from benchmarks.peers.plain_trainer import run_trainer

        return run_trainer(load_rows(folder), dtype, MAX_LENGTH, steps)
    return run_loop(folder, dtype)


def load_rows(folder: Path) -> list[Any]:
    from polypersona.records import Example

    lines = (folder / "bench" / "dataset" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Example(row["id"], tuple(row["messages"]), row["metadata"]) for row in rows]


def settings() -> Any:
    from polypersona.recipe_sections import PRESETS

    return PRESETS["tiny"].model_copy(update={"epochs": 1.0, "max_length": MAX_LENGTH})


def run_loop(folder: Path, dtype: Any) -> dict[str, float]:
    from polypersona.training.job import TrainingJob
    from polypersona.training.loop import Listeners, Place, train

    marks: list[tuple[float, float]] = []

    def on_step(step: int) -> None:
        marks.append((time.process_time(), time.perf_counter()))

    job = TrainingJob("tiny", "tiny", settings(), seed=7, dtype=dtype)
    with tempfile.TemporaryDirectory() as scratch:
        outcome = train(job, load_rows(folder), [], Place(Path(scratch)), Listeners(on_step=on_step))
    (cpu, wall), (cpu_end, wall_end) = marks[0], marks[-1]
    return {"tokens": outcome.tokens, "cpu_s": cpu_end - cpu, "wall_s": wall_end - wall, "steps": outcome.steps}


def run_ray(folder: Path, dtype: str) -> dict[str, float]:
    """Run the finetune stage on a local Ray; training is timed in the worker, the rest of the stage is start-up."""
    import shutil

    from polypersona import finetune
    from polypersona.recipe import build_recipe

    shutil.rmtree(folder / "bench" / "adapter", ignore_errors=True)
    (folder / "bench" / "run.json").unlink(missing_ok=True)
    recipe = build_recipe(
        {
            "name": "bench", "out": str(folder), "seed": 7,
            "model": {"base": "tiny", "dtype": dtype, "quantization": "none"},
            "finetune": {"preset": "tiny", "epochs": 1.0, "max_length": MAX_LENGTH, "workers": 1},
            "cluster": {"limits": {"CPU": 1}},
        }
    )  # fmt: skip
    begin = time.perf_counter()
    finetune.run(recipe)
    whole = time.perf_counter() - begin
    training = json.loads((folder / "bench" / "adapter" / "training.json").read_text(encoding="utf-8"))
    seconds = float(training["seconds"])
    return {"tokens": training["tokens"], "wall_s": seconds, "start_up_s": whole - seconds, "steps": training["steps"]}


def ask(variant: str, folder: Path, chosen: argparse.Namespace, steps: int) -> dict[str, float]:
    """Run one variant in a process of its own."""
    command = [sys.executable, __file__, "--one", variant, str(folder), "--dtype", chosen.dtype, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(
    variants: Sequence[str], folder: Path, chosen: argparse.Namespace, steps: int
) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Run the variants in turn, beginning with another one in each repetition, and yield what each gave."""
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for repetition in range(chosen.repetitions):
        turn = repetition % len(variants)
        for variant in [*variants[turn:], *variants[:turn]]:
            found = ask(variant, folder, chosen, steps)
            runs[variant].append(found)
            told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"  {variant} {repetition + 1}: {told}", file=sys.stderr, flush=True)
    yield from runs.items()


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    if chosen.one:
        print(json.dumps(run_one(chosen.one[0], Path(chosen.one[1]), chosen.dtype, chosen.steps)))
        return 0
    figures: dict[str, float] = {}
    batch = settings().global_batch
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        for data, make in (("default", make_default), ("mixed", make_mixed)):
            folder = Path(scratch, data)
            make(folder, chosen.steps * batch)
            rates = {
                variant: statistics.median(run["tokens"] / run["cpu_s"] for run in runs)
                for variant, runs in measure(VARIANTS, folder, chosen, chosen.steps)
            }
            ratio = rates["loop"] / rates["trainer"]
            figures |= {f"{data}.{name}.tokens_per_cpu_s": rate for name, rate in rates.items()}
            figures[f"{data}.ratio"] = ratio
            print(
                f"{data}: {rates['loop']:,.0f} real tokens per CPU-second, a plain Trainer {rates['trainer']:,.0f}: "
                f"{ratio:.2f} times (bar {BARS[data]})"
            )
        if not chosen.without_ray:
            figures |= measure_ray(Path(scratch, "ray"), chosen, batch)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def measure_ray(folder: Path, chosen: argparse.Namespace, batch: int) -> dict[str, float]:
    make_default(folder, chosen.ray_steps * batch)
    found = dict(measure(("loop", "ray"), folder, chosen, chosen.ray_steps))
    alone, under = (statistics.median(run["wall_s"] for run in found[name]) for name in ("loop", "ray"))
    start_up = statistics.median(run["start_up_s"] for run in found["ray"])
    print(
        f"Ray Train: {under:.1f} s of training, {alone:.1f} s without Ray: {under / alone:.2f} times (bar {RAY_BAR}); "
        f"start-up and commit {start_up:.1f} s"
    )
    return {"ray.overhead": under / alone, "ray.start_up_s": start_up, "ray.wall_s": under, "without_ray.wall_s": alone}


if __name__ == "__main__":
    sys.exit(main())
