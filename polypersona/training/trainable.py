"""The model that is trained: a base with a fresh adapter, laid out for its device. Takes a job, knows no row.

On a CPU the frozen layers stand in the precision they compute in, so that autocast rounds nothing twice, and attention
is multiplied out by `causal_attention`: the fused kernel's backward pass costs twice that there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from polypersona.errors import ModelError
from polypersona.models.catalogue import FAMILY_TARGETS
from polypersona.models.loading import DTYPES, Dtype, load_base_model
from polypersona.models.lora import LoraTargets, attach_lora, lora_targets
from polypersona.records import seed_from
from polypersona.training.causal_attention import CAUSAL, can_attend
from polypersona.training.choice_loss import ChoiceBatch, choice_loss
from polypersona.training.encoding import Batch
from polypersona.training.job import TrainingJob


@dataclass(frozen=True, slots=True)
class Trainable:
    """A PeftModel whose adapter alone is trained.

    `has_plain_head` says that its logits are its head's, unscaled; `shares_prompts` that what all rows begin with may
    be computed once for them: its attention can, and no dropout makes it differ from row to row.
    """

    model: Any
    targets: LoraTargets
    device: str
    dtype: Dtype
    has_plain_head: bool
    shares_prompts: bool = False

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's, in the model's order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def autocast(self) -> Any:
        """Return the context in which the model computes in the job's precision."""
        return torch.autocast(self.device.partition(":")[0], DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def summed_loss(self, batch: Batch | ChoiceBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the batch's answer tokens, or of its choices, summed, in fp32."""
        return self.answer_losses(batch).sum()

    def answer_losses(self, batch: Batch | ChoiceBatch) -> torch.Tensor:
        """Return the negative log-likelihood of each answer token, or of each question's choices, in the rows' order.

        The head sees those places only that an answer's token follows, so its logits never exist for a prompt.
        """
        with self.autocast():
            logits = self._logits(batch)
        if isinstance(batch, ChoiceBatch):
            return choice_loss(logits.float(), batch)
        return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")

    def _logits(self, batch: Batch | ChoiceBatch) -> torch.Tensor:
        base = self.model.get_base_model()
        tree: dict[str, Any] = {}
        if isinstance(batch, Batch) and batch.num_shared:
            tree = {"position_ids": batch.positions, "shared_rows": (batch.num_shared, batch.num_rows)}
        if isinstance(batch, ChoiceBatch):
            tree = {"position_ids": batch.positions, "attention_mask": batch.mask(DTYPES[self.dtype])}
        if not self.has_plain_head:
            whole = self.model(input_ids=batch.ids, use_cache=False, **tree).logits
            picked: torch.Tensor = whole.flatten(0, 1)[batch.sources]
            return picked
        hidden = base.get_decoder()(input_ids=batch.ids, use_cache=False, **tree).last_hidden_state
        logits: torch.Tensor = base.get_output_embeddings()(hidden.flatten(0, 1)[batch.sources])
        return logits


def build_trainable(job: TrainingJob, device: str) -> Trainable:
    """Load the job's base and attach an adapter of zero effect, drawn with the job's seed.

    Raises:
        ModelError: the base cannot be loaded or trained as asked.
    """
    is_on_cpu = device == "cpu"
    if job.dtype == "fp16" and is_on_cpu:
        raise ModelError("A CPU does not train in fp16.", "Set model.dtype to bf16, fp32 or auto.")
    base = load_base_model(
        job.model,
        dtype="fp32" if is_on_cpu else job.dtype,
        quantization=job.quantization,
        revision=job.revision,
        trust_remote_code=job.trust_remote_code,
        device=device,
    )
    base.config.use_cache = False
    targets = lora_targets(base)
    is_checkpointed = job.checkpointing
    if is_checkpointed is None:
        is_checkpointed = job.quantization != "none" and not is_on_cpu
    torch.manual_seed(seed_from(job.seed, "lora") % 2**32)
    model = attach_lora(
        base,
        rank=job.settings.rank,
        alpha=job.settings.alpha,
        dropout=job.settings.dropout,
        names=targets.names,
        is_checkpointed=is_checkpointed,
    )
    if is_checkpointed and job.quantization == "none":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _choose_attention(base, job.attention or ("eager" if is_on_cpu else "sdpa"), job.settings.max_length)
    if is_on_cpu and job.dtype != "fp32":
        _round_frozen_layers(base, DTYPES[job.dtype])
    family = str(getattr(base.config, "model_type", ""))
    is_plain = family in FAMILY_TARGETS
    dropout = job.settings.dropout or getattr(base.config, "attention_dropout", 0.0)
    shares_prompts = is_plain and base.config._attn_implementation == CAUSAL and not dropout
    return Trainable(model, targets, device, job.dtype, is_plain, shares_prompts)


def _choose_attention(base: Any, kind: str, max_length: int) -> None:
    if kind == "eager" and can_attend(base, max_length):
        base.set_attn_implementation(CAUSAL)
    else:
        base.set_attn_implementation(kind)


def _round_frozen_layers(base: Any, dtype: torch.dtype) -> None:
    """Store what autocast would round at every use as it is used; the sums are the same.

    A head that shares its weight with the embedding is left: autocast rounds no embedding.
    """
    embedding = base.get_input_embeddings().weight
    for module in base.modules():
        if type(module) is torch.nn.Linear and not module.weight.requires_grad and module.weight is not embedding:
            module.to(dtype)
