"""A recipe's text: YAML and `--set` overrides → a plain mapping, environment variables expanded.

Knows no key of a recipe.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polypersona.errors import RecipeError

# A recipe has a hundred lines; nine aliases of nine aliases are more values than a machine has memory for.
MAX_BYTES, MAX_VALUES = 1 << 20, 100_000
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """The safe loader with the booleans of YAML 1.2, so that `on:` is a key and `Yes` a label; refuses a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: broken YAML.
        ValueError: a value that cannot be read, or more values than a recipe has, once its aliases are followed.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
        if _count_values(data, {}) > MAX_VALUES:
            raise ValueError(f"its aliases make more than {MAX_VALUES:,} values of it")
    except RecursionError as error:
        raise ValueError("its values are nested too deeply, or in themselves") from error
    return data


def _count_values(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are to follow; what an alias repeats is counted each time, and looked at once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(one, known) for one in inner)
    return known[id(value)]


def read_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a YAML file holds, with `section.key=value` overrides in place; values are YAML.

    Raises:
        RecipeError: unreadable file, broken YAML, no mapping, an override that is none.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        data = _load_yaml(text.decode())
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe {str(path)!r}.", "Name a YAML file, such as jobs/demo.yaml.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {str(path)!r} cannot be read: {error}.", "Name a readable YAML file.") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(f"{path}{line}: this is not valid YAML: {what}.", "Mend the file at that line.") from error
    except ValueError as error:
        raise RecipeError(f"{path}: this is no recipe: {error}.", "Mend the file.") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values.", "Begin with `name: my_run`.")
    return apply_overrides(data, overrides)


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a mapping with `section.key=value` overrides in place; values are YAML.

    Raises:
        RecipeError: an override that is none.
    """
    changed = copy.deepcopy(dict(data))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def expand_variables(value: Any, where: str) -> Any:
    """Expand ${NAME} and ${NAME:-default} in every string of a mapping or list.

    Raises:
        RecipeError: a variable that is not set and has no default.
    """
    if isinstance(value, dict):
        return {key: expand_variables(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_variables(inner, where) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        name, default = found.group(1), found.group(2)
        text = os.environ.get(name) or default
        if text is None:
            raise RecipeError(f"{where}: the environment variable {name} is not set.", f"Set {name} and run again.")
        return text

    return _VARIABLE.sub(replace, value)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {override!r} is not KEY=VALUE.", "Write for example --set generate.draws=3.")
    target = data
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} is a value, not a section.", "Name section.key=value.")
        target = inner
    try:
        target[last] = _load_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override[:200]!r}: the value is not valid YAML.", "Quote it.") from error
