"""vLLM's signatures, read from its source without importing it: what the engine passes and reads must exist there.

`python tests/vllm_signatures.py FOLDER WHEEL > tests/engines/vllm_signatures.json`, with the folder a wheel was
unzipped to and the wheel's name, writes the stored copy. Where vLLM is installed, its own source is read instead.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

INSTALLED = importlib.util.find_spec("vllm")  # looked up before a double takes the name
STORED = Path(__file__).parent / "engines" / "vllm_signatures.json"

FIELDS = {
    "SamplingParams": "sampling_params.py",
    "LoRARequest": "lora/request.py",
    "EngineArgs": "engine/arg_utils.py",
    "TokensPrompt": "inputs/llm.py",
    "CompletionOutput": "outputs.py",
    "Logprob": "logprobs.py",
    "ModelConfig": "config/model.py",
}
KEPT = {"ModelConfig": {"max_model_len"}}  # of classes of which next to nothing is used
FUNCTIONS = {
    "LLM.__init__": "entrypoints/llm.py",
    "LLM.generate": "entrypoints/llm.py",
    "RequestOutput.__init__": "outputs.py",
    "LLMEngine.add_lora": "v1/engine/llm_engine.py",
    "EngineCoreClient.shutdown": "v1/engine/core_client.py",
    "Platform.is_cpu": "platforms/interface.py",
    "Platform.is_unspecified": "platforms/interface.py",
}
ATTRIBUTES = {"LLM": "entrypoints/llm.py", "LLMEngine": "v1/engine/llm_engine.py", "RequestOutput": "outputs.py"}
BASES = {
    "EngineDeadError": "v1/engine/exceptions.py",
    "VLLMServerError": "exceptions.py",
    "VLLMClientError": "exceptions.py",
    "VLLMValidationError": "exceptions.py",
    "VLLMError": "exceptions.py",
}
VALUES = {
    "MaxLoRARanks": "config/lora.py",
    "ModelDType": "config/model.py",
    "LogprobsMode": "config/model.py",
    "QuantizationMethods": "model_executor/layers/quantization/__init__.py",
    "MAX_LOGPROB_TOKEN_IDS": "sampling_params.py",
    "_MAX_TEMP": "sampling_params.py",
    "FINISH_REASON_STRINGS": "v1/engine/__init__.py",
}


def extract(root: Path) -> dict[str, Any]:
    """Return the signatures of the vLLM whose package folder is `root`."""

    @functools.cache
    def tree(path: str) -> ast.Module:
        return ast.parse((root / path).read_text(encoding="utf-8"))

    def class_of(name: str, path: str) -> ast.ClassDef:
        return next(node for node in tree(path).body if isinstance(node, ast.ClassDef) and node.name == name)

    def function(name: str, path: str) -> ast.FunctionDef:
        owner, own = name.split(".")
        found = [node for node in class_of(owner, path).body if isinstance(node, ast.FunctionDef) and node.name == own]
        return found[-1]  # the last is the implementation of an overloaded one

    return {
        "fields": {
            name: {
                node.target.id: ast.unparse(node.annotation)
                for node in class_of(name, path).body
                if isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.target.id[0] != "_"
                and node.target.id in KEPT.get(name, {node.target.id})
            }
            for name, path in FIELDS.items()
        },
        "functions": {name: _parameters(function(name, path)) for name, path in FUNCTIONS.items()},
        "attributes": {name: _own_attributes(class_of(name, path)) for name, path in ATTRIBUTES.items()},
        "bases": {name: [ast.unparse(base) for base in class_of(name, path).bases] for name, path in BASES.items()},
        "values": {name: _value(tree(path), name) for name, path in VALUES.items()},
        "exports": sorted(_value(tree("__init__.py"), "MODULE_ATTRS")),
    }


@functools.cache
def signatures() -> dict[str, Any]:
    """Return the signatures of the installed vLLM, else the stored ones."""
    if INSTALLED is not None and INSTALLED.origin:
        return extract(Path(INSTALLED.origin).parent)
    stored: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return stored


def bind(name: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """Return a call's arguments by name, as the function of that name takes them, without `self`.

    Raises:
        TypeError: vLLM's function does not take such a call, or an argument is of another kind than it says.
    """
    rows = signatures()["functions"][name][1:]
    parameters = [
        inspect.Parameter(own, _KINDS[kind], default=None if has_default else inspect.Parameter.empty)
        for own, kind, _, has_default in rows
    ]
    bound = inspect.Signature(parameters).bind(*arguments, **keywords).arguments
    annotations = {own: annotation for own, _, annotation, _ in rows}
    if name == "LLM.__init__":  # what it does not take itself are fields of EngineArgs
        rest = bound.pop("kwargs", {})
        bound, annotations = {**bound, **rest}, {**signatures()["fields"]["EngineArgs"], **annotations}
    _check_kinds(name, bound, annotations)
    return bound


def check_fields(name: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """Return the fields a record of that name is made with.

    Raises:
        TypeError: vLLM's record has no such field, or it is of another kind.
    """
    annotations = signatures()["fields"][name]
    given = {**dict(zip(annotations, arguments, strict=False)), **keywords}
    _check_kinds(name, given, annotations)
    return given


def _check_kinds(name: str, given: dict[str, Any], annotations: dict[str, str]) -> None:
    if unknown := sorted(set(given) - set(annotations)):
        raise TypeError(f"vLLM's {name} takes no {unknown[0]!r}")
    for key, value in given.items():
        if not _is_of_kind(value, annotations[key]):
            raise TypeError(f"vLLM's {name} takes {key}: {annotations[key]}, not {value!r}")


def _is_of_kind(value: Any, annotation: str) -> bool:
    try:
        _kind(annotation).validate_python(value)
    except ValueError:
        return False
    return True


@functools.cache
def _kind(annotation: str) -> TypeAdapter[Any]:
    """Return what an annotation of vLLM's allows."""
    values = signatures()["values"]
    known: dict[str, Any] = {
        name: Literal[tuple(values[name])] for name in ("MaxLoRARanks", "ModelDType", "LogprobsMode")
    }
    # vLLM's own records, which the double makes and checks one by one.
    known |= dict.fromkeys(("PromptType", "SamplingParams", "LoRARequest", "tqdm", "RequestStateStats"), Any)
    known |= dict.fromkeys(("SampleLogprobs", "PromptLogprobs", "CompletionOutput", "LoadFormats"), Any)
    known |= {"Sequence": Sequence, "Callable": Callable, "NotRequired": _same, "Any": Any}
    kind = eval(annotation.replace("GenericSequence", "list"), known)
    return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


