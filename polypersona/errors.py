"""Every failure this project names, each with a hint that says what to do about it.

A class exists only where a caller acts differently. All of them survive pickling, because they cross
process borders under Ray: the second constructor argument has a default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from polypersona.location import mask_secrets


class PolypersonaError(Exception):
    """Base of the family: one sentence, one imperative hint, one exit code. Secrets in URLs are masked in both.

    Args:
        message: what was wrong, where, what was got, what is allowed; one sentence.
        hint: one imperative sentence that says how to mend it; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        message, hint = mask_secrets(message), mask_secrets(hint)
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RecipeError(PolypersonaError, ValueError):
    """The recipe cannot be read, holds an unknown key or a value that is not allowed."""


class QuestionbankError(PolypersonaError, ValueError):
    """An instrument file breaks the questionbank schema."""


class PersonaError(PolypersonaError, ValueError):
    """A persona source cannot be read or yields no persona."""


class SurveyError(PolypersonaError, ValueError):
    """Human survey data or their codebook cannot be read, or do not fit together."""


class DatasetError(PolypersonaError, ValueError):
    """A dataset is missing, empty or cannot be split as asked."""


class ModelError(PolypersonaError, ValueError):
    """A base model or adapter cannot be loaded, or does not fit the recipe."""


class EngineError(PolypersonaError):
    """An engine refuses an option or cannot answer a cell."""


class StorageError(PolypersonaError):
    """A run directory cannot be read or written."""


class RecipeChangedError(StorageError):
    """The run directory holds a run whose content the recipe would change."""


class RunHeldError(StorageError):
    """Another driver writes to the run."""


class InfeasiblePlanError(PolypersonaError):
    """No plan fits the inventory; the message names the shortest resource."""


class ClusterError(PolypersonaError):
    """A Ray cluster cannot be reached, or takes no job from this user."""


class MissingExtraError(PolypersonaError, ImportError):
    """An optional dependency is missing; the hint is the command that installs it."""


class RunFailedError(PolypersonaError):
    """A stage ended without a usable result: an unexpected failure, not a user's mistake."""

    exit_code = 1


class LeaseLostError(RunFailedError):
    """Another driver has taken the run over while this one was at work."""


class TooManyQuarantinedError(PolypersonaError):
    """The stage finished, but quarantined more cells than the recipe allows."""

    exit_code = 3


class RunStoppedError(PolypersonaError):
    """The stage stopped where it was told to, before its end; the same command goes on."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
