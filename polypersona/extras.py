"""Optional libraries: which extra brings which, and what a user without it is told. Imports none of them by itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from polypersona.errors import MissingExtraError

# extra → the module that shows whether it is there.
EXTRAS: Mapping[str, str] = {"vllm": "vllm", "spss": "pyreadstat", "excel": "openpyxl"}


def load_extra(extra: str, purpose: str) -> Any:
    """Import and return an extra's module.

    Args:
        extra: a key of `EXTRAS`.
        purpose: what it is for, as the beginning of a sentence: "people.sav: an SPSS file is read".

    Raises:
        MissingExtraError: the library is not installed, or cannot be imported.
    """
    module = EXTRAS[extra]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == module
        state = "is not installed" if is_absent else f"cannot be imported ({error})"
        raise MissingExtraError(
            f"{purpose} with the extra {extra!r} ({module}), which {state}.",
            f"Run `pip install 'polypersona[{extra}]'`.",
        ) from error
