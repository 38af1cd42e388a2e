"""What is wrong with a codebook or with the data it describes, named by item, and the error that lists all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from polypersona.errors import SurveyError


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a codebook, or of the data it describes; `item` is empty where the fault is the whole file's."""

    item: str
    message: str

    def __str__(self) -> str:
        return f"item {self.item!r}: {self.message}" if self.item else self.message


@dataclass(slots=True)
class Faults:
    """What was found so far."""

    found: list[Problem] = field(default_factory=list)

    def add(self, item: str, message: str) -> None:
        """Note a fault of an item, or of the whole file where the item is empty."""
        self.found.append(Problem(item, message))


def refusal(what: str, problems: Sequence[Problem]) -> SurveyError:
    """Return the error that lists all problems, one a line."""
    lines = "\n".join(f"  {problem}" for problem in problems)
    many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return SurveyError(f"{what} has {many}:\n{lines}", "Mend the codebook (or the data) and run again.")
