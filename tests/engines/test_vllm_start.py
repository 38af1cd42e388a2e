"""pytest tests/engines/test_vllm_start.py: what the vLLM engine counts on in vLLM, how it starts, what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import vllm_double
import vllm_signatures

import polypersona
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.engines.settings import refuse_unsupported
from polypersona.engines.vllm_library import DTYPES
from polypersona.engines.vllm_limits import (
    LORA_RANKS,
    MAX_TEMPERATURE,
    MAX_TOKEN_IDS,
    MIN_TEMPERATURE,
    UNREAD_KEYS,
    check_settings,
    lora_rank,
)
from polypersona.errors import EngineError, InfeasiblePlanError, MissingExtraError, ModelError
from polypersona.recipe import build_recipe
from polypersona.records import Item, Persona
from polypersona.scheduling.generation_plan import plan_generation
from polypersona.scheduling.machines import GIB, Gpu, Inventory, Node

LIKERT = Item("care.likert.01", "healthcare", "I am satisfied with the care.", "likert", ("Disagree", "Agree"))


# --- the contract: what the engine counts on in vLLM ---


def test_the_limits_written_down_here_are_vllms():
    values = vllm_signatures.signatures()["values"]
    assert list(LORA_RANKS) == values["MaxLoRARanks"]
    assert values["MAX_LOGPROB_TOKEN_IDS"] == MAX_TOKEN_IDS
    assert values["_MAX_TEMP"] == MIN_TEMPERATURE
    assert set(DTYPES.values()) <= set(values["ModelDType"])
    assert {"stop", "length"} < set(values["FINISH_REASON_STRINGS"])


def test_vllm_still_quantises_nothing_with_bitsandbytes():
    assert "bitsandbytes" not in vllm_signatures.signatures()["values"]["QuantizationMethods"]


def test_every_name_the_engine_reads_exists_in_vllm():
    found = vllm_signatures.signatures()
    assert {"LLM", "SamplingParams", "TokensPrompt"} <= set(found["exports"])
    assert {"llm_engine", "model_config"} <= set(found["attributes"]["LLM"])
    assert "engine_core" in found["attributes"]["LLMEngine"]
    assert {"outputs", "num_cached_tokens"} <= set(found["attributes"]["RequestOutput"])
    assert {"text", "token_ids", "logprobs", "finish_reason"} <= set(found["fields"]["CompletionOutput"])
    assert "logprob" in found["fields"]["Logprob"]
    assert found["fields"]["ModelConfig"] == {"max_model_len": "int"}


def test_what_vllm_raises_for_a_request_is_no_parent_of_what_it_raises_when_it_dies():
    bases = vllm_signatures.signatures()["bases"]
    assert bases["VLLMValidationError"] == ["VLLMClientError"]
    assert bases["EngineDeadError"] == ["VLLMServerError"]
    assert bases["VLLMServerError"] == bases["VLLMClientError"] == ["VLLMError"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: vllm_double.SamplingParams(guided_choice=["a"]), "takes no 'guided_choice'"),
        (lambda: vllm_double.SamplingParams(seed="7"), "takes seed"),
        (lambda: vllm_double.SamplingParams(logprob_token_ids=[1.5]), "takes logprob_token_ids"),
        (lambda: vllm_double.LoRARequest("adapter", "1", "x"), "takes lora_int_id"),
        (lambda: vllm_signatures.bind("LLM.__init__", "m", max_loras_rank=8), "takes no 'max_loras_rank'"),
        (lambda: vllm_signatures.bind("LLM.__init__", "m", max_lora_rank=24), "takes max_lora_rank"),
        (lambda: vllm_signatures.bind("LLM.generate", [], [], False), "too many positional arguments"),
    ],
)
def test_the_double_refuses_what_vllm_would(make, says):
    with pytest.raises(TypeError, match=says):
        make()


# --- starting ---


@pytest.mark.skipif(vllm_signatures.INSTALLED is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(vllm_folder):
    with pytest.raises(MissingExtraError) as caught:
        load_engine(EngineSettings("vllm", 7, model=str(vllm_folder)))
    assert "'vllm'" in caught.value.message
    assert "pip install 'polypersona[vllm]'" in caught.value.hint


def test_no_module_of_the_package_imports_vllm():
    package = Path(polypersona.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "vllm" for name in names), path


def test_vllm_is_started_with_prefix_caching_raw_log_probabilities_and_no_foreign_defaults(
    build_vllm, vllm, vllm_folder
):
    build_vllm(dtype="bf16", slots=32)
    assert vllm.started == {
        "model": str(vllm_folder), "revision": None, "tokenizer_revision": None, "trust_remote_code": False,
        "dtype": "bfloat16", "max_num_seqs": 32, "max_model_len": -1, "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs", "generation_config": "vllm", "load_format": "safetensors",
    }  # fmt: skip


def test_on_a_cpu_the_cache_is_bounded_and_its_blocks_are_small(build_vllm, vllm):
    vllm.is_cpu = True
    build_vllm()
    assert vllm.started["kv_cache_memory_bytes"] == 4 * GIB
    assert vllm.started["block_size"] == 32


def test_a_machine_that_vllm_cannot_use_is_named(build_vllm, vllm):
    vllm.has_no_device = True
    with pytest.raises(EngineError, match="no GPU"):
        build_vllm()


def test_a_model_that_vllm_does_not_know_is_a_users_mistake(build_vllm, vllm):
    vllm.bad_model = "Model architectures ['ToyLM'] are not supported.\nmore"
    with pytest.raises(ModelError, match=r"vLLM cannot run .*'ToyLM'\] are not supported\. Choose"):
        build_vllm()


def test_closing_ends_vllm(build_vllm, vllm):
    engine = build_vllm()
    engine.close()
    engine.close()
    assert vllm.is_shut_down


# --- adapters ---


def write_adapter(path, **changes):
    path.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "rank_pattern": {}, **changes}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (24, 32), (300, 320), (512, 512)])
def test_vllm_makes_room_for_the_adapters_rank(tmp_path, rank, room):
    assert lora_rank(write_adapter(tmp_path / "a", r=rank)) == room


def test_the_adapter_is_loaded_at_the_start_and_asked_for_in_every_call(build_vllm, vllm, tmp_path):
    adapter = write_adapter(tmp_path / "a")
    engine = build_vllm(adapter=str(adapter), rationale=True)
    engine.answer([Group(Persona("a", {"age": 44}), (Cell("c", LIKERT, 1),))])
    assert vllm.started["enable_lora"] is True
    assert vllm.started["max_lora_rank"] == 16
    (request,) = vllm.added_loras
    assert (request.lora_int_id, request.lora_path) == (1, str(adapter))
    assert vllm.loras == [request, request]


def test_an_adapter_that_vllm_cannot_load_is_named(build_vllm, vllm, tmp_path):
    vllm.bad_adapter = "Call to add_lora method failed: expected target modules in ['qkv_proj']"
    with pytest.raises(ModelError, match=r"a: Call to add_lora .*'qkv_proj'\]\. Choose"):
        build_vllm(adapter=str(write_adapter(tmp_path / "a")))
    assert vllm.is_shut_down


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern, which vLLM does not read"),
        ({"use_dora": True, "modules_to_save": ["lm_head"]}, "modules_to_save, use_dora, which"),
        ({"bias": "all"}, "bias, which"),
        ({"r": 1024}, "rank 1024; vLLM takes at most 512"),
        ({"r": None}, "is no configuration of a LoRA adapter"),
    ],
)
def test_an_adapter_that_vllm_would_misread_is_refused(tmp_path, changes, says):
    with pytest.raises(EngineError, match=says):
        check_settings(EngineSettings("vllm", 7, adapter=str(write_adapter(tmp_path / "a", **changes))))


def test_the_keys_that_vllm_does_not_read_are_keys_of_peft():
    source = Path(importlib.util.find_spec("peft").origin).parent / "tuners" / "lora" / "config.py"
    config = next(
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "LoraConfig"
    )
    keys = {node.target.id for node in config.body if isinstance(node, ast.AnnAssign)}
    assert set(UNREAD_KEYS) <= keys


# --- refusals ---


def recipe_of(generate=None, **sections):
    sections.setdefault("model", {"adapter": "none"})
    return build_recipe(
        {"name": "x", "panel": {"size": 8}, "generate": {"engine": "vllm", **(generate or {})}, **sections}
    )


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (recipe_of(model={"quantization": "nf4"}), "model.quantization: nf4 is not part of the vllm engine"),
        (recipe_of(model={"quantization": "int8"}), "model.quantization: int8 is not part of the vllm engine"),
        (recipe_of({"temperature": MAX_TEMPERATURE + 0.5}), "generate.temperature: 2.5"),
        (recipe_of({"temperature": 0.001}), "generate.temperature: 0.001"),
        (recipe_of({"calibration": "permute"}), "generate.calibration: 'permute'"),
        (recipe_of({"context": "previous"}), "generate.context: 'previous'"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(recipe, says):
    with pytest.raises(EngineError, match=says):
        refuse_unsupported(recipe)


def test_a_recipe_for_vllm_is_taken_where_vllm_is_not_installed():
    refuse_unsupported(recipe_of({"temperature": 0, "top_k": 5, "min_p": 0.1, "rationale": True}))


# --- the plan ---

A100 = Gpu("A100", 80 * GIB, 8.0)
GPU_NODES = Inventory((Node(16, 128 * GIB, (A100, A100)), Node(16, 128 * GIB, (A100,))))
CPU_NODES = Inventory((Node(8, 32 * GIB, has_cpu_bf16=True), Node(16, 64 * GIB, has_cpu_bf16=True)))


def test_a_plan_gives_vllm_a_gpu_each_and_says_what_it_needs():
    plan = plan_generation(recipe_of(), GPU_NODES, weight_bytes=2 * GIB)
    assert (plan.actors.value, plan.gpus_per_actor, plan.slots.value, plan.quantization.value) == (3, 1, 256, "none")
    assert plan.actors.reason == "3 GPUs, one vLLM each (the extra polypersona[vllm] on every node)"


def test_a_plan_without_gpu_gives_vllm_a_node_each_and_asks_for_its_cpu_build():
    plan = plan_generation(recipe_of(), CPU_NODES, weight_bytes=2 * GIB)
    assert (plan.actors.value, plan.gpus_per_actor, plan.cpus_per_actor) == (2, 0, 7.0)
    assert "vLLM's CPU build" in plan.actors.reason


def test_a_plan_never_has_more_vllms_than_places():
    plan = plan_generation(recipe_of({"actors": 9}), GPU_NODES, weight_bytes=2 * GIB)
    assert plan.actors.value == 3
    assert "generate.actors in the recipe (9)" in plan.actors.reason


@pytest.mark.parametrize(
    ("inventory", "says"),
    [
        (Inventory((Node(8, 64 * GIB, (Gpu("T4", 16 * GIB, 7.5),)),)), "the vllm engine does not quantise them"),
        (Inventory((Node(8, 16 * GIB),)), "memory is short"),
    ],
)
def test_a_model_too_large_for_vllm_is_refused_with_what_is_short(inventory, says):
    with pytest.raises(InfeasiblePlanError, match=says):
        plan_generation(recipe_of(), inventory, weight_bytes=14 * GIB)
