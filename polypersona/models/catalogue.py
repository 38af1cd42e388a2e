"""The base models of the paper's Table II and the embedded tiny one: ids, licences, LoRA targets, what 4-bit must skip.

A model that is not here works too: `lora.lora_targets` reads its targets from its layers and says so. Pure data.
Licences and parameter counts are those of the model cards on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The seven projections of the paper's section IV-C, by the names that Llama, Mistral and Qwen2 give them.
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PHI_TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
# What stays unquantised in every model: the head, and layers whose output has one feature.
SKIPPED_IN_4BIT = ("lm_head", "shared_expert_gate")

# By the `model_type` of config.json.
FAMILY_TARGETS: Mapping[str, tuple[str, ...]] = {
    "llama": ATTENTION_AND_MLP,
    "mistral": ATTENTION_AND_MLP,
    "qwen2": ATTENTION_AND_MLP,
    "qwen2_moe": ATTENTION_AND_MLP,
    "phi": PHI_TARGETS,
}


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model as the paper's Table II names it.

    `family` is the `model_type` of its config.json. `num_parameters` is the published total. `has_chat_template` is
    false where the ChatML fallback is used. `thinks` marks a model whose own template opens a chain of thought.
    """

    model_id: str
    table_name: str
    family: str
    class_name: str
    num_parameters: int
    license: str
    is_gated: bool = False
    has_chat_template: bool = True
    thinks: bool = False
    note: str = ""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The names of the layers an adapter is attached to."""
        return FAMILY_TARGETS[self.family]

    @property
    def bf16_weights_gb(self) -> float:
        """What the weights alone take at two bytes each, in 10⁹ bytes."""
        return self.num_parameters * 2 / 1e9


_MODELS = (
    BaseModel(
        "tiny", "tiny (embedded)", "llama", "LlamaForCausalLM", 0, "apache-2.0",
        note="Shipped with the package; made for this project's questionbank, of no use elsewhere.",
    ),
    BaseModel(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B", "llama", "LlamaForCausalLM", 1_100_048_384,
        "apache-2.0", note="The paper's main model.",
    ),
    BaseModel(
        "microsoft/phi-2", "Phi-2", "phi", "PhiForCausalLM", 2_779_683_840, "mit", has_chat_template=False,
        note="No chat template: the ChatML fallback is used. Its projections are named dense, fc1 and fc2.",
    ),
    BaseModel(
        "mistralai/Mistral-7B-Instruct-v0.3", "Mistral 7B", "mistral", "MistralForCausalLM", 7_248_023_552,
        "apache-2.0", is_gated=True,
    ),
    BaseModel(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "DeepSeek R1 Distill Qwen2 1.5B", "qwen2", "Qwen2ForCausalLM",
        1_777_088_000, "mit", thinks=True, note="Its chain of thought is switched off in the template.",
    ),
    BaseModel("Qwen/Qwen2-1.5B-Instruct", "Qwen2 1.5B", "qwen2", "Qwen2ForCausalLM", 1_543_714_304, "apache-2.0"),
    BaseModel(
        "Qwen/Qwen1.5-MoE-A2.7B-Chat", "Qwen1.5 MoE", "qwen2_moe", "Qwen2MoeForCausalLM", 14_315_784_192,
        "tongyi-qianwen",
        note="LoRA reaches attention and the shared expert; routed experts are neither tuned nor 4-bit.",
    ),
    BaseModel(
        "meta-llama/Llama-2-7b-chat-hf", "Llama-2 7B", "llama", "LlamaForCausalLM", 6_738_415_616, "llama2",
        is_gated=True,
    ),
)  # fmt: skip

BASE_MODELS: Mapping[str, BaseModel] = {model.model_id: model for model in _MODELS}
