"""Bytes that a training worker or an answering actor holds at most, part by part, from a model's shape.

Pure arithmetic over `model_shape.ModelShape`; it decides nothing. The parts follow Korthikanti et al. (2022), "Reducing
Activation Recomputation in Large Transformer Models", section 4, counted anew for a frozen base with LoRA (Hu et al.,
2021): a frozen product keeps no input for its weight's gradient, an adapter keeps its own. Quantised sizes follow
Dettmers et al. (2023), "QLoRA", section 3: nf4 in blocks of 64 with doubly quantised scales.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from polypersona.scheduling.machines import GIB
from polypersona.scheduling.model_shape import HEAD, ModelShape

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# 4 bits, an 8-bit scale for each 64 weights, a 32-bit scale for each 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# What a process holds before the first weight: interpreter, torch, transformers, peft; on a GPU, CUDA's context.
CPU_FRAMEWORK_BYTES, GPU_FRAMEWORK_BYTES = int(0.6 * GIB), int(0.75 * GIB)
# Projections that read the same input, which is kept once where nothing copies it for each.
_SHARED_INPUTS = (("q_proj", "k_proj", "v_proj", "fc1"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the fullest moment. `framework` is the process's own; `growth` is all that a model adds to it.

    `loading` is what a process holds once while weights are read and converted, and `mapped` are the pages of their
    file meanwhile, which count as memory but give way; the peak is the larger of these and the sum of the parts. `lost`
    are holes that a CPU's allocator cannot fill (`models.allocator.keep_freed_memory`).
    """

    weights: int
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    lost: int = 0
    loading: int = 0
    mapped: int = 0
    framework: int = 0

    @property
    def growth(self) -> int:
        """The fullest moment as the system counts it, without the process's own memory."""
        return max(self.loading + self.mapped, self._kept)

    @property
    def needed(self) -> int:
        """What there must be: the fullest moment without the pages that give way."""
        return self.framework + max(self.loading, self._kept)

    @property
    def _kept(self) -> int:
        held = self.weights + self.adapter + self.gradients + self.optimizer
        return held + self.activations + self.logits + self.cache + self.lost

    def as_json(self) -> dict[str, int]:
        """Return the parts, and what there must be as `needed`."""
        return {**asdict(self), "needed": self.needed}


