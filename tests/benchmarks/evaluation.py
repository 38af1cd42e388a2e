"""How fast evaluation is: text metrics beside a plain script, `compare` on 10,000,000 answers, BERTScore.

Run: python tests/benchmarks/evaluation.py --json FILE [--pairs N] [--plain-pairs N] [--answers N]
[--bertscore-pairs N]. A part with N = 0 is left out.

The package's metrics run over shards of pairs in two processes (a ProcessPoolExecutor, started within the measured
time); the plain loop of plain_scores.py runs in one, over the first of the same pairs, and its time is scaled to all.
Every number of every pair it scored is compared, and a difference ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

for _folder in (Path(__file__).resolve().parents[1], Path(__file__).resolve().parents[2]):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from benchmarks.answer_pairs import SHARD_PAIRS, write_pairs  # noqa: E402
from benchmarks.bertscore import NUM_PAIRS as BERTSCORE_PAIRS  # noqa: E402
from benchmarks.bertscore import bertscore, cache_folder, find_encoder  # noqa: E402
from benchmarks.distribution import ROWS, distribution_10m  # noqa: E402
from benchmarks.plain_scores import NUM_COUNTS, NUM_MEANS, PlainScores  # noqa: E402
from polypersona.measurement import peak_rss_bytes  # noqa: E402
from polypersona.metrics.base import IntArray, Metric, Pair, fixed  # noqa: E402
from polypersona.metrics.bleu import CorpusBleu, NltkBleu, SentenceBleu  # noqa: E402
from polypersona.metrics.distinct import NUM_FOLDS, Distinct, NgramSet  # noqa: E402
from polypersona.metrics.rouge import Rouge  # noqa: E402
from polypersona.metrics.sentiment import SentimentSimilarity  # noqa: E402
from polypersona.metrics.structure import LengthSimilarity, SentenceSimilarity  # noqa: E402
from polypersona.records import Item  # noqa: E402

NUM_PAIRS, NUM_PROCESSES, PLAIN_SHARE = 1_000_000, 2, 25
ITEM = Item("lifestyle.open.01", "lifestyle", "How do you spend your evenings?", "open")
# In the order of a plain row.
METRICS: tuple[Metric, ...] = (
    CorpusBleu(), SentenceBleu(), NltkBleu(), Rouge("1"), Rouge("2"), Rouge("L"),
    LengthSimilarity(), SentenceSimilarity(), SentimentSimilarity(),
)  # fmt: skip
SET_METRICS = (Distinct(1), Distinct(2))


@dataclass(frozen=True)
class Scored:
    """One shard's sums and n-grams; its rows where they are asked for; what it cost the process that scored it."""

    sums: IntArray
    ngrams: tuple[NgramSet, ...]
    rows: IntArray | None
    cpu_s: float
    peak_mb: float


@dataclass(frozen=True)
class Plain:
    """The plain loop's rows over some shards, its distinct and all n-grams, and what it cost."""

    rows: IntArray
    distinct: tuple[tuple[int, int], ...]
    wall_s: float
    cpu_s: float


def score_shard(file: Path, keep_rows: bool) -> Scored:
    """Measure one file with the package's metrics."""
    began = time.process_time()
    texts, references = _read(file)
    pairs = [Pair(ITEM, text, reference=reference) for text, reference in zip(texts, references, strict=True)]
    rows = np.concatenate([metric.measure(pairs) for metric in METRICS], axis=1)
    folds = [place % NUM_FOLDS for place in range(len(texts))]
    ngrams = tuple(metric.collect(texts, folds) for metric in SET_METRICS)
    cpu_s = time.process_time() - began
    return Scored(rows.sum(axis=0), ngrams, rows if keep_rows else None, cpu_s, peak_rss_bytes() / 2**20)


def score_plainly(files: list[Path]) -> Plain:
    """Measure files with the plain loop."""
    scores = PlainScores()
    began, began_cpu = time.perf_counter(), time.process_time()
    for file in files:
        scores.add(*_read(file))
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    counts, means = scores.arrays
    values = np.array([[fixed(value) for value in line] for line in means.tolist()], dtype=np.int64)
    ones = np.ones((len(counts), 1), dtype=np.int64)
    columns = [ones, counts] + [part for place in range(NUM_MEANS) for part in (ones, values[:, place : place + 1])]
    distinct = tuple((len(known), total) for known, total in zip(scores.ngrams, scores.num_ngrams, strict=True))
    return Plain(np.concatenate(columns, axis=1), distinct, wall_s, cpu_s)


