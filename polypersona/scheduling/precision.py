"""In which precision weights are held, and whether they are quantised: what devices compute, and what fits them.

Pure: no clock, no Ray, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from polypersona.errors import InfeasiblePlanError
from polypersona.recipe import Recipe
from polypersona.scheduling.machines import GIB, Decision, Inventory, Node
from polypersona.scheduling.memory import DTYPE_BYTES
from polypersona.scheduling.memory import weight_bytes as bytes_of_weights
from polypersona.scheduling.model_shape import ModelShape

MODEL_ENGINES = ("packed", "vllm")
# The least compute capability that computes in a precision, or in weights that bitsandbytes has quantised.
LEAST_CAPABILITY: Mapping[str, float] = {"fp32": 0.0, "fp16": 5.3, "bf16": 8.0, "none": 0.0, "nf4": 6.0, "int8": 7.5}
# The share of a GPU's memory that weights may take, so that the cache of keys and values has room.
GPU_WEIGHT_SHARE = 0.6
NF4_SHARE_OF_BF16 = 0.3
# From here on devices have matrix units for fp16.
FAST_FP16_CAPABILITY = 7.0


def choose_dtype(recipe: Recipe, inventory: Inventory) -> Decision[str]:
    """Choose the precision that answers: bf16 where every place that may hold the weights computes in it, else fp32."""
    if recipe.model.dtype != "auto":
        return Decision(recipe.model.dtype, "model.dtype in the recipe")
    if recipe.generate.engine not in MODEL_ENGINES:
        return Decision("fp32", f"the {recipe.generate.engine} engine holds no weights")
    return native_dtype(inventory)


def native_dtype(inventory: Inventory) -> Decision[str]:
    """Return the precision that all devices compute in: bf16, else fp32."""
    if inventory.gpus:
        lowest = min(inventory.gpus, key=lambda gpu: gpu.capability)
        if lowest.capability >= LEAST_CAPABILITY["bf16"]:
            return Decision("bf16", f"every GPU has compute capability 8.0 or more (lowest: {lowest.name})")
        return Decision("fp32", f"{lowest.name} has compute capability {lowest.capability}, below 8.0")
    if all(node.has_cpu_bf16 for node in inventory.nodes):
        return Decision("bf16", "every CPU has bf16 instructions (avx512_bf16 or amx_bf16)")
    return Decision("fp32", "a CPU without bf16 instructions computes faster in fp32")


def training_dtype(nodes: Sequence[Node], shape: ModelShape | None, *, uses_gpus: bool) -> Decision[str]:
    """Return the precision to train in: that of `native_dtype`, or fp16 where only fp16 has fast units and holds up.

    fp16 overflows beyond 65,504; only a model that is published in it is known to stay within, and Phi's attention does
    not even so.
    """
    inventory = Inventory(tuple(nodes if uses_gpus else (replace(node, gpus=()) for node in nodes)))
    native = native_dtype(inventory)
    if native.value != "fp32" or not uses_gpus or shape is None:
        return native
    lowest = min(inventory.gpus, key=lambda gpu: gpu.capability)
    if lowest.capability >= FAST_FP16_CAPABILITY and shape.stored_dtype == "fp16" and shape.family != "phi":
        return Decision("fp16", f"{lowest.name} has fast units for fp16, not bf16; the model is published in fp16")
    return native


def choose_quantization(
    recipe: Recipe,
    inventory: Inventory,
    weight_bytes: int | None = None,
    shape: ModelShape | None = None,
    dtype: str = "bf16",
) -> Decision[str]:
    """Choose the quantisation of the weights that answer: none unless a GPU is too small for them as they are.

    Args:
        recipe: what is asked for.
        inventory: what there is.
        weight_bytes: of the base model in 16 bits; None where it is not known.
        shape: the base model's, which tells what nf4 leaves as it is; None where it is not known, then a share does.
        dtype: the precision in which weights are held that are not quantised.

    Raises:
        InfeasiblePlanError: the smallest GPU does not hold them in nf4 either.
    """
    if recipe.model.quantization != "auto":
        return Decision(recipe.model.quantization, "model.quantization in the recipe")
    if recipe.generate.engine not in MODEL_ENGINES:
        return Decision("none", f"the {recipe.generate.engine} engine holds no weights")
    if not inventory.gpus:
        return Decision("none", "no GPU: 16 or 32 bits are faster on a CPU")
    if weight_bytes is None:
        return Decision("none", "the size of the weights is not known here")
    smallest = min(gpu.memory_bytes for gpu in inventory.gpus)
    if recipe.cluster.memory_gb is not None:
        smallest = min(smallest, int(recipe.cluster.memory_gb * GIB))
    room = GPU_WEIGHT_SHARE * smallest
    if shape is None:
        plain, quantised = weight_bytes * DTYPE_BYTES[dtype] / 2, weight_bytes * NF4_SHARE_OF_BF16
    else:
        plain, quantised = (float(bytes_of_weights(shape, dtype, kind)) for kind in ("none", "nf4"))
    need = f"the weights take {plain / GIB:.1f} GiB in {dtype}, the smallest GPU has {smallest / GIB:.1f} GiB"
    if plain <= room:
        return Decision("none", need)
    if recipe.generate.engine == "vllm":
        raise InfeasiblePlanError(
            f"No plan fits: {need}, and the vllm engine does not quantise them.",
            f"Use GPUs of {plain / GPU_WEIGHT_SHARE / GIB:.0f} GiB, a model.base that is stored quantised, or "
            "generate.engine: packed.",
        )
    if quantised <= room:
        return Decision("nf4", need)
    raise InfeasiblePlanError(
        f"No plan fits: {need}, and nf4 would still take {quantised / GIB:.1f} GiB.",
        f"Use GPUs of {quantised / GPU_WEIGHT_SHARE / GIB:.0f} GiB or a smaller model.base.",
    )


def refuse_without_cpu(inventory: Inventory) -> None:
    """Refuse an inventory that offers no CPU.

    Raises:
        InfeasiblePlanError: it offers none.
    """
    if inventory.cpus <= 0:
        raise InfeasiblePlanError(
            f"{inventory.source} offers no CPU to this run.", "Raise cluster.limits.CPU to at least 1."
        )
