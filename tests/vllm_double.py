"""A stand-in for vLLM where that cannot be installed: its call signatures, a toy language model, no GPU.

Every call and every record is checked against vLLM's own signatures (`vllm_signatures`), so the engine cannot pass or
read what vLLM does not have. The toy model's logits are a hash of all tokens so far: an answer is right only if exactly
the right tokens were asked about.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import vllm_signatures

BLOCK_TOKENS = 16
CONTEXT_TOKENS = 512
# What a test may make of a request: "" as usual, "refuse", "die", "nan", or a finish reason.
Behaviour = Callable[[Sequence[int], "SamplingParams"], str]


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    pass


class EngineDeadError(VLLMError):
    pass


class SamplingParams:
    def __init__(self, **keywords: Any) -> None:
        self.given = vllm_signatures.check_fields("SamplingParams", **keywords)
        if self.stop and not self.detokenize:
            raise VLLMValidationError("stop strings are only supported when detokenize is True.")
        limit = vllm_signatures.signatures()["values"]["MAX_LOGPROB_TOKEN_IDS"]
        if len(self.logprob_token_ids or ()) > limit:
            raise VLLMValidationError("too many logprob_token_ids")

    def __getattr__(self, name: str) -> Any:
        usual = {"temperature": 1.0, "max_tokens": 16, "detokenize": True}
        return self.given.get(name, usual.get(name))


class LoRARequest:
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.__dict__.update(vllm_signatures.check_fields("LoRARequest", *arguments, **keywords))


def tokens_prompt(**keywords: Any) -> dict[str, Any]:
    return vllm_signatures.check_fields("TokensPrompt", **keywords)


def toy_log_probs(ids: Sequence[int], vocabulary: int, end: int) -> np.ndarray:
    """The toy model: log probabilities of the next token."""
    seed = int.from_bytes(hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest(), "big")
    logits = np.random.default_rng(seed).normal(scale=2.0, size=vocabulary)
    logits[end] += 6.0
    return logits - np.log(np.exp(logits).sum())


class Double:
    """One stand-in: hands out the modules, remembers what it was asked."""

    def __init__(self, vocabulary: int, end: int, decode: Callable[[Sequence[int]], str]) -> None:
        self.vocabulary, self.end, self.decode = vocabulary, end, decode
        self.behaviour: Behaviour = lambda ids, params: ""
        self.is_cpu = self.has_no_device = self.is_shut_down = False
        self.started: dict[str, Any] = {}
        self.calls: list[list[tuple[list[int], SamplingParams]]] = []
        self.loras: list[Any] = []
        self.added_loras: list[LoRARequest] = []
        self.bad_adapter = ""
        self.bad_model = ""

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        return toy_log_probs(ids, self.vocabulary, self.end)

    def llm(self, *arguments: Any, **keywords: Any) -> LLM:
        self.started = vllm_signatures.bind("LLM.__init__", *arguments, **keywords)
        if self.bad_model:
            raise ValueError(self.bad_model)
        return LLM(self)

    def modules(self) -> dict[str, ModuleType]:
        platform = SimpleNamespace(is_cpu=lambda: self.is_cpu, is_unspecified=lambda: self.has_no_device)
        contents = {
            "vllm": {"LLM": self.llm, "SamplingParams": SamplingParams, "TokensPrompt": tokens_prompt},
            "vllm.lora": {},
            "vllm.lora.request": {"LoRARequest": LoRARequest},
            "vllm.v1": {},
            "vllm.v1.engine": {},
            "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
            "vllm.exceptions": {"VLLMClientError": VLLMClientError, "VLLMValidationError": VLLMValidationError},
            "vllm.platforms": {"current_platform": platform},
        }
        return {name: _module(name, content) for name, content in contents.items()}


class LLM:
    def __init__(self, double: Double) -> None:
        self._double = double
        self._cached: set[tuple[int, ...]] = set()
        self.model_config = SimpleNamespace(max_model_len=CONTEXT_TOKENS)
        core = SimpleNamespace(shutdown=self._shut_down)
        self.llm_engine = SimpleNamespace(add_lora=self._add_lora, engine_core=core)

    def _shut_down(self, *arguments: Any, **keywords: Any) -> None:
        vllm_signatures.bind("EngineCoreClient.shutdown", *arguments, **keywords)
        self._double.is_shut_down = True

    def _add_lora(self, *arguments: Any, **keywords: Any) -> bool:
        vllm_signatures.bind("LLMEngine.add_lora", *arguments, **keywords)
        if self._double.bad_adapter:
            raise Exception(self._double.bad_adapter)
        self._double.added_loras.append(arguments[0])
        return True

    def generate(self, *arguments: Any, **keywords: Any) -> list[SimpleNamespace]:
        given = vllm_signatures.bind("LLM.generate", *arguments, **keywords)
        prompts, params = given["prompts"], given["sampling_params"]
        assert len(prompts) == len(params)
        double = self._double
        double.calls.append([(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)])
        double.loras.append(given.get("lora_request"))
        behaviours = [double.behaviour(ids, one) for ids, one in double.calls[-1]]
        if "die" in behaviours:
            raise EngineDeadError("EngineCore encountered an issue.")
        if "refuse" in behaviours:
            raise VLLMValidationError("this prompt is refused")
        return [
            self._complete(index, ids, one, behaviour)
            for index, ((ids, one), behaviour) in enumerate(zip(double.calls[-1], behaviours, strict=True))
        ]

    def _complete(self, index: int, ids: list[int], params: SamplingParams, behaviour: str) -> SimpleNamespace:
        assert len(ids) < CONTEXT_TOKENS
        written, reason, positions = [], "length", []
        noise = np.random.default_rng(params.seed)
        while len(written) < params.max_tokens:
            log_probs = self._double.log_probs([*ids, *written])
            token = _sample(log_probs, params, noise)
            if params.logprob_token_ids:
                positions.append(
                    {
                        shown: _record("Logprob", logprob=math.nan if behaviour == "nan" else float(log_probs[shown]))
                        for shown in (token, *params.logprob_token_ids)
                    }
                )
            written.append(token)
            if token in (params.stop_token_ids or ()) or (token == self._double.end and not params.ignore_eos):
                reason = "stop"
                break
        text = self._double.decode(written) if params.detokenize else ""
        for stop in params.stop or ():
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        reason = behaviour if behaviour not in ("", "nan") else reason
        completion = _record(
            "CompletionOutput", index=0, text=text, token_ids=written, cumulative_logprob=None,
            logprobs=positions or None, finish_reason=reason,
        )  # fmt: skip
        given = vllm_signatures.bind(
            "RequestOutput.__init__",
            str(index),
            None,
            ids,
            None,
            [completion],
            True,
            num_cached_tokens=self._reuse(ids),
        )
        return SimpleNamespace(**given)

    def _reuse(self, ids: list[int]) -> int:
        """Return how many tokens the prefix cache holds, in whole blocks and never all of them; remember these."""
        blocks = [tuple(ids[:end]) for end in range(BLOCK_TOKENS, len(ids), BLOCK_TOKENS)]
        found = max((len(block) for block in blocks if block in self._cached), default=0)
        self._cached.update(blocks)
        return found


def _sample(log_probs: np.ndarray, params: SamplingParams, noise: np.random.Generator) -> int:
    shown = np.full_like(log_probs, -np.inf)
    allowed = params.allowed_token_ids or range(len(log_probs))
    shown[list(allowed)] = log_probs[list(allowed)]
    if params.temperature == 0:
        return int(shown.argmax())
    return int((shown / params.temperature + noise.gumbel(size=len(shown))).argmax())


def _record(name: str, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**vllm_signatures.check_fields(name, **fields))


def _module(name: str, content: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    return module
