"""A trial before the first prompt: does the packed way give the model's own probabilities?"""

from __future__ import annotations

from typing import Any

import torch

from polypersona.decoding.batching import TokenEngine
from polypersona.decoding.decoder import Decoder
from polypersona.decoding.prompts import Prompt, PromptGroup
from polypersona.decoding.sampling import SamplingSettings

_TOLERANCE = {torch.float32: 1e-3}
_LOOSE = 0.2


@torch.inference_mode()
def differs_from_own_forward(decoder: Decoder, model: Any, device: str) -> str:
    """Return how the decoder's probabilities of a few options differ from the model's own; empty where they do not."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = [index % size for index in range(3, 15)]
    options = ((ids[2], ids[7]), (ids[5],), (ids[9], ids[1], ids[4]))
    prompts = tuple(Prompt([*ids[:6], *ids[at:]], 0, 0, options) for at in (8, 9))
    found = TokenEngine(decoder, SamplingSettings()).run([PromptGroup(prompts, 6, 24)])[0]
    tolerance = _TOLERANCE.get(decoder.shape.dtype, _LOOSE)
    for prompt, written in zip(prompts, found, strict=True):
        for index, option in enumerate(options):
            whole = torch.tensor([[*prompt.ids, *option]], device=device)
            own = model(input_ids=whole).logits[0].float().log_softmax(-1)
            if not bool(own.isfinite().all()):
                return ""  # damaged weights: every cell will say so
            places = range(len(prompt.ids) - 1, len(prompt.ids) - 1 + len(option))
            expected = sum(float(own[at, token]) for at, token in zip(places, option, strict=True))
            if written.error or abs(written.log_probs[index] - expected) > tolerance * len(option):
                return "its own forward gives other probabilities"
    return ""