@dataclass(frozen=True, slots=True)
class TrainSetup:
    """What a worker's memory depends on, beside the model.

    Attributes:
        micro_batch: rows of one forward.
        tokens: of the longest row.
        answer_tokens: of the longest answer; the head computes logits for these alone.
        dtype: fp32, bf16 or fp16.
        quantization: none, int8 or nf4.
        is_checkpointed: whether a layer keeps its input alone and is computed again in the backward.
        optimizer: adamw_torch or paged_adamw_8bit.
        attention: eager, whose weights are kept, or sdpa, which keeps none.
        is_on_gpu: whether the worker computes on one.
        rank: of the adapter.
        dropout: before the adapter's first product.
        keeps_freed: whether a CPU's allocator keeps what is freed, which is faster and leaves holes.
    """

    micro_batch: int
    tokens: int
    answer_tokens: int
    dtype: str
    quantization: str
    is_checkpointed: bool
    optimizer: str
    attention: str
    is_on_gpu: bool
    rank: int
    dropout: float
    keeps_freed: bool = False

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number that a layer computes with."""
        return DTYPE_BYTES[self.dtype]


def train_memory(shape: ModelShape, setup: TrainSetup) -> Memory:
    """Return what a training worker holds at most.

    weights      in the precision they compute in; a CPU keeps all but linear layers in fp32, and so does a quantised
                 base, whose other weights are raised for training
    adapter      4 r (in + out) for each target layer: fp32
    gradients    as the adapter
    optimizer    8 bytes a parameter (two fp32 moments), or 2 and a fp32 scale for each 256 (8-bit)
    activations  see `layer_bytes`
    logits       see `head_bytes`
    """
    adapter = adapter_parameters(shape, setup.rank)
    rest = "fp32" if setup.quantization != "none" or not setup.is_on_gpu else setup.dtype
    skipped = rest if setup.is_on_gpu else setup.dtype
    weights = weight_bytes(shape, setup.dtype, setup.quantization, rest_dtype=rest, skipped_dtype=skipped)
    tokens = setup.micro_batch * setup.tokens
    kept = tokens * layer_bytes(shape, setup)
    residual = tokens * shape.hidden_size * (4 if rest == "fp32" else setup.compute_bytes)
    saved, once = (shape.num_layers * kept, 0.0)
    if setup.is_checkpointed:
        saved, once = float(shape.num_layers * residual), kept
    # One layer's backward and the head's never coincide: the larger of the two comes on top of what is saved.
    head = head_bytes(shape, setup)
    backward = tokens * _backward_bytes(shape, setup) + once + _transient_weights(shape, setup)
    return Memory(
        weights=weights,
        adapter=4 * adapter,
        gradients=4 * adapter,
        optimizer=int(adapter * (2 + 2 * 4 / 256)) if _is_8bit(setup) else 8 * adapter,
        activations=int(saved + tokens * 4 * shape.hidden_size + max(0, backward - head)),
        logits=int(head),
        lost=int(tokens * shape.num_layers * _lost_bytes(shape, setup)),
        loading=0 if setup.is_on_gpu else weight_bytes(shape, "fp32", setup.quantization),
        mapped=0 if setup.is_on_gpu else _file_bytes(shape),
        framework=GPU_FRAMEWORK_BYTES if setup.is_on_gpu else CPU_FRAMEWORK_BYTES,
    )


def weight_bytes(
    shape: ModelShape,
    dtype: str,
    quantization: str,
    *,
    rest_dtype: str | None = None,
    skipped_dtype: str | None = None,
) -> int:
    """Return the bytes of the weights.

    bitsandbytes quantises linear layers but the head and the layers named in `shape.unquantised`; biases, embeddings,
    norms and fused experts are no linear layer's weights and stay in `rest_dtype`.

    Args:
        shape: the model's.
        dtype: of the linear layers that are not quantised.
        quantization: none, int8 or nf4.
        rest_dtype: of what is no linear layer's weight; None for `dtype`.
        skipped_dtype: of the linear layers that stay as they are in a quantised base; None for `rest_dtype`.
    """
    total = float(shape.num_other * DTYPE_BYTES[rest_dtype or dtype])
    for linear in shape.linears:
        if quantization == "none":
            total += linear.num_weights * DTYPE_BYTES[dtype]
        elif linear.name in shape.unquantised:
            total += linear.num_weights * DTYPE_BYTES[skipped_dtype or rest_dtype or dtype]
        elif quantization == "int8":
            total += linear.num_weights + 4 * linear.out_features * linear.count
        else:
            total += NF4_BYTES * linear.num_weights
    return int(total)


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Return the parameters of a LoRA adapter: r (in + out) for each target layer."""
    return sum(
        rank * (linear.in_features + linear.out_features) * linear.count
        for linear in shape.linears
        if linear.name in shape.lora_targets
    )


def layer_bytes(shape: ModelShape, setup: TrainSetup) -> float:
    """Return what one decoder layer keeps for its backward, in bytes for each token of the batch.

    With h the hidden size, a the width of all heads, k that of the heads whose keys are kept, n the heads, i the MLP's
    width, s the tokens of a row, c the bytes of a number, and d = c, or 4 where the base is quantised, whose
    layers give fp32:

    norms       4h each, in fp32: two a layer, one where attention and MLP share it
    attention   eager: 3da for queries, keys and values, the latter repeated to all heads, and dns for the weights;
                sdpa: c(2a + 2k) for queries, result, keys and values, and 4n for the sums
    MLP         3di if gated (projection, activation, second projection), else 4di
    adapters    c·in for each target's input (one copy for targets with the same input in fp32 without dropout), cr for
                its inner product; with dropout a mask for each target, a byte a number on a GPU, 4 on a CPU
    """
    c, width = setup.compute_bytes, shape.attention_size
    d = c if setup.quantization == "none" else 4
    norms = 4 * shape.hidden_size * (2 if shape.is_gated else 1)
    if setup.attention == "eager":
        attention = 3 * d * width + d * shape.num_heads * setup.tokens
    else:
        attention = c * (2 * width + 2 * shape.num_kv_heads * shape.head_dim) + 4 * shape.num_heads
    mlp = d * shape.mlp_size * (3 if shape.is_gated else 4)
    return norms + attention + mlp + _adapter_inputs(shape, setup)


def head_bytes(shape: ModelShape, setup: TrainSetup) -> float:
    """Return what logits and loss hold at once: probabilities, their gradient and the logits' gradient, 12 V a token.

    Computing in 16 bits adds the rounded logits and their gradient.
    """
    each = 12 if setup.compute_bytes == 4 else 14
    return setup.micro_batch * setup.answer_tokens * shape.vocab_size * each


