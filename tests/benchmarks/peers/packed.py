"""The engine of this project, given the same token ids as its peers. The only file here that knows the package.

Mode `text` writes every answer; `scored` writes the open ones and chooses the closed ones by their letters'
probabilities. What all personas share is computed anew in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.workload import SAMPLING, Row, by_persona
from polypersona.decoding.batching import BatchSettings, TokenEngine
from polypersona.decoding.decoder import StockDecoder
from polypersona.decoding.fused import FusedDecoder
from polypersona.decoding.prompts import Prompt, PromptGroup
from polypersona.decoding.sampling import SamplingSettings
from polypersona.models.loading import load_model
from polypersona.scheduling.generation_plan import CPU_SLOTS

DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
SLOTS = CPU_SLOTS  # as a recipe with `slots: auto` gets them


class Packed:
    def __init__(self, folder: str, dtype: str) -> None:
        torch.set_num_threads(1)
        model = load_model(folder, dtype=DTYPES[dtype])  # type: ignore[arg-type]
        self.decoder = FusedDecoder(model, StockDecoder(model, "cpu").shape)

    def prepare(self, rows: Sequence[Row]) -> None:
        self.engine = TokenEngine(self.decoder, SamplingSettings(**SAMPLING), settings=BatchSettings(SLOTS))
        self.run([Row(persona, 0, [5, 6, 7, 8 + persona, 9], 2, 4, 3, []) for persona in range(4)], "text")
        self.engine = TokenEngine(self.decoder, SamplingSettings(**SAMPLING), settings=BatchSettings(SLOTS))

    def run(self, rows: Sequence[Row], mode: str) -> list[int]:
        groups = [self._group(asked, mode) for asked in by_persona(rows)]
        results = [written for group in self.engine.run(groups) for written in group]
        for written in results:
            if written.error:
                raise RuntimeError(written.error)
        return [len(written.tokens) for written in results]

    def _group(self, rows: Sequence[Row], mode: str) -> PromptGroup:
        prompts = []
        for row in rows:
            options = tuple((letter,) for letter in row.options) if mode == "scored" else ()
            seed = row.persona * 1000 + row.item
            prompts.append(Prompt(row.ids, seed, 0 if options else row.length, options))
        own = max(len(row.ids) - row.prefix + prompt.num_kept_tokens for row, prompt in zip(rows, prompts, strict=True))
        return PromptGroup(tuple(prompts), rows[0].prefix, own)


def build(folder: str, dtype: str) -> Packed:
    return Packed(folder, dtype)
