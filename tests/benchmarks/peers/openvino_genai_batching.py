"""OpenVINO GenAI's continuous batching with a prefix cache, the fastest engine a user could install on a CPU.

The cache shares whole blocks of 32 tokens, so it is primed with every persona's prefix cut to whole blocks (primed with
the exact prefix, requests that share a partly filled block get wrong tokens, without a word). Rows are given as token
ids and write their kind's mean length. `python -m benchmarks.peers.openvino_genai_batching SOURCE TARGET` converts a
Hugging Face folder; it needs optimum-intel.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.workload import SAMPLING, Row, by_persona, mean_length

BLOCK = 32
CACHE_GIB = 2
MAX_SEQUENCES = 64
MAX_BATCHED_TOKENS = 512
HINTS = {"bfloat16": "bf16", "float32": "f32"}


class ContinuousBatching:
    def __init__(self, folder: str, dtype: str) -> None:
        self.folder = folder
        self.hint = HINTS[dtype]
        self.pipeline: Any = None

    def prepare(self, rows: Sequence[Row]) -> None:
        import openvino_genai

        self.pipeline = (
            None  # what the prefix cache holds lives as long as the pipeline, and would flatter a second run
        )
        gc.collect()
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_batched_tokens = MAX_BATCHED_TOKENS
        scheduler.max_num_seqs = MAX_SEQUENCES
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": self.hint,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(self.folder, scheduler, "CPU", properties)
        self._generate([[5, 6, 7, 8, 9]], [4])

    def _generate(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
        import numpy as np
        import openvino

        results = self.pipeline.generate(
            [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts],
            [self._config(length, seed) for seed, length in enumerate(lengths)],
        )
        return [len(result.m_generation_ids[0]) for result in results]

    def _config(self, length: int, seed: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = length
        config.ignore_eos = True
        config.do_sample = True
        config.top_k = SAMPLING["top_k"]
        config.top_p = SAMPLING["top_p"]
        config.temperature = SAMPLING["temperature"]
        config.rng_seed = seed
        config.apply_chat_template = False
        return config

    def run(self, rows: Sequence[Row], mode: str) -> list[int]:
        firsts = [asked[0] for asked in by_persona(rows)]
        self._generate([row.ids[: row.prefix // BLOCK * BLOCK] for row in firsts], [1] * len(firsts))
        length = {kind: mean_length(rows, kind) for kind in ("closed", "open")}
        return self._generate([row.ids for row in rows], [length[row.kind] for row in rows])


def build(folder: str, dtype: str) -> ContinuousBatching:
    return ContinuousBatching(folder, dtype)


def convert(source: str, target: str) -> None:
    from optimum.intel import OVModelForCausalLM

    OVModelForCausalLM.from_pretrained(source, export=True, compile=False, load_in_8bit=False).save_pretrained(target)


if __name__ == "__main__":
    convert(*sys.argv[1:3])