def answer_memory(
    shape: ModelShape,
    *,
    dtype: str,
    quantization: str,
    cache_bytes: int,
    slots: int,
    is_on_gpu: bool,
) -> Memory:
    """Return what an actor of the packed engine holds at most.

    The adapter is merged into unquantised weights, which takes the largest layer in fp32 once. Logits are fp32 for each
    slot, and a copy of them is sorted. A prefill computes `PREFILL_TOKENS` at once.
    """
    weights = weight_bytes(shape, dtype, quantization)
    c, tokens = DTYPE_BYTES[dtype], PREFILL_TOKENS
    activations = tokens * (c * (3 * shape.mlp_size + 4 * shape.attention_size) + 8 * shape.hidden_size)
    return Memory(
        weights=weights,
        activations=activations,
        logits=2 * 4 * slots * shape.vocab_size,
        cache=cache_bytes,
        loading=weights,
        mapped=0 if is_on_gpu else _file_bytes(shape),
        framework=GPU_FRAMEWORK_BYTES if is_on_gpu else CPU_FRAMEWORK_BYTES,
    )


# Tokens that the packed engine computes in one forward.
PREFILL_TOKENS = 2048


def token_cache_bytes(shape: ModelShape, dtype: str) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * DTYPE_BYTES[dtype]


def _adapter_inputs(shape: ModelShape, setup: TrainSetup) -> float:
    """Return the bytes that a layer's adapters keep for each token."""
    c = setup.compute_bytes
    targets = [linear for linear in shape.linears if linear.name in shape.lora_targets]
    inner = sum(c * setup.rank * linear.count for linear in targets) / shape.num_layers
    each = {linear.name: linear.in_features * linear.count / shape.num_layers for linear in targets}
    if setup.dropout:
        mask = 1 if setup.is_on_gpu else 4
        return inner + sum(size * (c + mask) for size in each.values())
    if c == 4:
        for names in _SHARED_INPUTS:
            for name in [name for name in names if name in each][1:]:
                del each[name]
    return inner + sum(size * c for size in each.values())


def _backward_bytes(shape: ModelShape, setup: TrainSetup) -> float:
    """Return what the backward of a layer holds beside what was saved, for each token."""
    c = setup.compute_bytes
    mlp = 3 * c * shape.mlp_size
    if setup.attention == "eager":
        return max(mlp, 2 * c * shape.num_heads * setup.tokens)
    return max(mlp, 4 * c * shape.attention_size)


def _lost_bytes(shape: ModelShape, setup: TrainSetup) -> float:
    """Return the holes that a layer's forward leaves for each token, where the allocator keeps what is freed.

    An aligned tensor does not fit into the hole of a freed one of its size once a small object has taken the rest of
    it; so most of what a forward frees stays held. Per layer that is three times each adapted product (the base's, the
    adapter's, the scaled one), the scores before the softmax, and what is computed again where it is checkpointed.
    """
    if setup.is_on_gpu or not setup.keeps_freed:
        return 0.0
    c = setup.compute_bytes if setup.quantization == "none" else 4
    products = sum(3 * c * one.out_features * one.count for one in shape.linears if one.name in shape.lora_targets)
    scores = c * shape.num_heads * setup.tokens if setup.attention == "eager" else 0
    again = layer_bytes(shape, setup) if setup.is_checkpointed else 0
    return products / shape.num_layers + scores + again


def _transient_weights(shape: ModelShape, setup: TrainSetup) -> float:
    """Return the largest quantised layer's weights as they are multiplied: dequantised anew in each pass."""
    if setup.quantization == "none":
        return 0.0
    quantised = [linear for linear in shape.linears if linear.name not in shape.unquantised]
    return 4.0 * max(linear.in_features * linear.out_features for linear in quantised)


def _file_bytes(shape: ModelShape) -> int:
    return shape.num_parameters * DTYPE_BYTES[shape.stored_dtype]


def _is_8bit(setup: TrainSetup) -> bool:
    # The pages are CUDA's: a CPU gets plain states whatever is asked.
    return setup.optimizer == "paged_adamw_8bit" and setup.is_on_gpu


__all__ = [
    "HEAD",
    "PREFILL_TOKENS",
    "Memory",
    "TrainSetup",
    "adapter_parameters",
    "answer_memory",
    "head_bytes",
    "layer_bytes",
    "token_cache_bytes",
    "train_memory",
    "weight_bytes",
]
