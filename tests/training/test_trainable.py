"""How the model to be trained is laid out on its device."""

from __future__ import annotations

import torch
from training_runs import SETTINGS

from polypersona.training.job import TrainingJob
from polypersona.training.trainable import build_trainable


def test_a_head_that_shares_the_embeddings_weight_is_not_rounded_on_a_cpu() -> None:
    base = build_trainable(TrainingJob("tiny", "tiny", SETTINGS, seed=7, dtype="bf16"), "cpu").model.get_base_model()
    embedding = base.get_input_embeddings()
    assert base.get_output_embeddings().weight is embedding.weight
    assert embedding(torch.tensor([[1]])).dtype == torch.float32
    assert base.get_decoder().layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
