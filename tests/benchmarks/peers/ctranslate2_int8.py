"""CTranslate2 in int8: per persona the prefix is a cached static prompt, closed and open rows are batches of their own.

It stops a batch at one length: every kind of row writes that kind's mean. `python -m benchmarks.peers.ctranslate2_int8
SOURCE TARGET` converts a Hugging Face folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.workload import SAMPLING, Row, by_persona, mean_length


class StaticPrompts:
    def __init__(self, folder: str) -> None:
        import json

        self.folder = folder
        self.names: list[str] = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))

    def prepare(self, rows: Sequence[Row]) -> None:
        import ctranslate2

        # Cached static prompts live as long as the generator.
        self.generator = ctranslate2.Generator(
            self.folder, device="cpu", inter_threads=1, intra_threads=1, compute_type="int8"
        )
        self.generator.generate_batch([self._names([5, 6, 7])], max_length=3, min_length=3)

    def _names(self, ids: Sequence[int]) -> list[str]:
        return [self.names[token] for token in ids]

    def run(self, rows: Sequence[Row], mode: str) -> list[int]:
        written: dict[tuple[int, int], int] = {}
        length = {kind: mean_length(rows, kind) for kind in ("closed", "open")}
        for asked in by_persona(rows):
            for kind, batch in groupby(sorted(asked, key=lambda row: row.kind), key=lambda row: row.kind):
                mine = list(batch)
                for row, result in zip(mine, self._generate(mine, length[kind]), strict=True):
                    written[row.persona, row.item] = len(result)
        return [written[row.persona, row.item] for row in rows]

    def _generate(self, rows: Sequence[Row], length: int) -> list[list[int]]:
        results = self.generator.generate_batch(
            [self._names(row.ids[row.prefix :]) for row in rows],
            static_prompt=self._names(rows[0].ids[: rows[0].prefix]),
            cache_static_prompt=True,
            include_prompt_in_result=False,
            max_batch_size=32,
            max_length=length,
            min_length=length,
            sampling_topk=SAMPLING["top_k"],
            sampling_topp=SAMPLING["top_p"],
            sampling_temperature=SAMPLING["temperature"],
        )
        return [result.sequences_ids[0] for result in results]


def build(folder: str, dtype: str) -> StaticPrompts:
    return StaticPrompts(folder)


def convert(source: str, target: str) -> None:
    import ctranslate2

    ctranslate2.converters.TransformersConverter(source).convert(target, quantization="int8", force=True)


if __name__ == "__main__":
    convert(*sys.argv[1:3])
