"""How far the predicted memory of a training worker is from the measured one: python tests/benchmarks/memory.py.

Each case trains one step of the project's own loop in a process of its own, without Ray, on rows that all have the
longest length, and reads the most that the process held beyond what it held before the model: resident memory on a CPU,
torch's allocations on a GPU. The prediction is `scheduling.memory.train_memory` for the same case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.15
TIMEOUT_S = 1200
ANSWER = "I see. "


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how it is trained. `overrides` are keys of its configuration."""

    name: str
    family: str
    overrides: Mapping[str, int]
    micro_batch: int
    tokens: int
    answers: int  # times `ANSWER` is repeated
    dtype: str = "fp32"
    quantization: str = "none"
    checkpointing: bool = False
    attention: str = "eager"
    rank: int = 16
    dropout: float = 0.0
    device: str = "cpu"
    keeps_freed: bool = False


def _size(hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary,
    }  # fmt: skip


TINYLLAMA = _size(2048, 22, 32, 4, 5632, 32000)
CASES = {
    case.name: case
    for case in (
        Case("llama.fp32", "llama", _size(384, 4, 6, 6, 1024, 4000), 4, 256, 4),
        Case("qwen2.sdpa.dropout", "qwen2", _size(384, 4, 6, 2, 1024, 8000), 6, 256, 4, attention="sdpa", dropout=0.05),
        Case("phi.checkpointed", "phi", _size(384, 6, 6, 6, 1536, 4000), 8, 256, 4, checkpointing=True),
        Case("mistral.logits.nf4", "mistral", _size(256, 4, 4, 2, 704, 16000), 4, 192, 16, "fp32", "nf4"),
    )
}
GPU_CASES = {
    case.name: case
    for case in (
        Case("tinyllama.bf16", "llama", TINYLLAMA, 8, 512, 8, "bf16", attention="sdpa", device="cuda"),
        Case("tinyllama.bf16.checkpointed", "llama", TINYLLAMA, 16, 1024, 8, "bf16", "none", True, "sdpa", 16, 0.05,
             "cuda"),
        Case("tinyllama.nf4", "llama", TINYLLAMA, 4, 512, 8, "bf16", "nf4", False, "sdpa", device="cuda"),
        Case("tinyllama.nf4.checkpointed", "llama", TINYLLAMA, 16, 1024, 8, "bf16", "nf4", True, "sdpa", 16, 0.05,
             "cuda"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes of one case, the process's own memory apart."""

    measured: int
    predicted: int
    framework: int
    parts: Mapping[str, int]

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured; negative if it is too low."""
        return self.predicted / self.measured - 1


def compare(case: Case) -> Figures:
    """Train the case in a fresh process and return what it held.

    Raises:
        subprocess.CalledProcessError: the process failed; what it said went to stderr.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "PYTHONPATH": _paths()}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(asdict(case))],
        check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=environment,
    )  # fmt: skip
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _paths() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))