class _Same:
    def __getitem__(self, kind: Any) -> Any:
        return kind


_same = _Same()
_KINDS = {kind.name: kind for kind in type(inspect.Parameter.KEYWORD_ONLY)}


def _parameters(node: ast.FunctionDef) -> list[list[Any]]:
    """Return [name, kind, annotation, has a default] of every parameter."""
    own = node.args
    by_place = [*own.posonlyargs, *own.args]
    first_default = len(by_place) - len(own.defaults)
    rows = [(arg, "POSITIONAL_OR_KEYWORD", index >= first_default) for index, arg in enumerate(by_place)]
    rows += [(own.vararg, "VAR_POSITIONAL", False)] if own.vararg else []
    rows += [
        (arg, "KEYWORD_ONLY", default is not None) for arg, default in zip(own.kwonlyargs, own.kw_defaults, strict=True)
    ]
    rows += [(own.kwarg, "VAR_KEYWORD", False)] if own.kwarg else []
    return [
        [arg.arg, kind, ast.unparse(arg.annotation) if arg.annotation else "Any", has_default]
        for arg, kind, has_default in rows
    ]


def _own_attributes(node: ast.ClassDef) -> list[str]:
    """Return what the class's `__init__` sets on itself."""
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return sorted(
        {
            found.attr
            for found in ast.walk(inits[-1])
            if isinstance(found, ast.Attribute)
            and isinstance(found.ctx, ast.Store)
            and isinstance(found.value, ast.Name)
            and found.value.id == "self"
        }
    )


def _value(module: ast.Module, name: str) -> Any:
    """Return a constant, or the values of a Literal, of a module."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            value = node.value.slice if isinstance(node.value, ast.Subscript) else node.value
            return ast.literal_eval(value)
    raise LookupError(name)


if __name__ == "__main__":
    folder, wheel = Path(sys.argv[1]), sys.argv[2]
    head = {
        "version": wheel.split("-")[1],
        "extracted": f"{wheel}, unzipped and read with ast by tests/vllm_signatures.py; nothing of it was imported",
    }
    body = json.dumps({**head, **extract(folder / "vllm")}, indent=1)
    print(body)
