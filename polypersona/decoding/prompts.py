"""What the packed engine computes, in token ids: prompts in groups that share a beginning, and what came of each.

Knows token ids only: no persona, no item, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NOT_FINITE = "the model's logits are not finite"


@dataclass(slots=True)
class Written:
    """What came of a prompt.

    `log_probs` has one number per option, sums of its tokens' log-probabilities; `choice` is the index drawn, from
    `probs`. `tokens` are written after the prompt and the choice; `is_ended` says that the model or a stop string
    ended them. `num_reused` counts prompt tokens that were computed for another prompt or for an earlier turn.
    """

    choice: int | None = None
    log_probs: list[float] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    is_ended: bool = False
    num_reused: int = 0
    error: str = ""


@dataclass(slots=True, eq=False)
class Prompt:
    """One thing to answer.

    With `options` each is scored as a continuation of `ids`, and one is drawn with `seed`. Up to `max_new_tokens` are
    then written: after `choices[i]` where option i was drawn (the option itself where `choices` is empty), after `ids`
    where there are no options. `length_norm` divides an option's log-probability by its number of tokens before the
    draw. `follow`, given what was written, may return the next turn of the same conversation, whose `ids` are appended
    to everything before, less the last `num_taken_back` tokens; an error ends the conversation, whatever it returns.
    """

    ids: Sequence[int]
    seed: int
    max_new_tokens: int
    options: tuple[tuple[int, ...], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    length_norm: bool = False
    follow: Callable[[Written], Prompt | None] | None = None
    num_taken_back: int = 0

    @property
    def num_kept_tokens(self) -> int:
        """Return how many tokens after `ids` need room: all options, or the longest choice and what is written."""
        written = max(map(len, self.choices or self.options), default=0) + self.max_new_tokens
        return max(written, sum(len(option) - 1 for option in self.options))

    def chosen(self, choice: int) -> tuple[int, ...]:
        """Return the tokens that stand for the option in the conversation."""
        return self.choices[choice] if self.choices else self.options[choice]


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """Prompts that share a beginning of `num_shared` tokens, computed once; fewer than any prompt has.

    `max_tokens` bounds one conversation, prompt and answers together, beyond the shared beginning.
    """

    prompts: tuple[Prompt, ...]
    num_shared: int
    max_tokens: int

    @property
    def shared(self) -> list[int]:
        """Return the shared beginning."""
        return list(self.prompts[0].ids[: self.num_shared])