def _child(case: Case) -> dict[str, Any]:
    """Measure in this process; nothing else may have been computed in it."""
    import torch

    from polypersona.models.shapes import load_shape
    from polypersona.scheduling.memory import TrainSetup, train_memory

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run(
            [sys.executable, __file__, "--make", json.dumps(asdict(case)), scratch],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _train(dataclasses.replace(case, micro_batch=1, tokens=64, answers=1), folder / "small")  # all is imported
        before = _reset(case.device)
        _train(case, folder / "model")
        measured = _peak(case.device) - before
        setup = TrainSetup(
            micro_batch=case.micro_batch, tokens=case.tokens, answer_tokens=_answer_tokens(folder / "model", case),
            dtype=case.dtype, quantization=case.quantization, is_checkpointed=case.checkpointing,
            optimizer="paged_adamw_8bit", attention=case.attention, is_on_gpu=case.device != "cpu", rank=case.rank,
            dropout=case.dropout, keeps_freed=case.keeps_freed,
        )  # fmt: skip
        memory = train_memory(load_shape(str(folder / "model")), setup)
    framework = before if case.device == "cpu" else int(torch.cuda.max_memory_reserved())
    return {"measured": measured, "predicted": memory.growth, "framework": framework, "parts": memory.as_json()}


def _make(case: Case, folder: Path) -> None:
    """Save the case's model with random weights, and a small one of its family."""
    import torch
    from toy_models import make_toy_model, make_toy_tokenizer, toy_config
    from transformers import AutoModelForCausalLM

    make_toy_model(case.family, folder / "small")
    known = toy_config(case.family)
    config = type(known)(**case.overrides, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16 if case.device != "cpu" else torch.float32).save_pretrained(folder / "model")
    make_toy_tokenizer().save_pretrained(folder / "model")


def _train(case: Case, model: Path) -> None:
    from polypersona.recipe_sections import FinetuneSettings
    from polypersona.training.job import TrainingJob
    from polypersona.training.loop import Listeners, Place, train

    settings = FinetuneSettings(
        epochs=1, learning_rate=1e-4, rank=case.rank, alpha=32, dropout=case.dropout, batch_size=case.micro_batch,
        accumulation=1, max_length=case.tokens,
    )  # fmt: skip
    job: Any = TrainingJob(
        str(model), str(model), settings, seed=1, dtype=case.dtype, quantization=case.quantization,  # type: ignore[arg-type]
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")), checkpointing=case.checkpointing,
        optimizer="paged_adamw_8bit", attention=case.attention,  # type: ignore[arg-type]
        keeps_freed=case.keeps_freed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        train(job, _examples(case), (), Place(Path(scratch), case.device), Listeners())


def _examples(case: Case) -> list[Any]:
    """Rows that are cut to exactly the longest length, because their prompt is longer than that.

    They share no beginning, which the loop would compute once for all of them.
    """
    from polypersona.records import Example

    answer = {"role": "assistant", "content": ANSWER * case.answers}
    prompts = [{"role": "user", "content": f"age: {40 + number} " * case.tokens} for number in range(case.micro_batch)]
    return [Example(str(number), (prompt, answer), {}) for number, prompt in enumerate(prompts)]


def _answer_tokens(model: Path, case: Case) -> int:
    from polypersona.models.loading import load_tokenizer
    from polypersona.training.encoding import encode_examples

    return encode_examples(load_tokenizer(str(model)), _examples(case), case.tokens).rows[0].num_answer


def _reset(device: str) -> int:
    """Forget the peak so far and return what is held now."""
    import gc

    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: str) -> int:
    from polypersona.measurement import peak_rss_bytes

    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return peak_rss_bytes()


def render(found: Mapping[str, Figures]) -> str:
    """Return the figures as a table."""
    lines = ["| case | measured | predicted | off |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one.measured / 2**20:,.0f} MiB | {one.predicted / 2**20:,.0f} MiB | {100 * one.error:+.0f} % |"
        for name, one in found.items()
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a prediction is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures as one flat object")
    parser.add_argument("--case", action="append", choices=[*CASES, *GPU_CASES], help="only this one; may be repeated")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.make:
        _make(Case(**json.loads(options.make[0])), Path(options.make[1]))
        return 0
    if options.child:
        print(json.dumps(_child(Case(**json.loads(options.child)))))
        return 0
    import torch

    known = {**CASES, **(GPU_CASES if torch.cuda.is_available() else {})}
    found = {}
    for name, case in known.items():
        if options.case is None or name in options.case:
            found[name] = compare(case)
            print(name, json.dumps(found[name].parts), file=sys.stderr)
    print(render(found))
    if options.json:
        flat = {
            f"{name}.{key}": value
            for name, one in found.items()
            for key, value in (
                ("measured_bytes", one.measured),
                ("predicted_bytes", one.predicted),
                ("error", one.error),
                ("framework_bytes", one.framework),
            )
        }
        Path(options.json).write_text(json.dumps(flat, indent=2) + "\n")
    return int(any(abs(one.error) > TOLERANCE for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