def text_metrics(scratch: Path, num_pairs: int, num_plain: int) -> dict[str, Any]:
    """Measure both ways and compare them.

    Raises:
        AssertionError: a number of a pair, or a set, differs.
    """
    files = write_pairs(scratch, num_pairs)
    plain_files = files[: -(-num_plain // SHARD_PAIRS)]
    context = multiprocessing.get_context("spawn")
    began, began_cpu = time.perf_counter(), time.process_time()
    with ProcessPoolExecutor(NUM_PROCESSES, context) as pool:
        shards: list[Scored] = []
        ngrams = [metric.collect([], []) for metric in SET_METRICS]
        for number, scored in enumerate(pool.map(score_shard, files, [file in plain_files for file in files])):
            shards.append(replace(scored, ngrams=()))
            ngrams = [own.union(new) for own, new in zip(ngrams, scored.ngrams, strict=True)]
            if number + 1 == len(plain_files):
                of_plain = [(len(found.hashes), int(found.totals.sum())) for found in ngrams]
    wall_s = time.perf_counter() - began
    cpu_s = time.process_time() - began_cpu + sum(shard.cpu_s for shard in shards)
    with ProcessPoolExecutor(1, context) as pool:
        plain = pool.submit(score_plainly, plain_files).result()
    rows = np.concatenate([shard.rows for shard in shards if shard.rows is not None])
    assert rows.shape == (len(plain.rows), 1 + NUM_COUNTS + 2 * NUM_MEANS)
    differing = np.flatnonzero((rows != plain.rows).any(axis=1))
    assert not len(differing), f"{len(differing)} pairs differ, the first is {differing[0]}"
    assert of_plain == list(plain.distinct)
    scale = num_pairs / len(plain.rows)
    return {
        "text_metrics_speedup": plain.wall_s * scale / wall_s,
        "text_metrics_cpu_ratio": plain.cpu_s * scale / cpu_s,
        "peak_mb": max(peak_rss_bytes() / 2**20, *(shard.peak_mb for shard in shards)),
        "text_metrics_s": wall_s,
        "text_metrics_cpu_s": cpu_s,
        "text_metrics_pairs": num_pairs,
        "text_metrics_distinct_share": _distinct_share(files),
        "plain_s_scaled": plain.wall_s * scale,
        "plain_cpu_s_scaled": plain.cpu_s * scale,
        "plain_pairs": len(plain.rows),
        "pairs_compared_exactly": len(plain.rows),
        "processes": NUM_PROCESSES,
    }


def _read(file: Path) -> tuple[list[str], list[str]]:
    table = pq.read_table(file, use_threads=False)
    return table["text"].to_pylist(), table["reference"].to_pylist()


def _distinct_share(files: list[Path]) -> float:
    pairs = [hash(pair) for file in files for pair in zip(*_read(file), strict=True)]
    return len(set(pairs)) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=NUM_PAIRS)
    parser.add_argument("--plain-pairs", type=int, help=f"one in {PLAIN_SHARE} of the pairs if left out")
    parser.add_argument("--answers", type=int, default=ROWS, help="closed answers to compare with people")
    parser.add_argument("--bertscore-pairs", type=int, default=BERTSCORE_PAIRS)
    parser.add_argument("--encoder", help="a folder; all-MiniLM-L6-v2 is fetched if left out")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_ADDRESS"] = "local"
    encoder = given.encoder or (find_encoder(cache_folder()) if given.bertscore_pairs else "")
    plain = given.plain_pairs or max(1, given.pairs // PLAIN_SHARE)
    parts: list[tuple[int, Callable[[Path], Mapping[str, Any]]]] = [
        (given.bertscore_pairs, lambda scratch: bertscore(scratch, encoder, given.bertscore_pairs)),
        (given.answers, lambda scratch: distribution_10m(scratch, given.answers)),
        (given.pairs, lambda scratch: text_metrics(scratch, given.pairs, plain)),
    ]
    figures: dict[str, Any] = {}
    for count, measure in parts:
        if count:
            with tempfile.TemporaryDirectory() as scratch:
                figures |= measure(Path(scratch))
            given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value:,}")


if __name__ == "__main__":
    main()
