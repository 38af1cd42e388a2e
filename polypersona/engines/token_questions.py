"""Options as token ids → the questions about one next token that give every option's probability.

An engine that can name the log probabilities of a few tokens, but not of whole texts, scores options by asking at each
branching of them. Nothing is asked about the options' common beginning, which changes no ratio between them. Knows
token ids only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

LogProbs = Mapping[tuple[tuple[int, ...], int], float]


@dataclass(frozen=True, slots=True)
class TokenQuestion:
    """What the model says to `tokens`, one at a time, right after the prompt and `path`.

    `is_exclusive` says that nothing but `tokens` is of interest: the options differ by this token alone.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    is_exclusive: bool = False


def token_questions(
    options: Sequence[Sequence[int]], *, by_first_token: bool, max_tokens: int
) -> tuple[TokenQuestion, ...]:
    """Return the questions that score the options.

    Args:
        options: token ids, no option empty.
        by_first_token: the first token in which the options differ stands for the option, as a letter does. Where it
            does not tell all of them apart, whole options are scored.
        max_tokens: how many tokens a question may have; more are split.
    """
    start = _common_beginning(options)
    rests = [tuple(option)[len(start) :] for option in options]
    firsts = [rest[:1] for rest in rests]
    if by_first_token and all(firsts) and len(set(firsts)) == len(firsts):
        asked: dict[tuple[int, ...], list[int]] = {start: [token for (token,) in firsts]}
        return _split(asked, max_tokens, is_exclusive=True)
    asked = {}
    for rest in rests:
        for place, token in enumerate(rest):
            tokens = asked.setdefault(start + rest[:place], [])
            if token not in tokens:
                tokens.append(token)
    return _split(asked, max_tokens, is_exclusive=False)


def option_log_probs(
    options: Sequence[Sequence[int]], questions: Sequence[TokenQuestion], answers: LogProbs
) -> list[float]:
    """Return the log probability of every option, up to a constant that all of them share.

    Args:
        options: as given to `token_questions`.
        questions: what it returned.
        answers: (path, token) → log probability, for every token of every question.
    """
    if not questions:  # the options are the same tokens
        return [0.0 for _ in options]
    first = len(questions[0].path)
    if questions[0].is_exclusive:
        return [answers[tuple(option[:first]), option[first]] for option in options]
    return [
        sum(answers[tuple(option[:place]), option[place]] for place in range(first, len(option))) for option in options
    ]


def _common_beginning(options: Sequence[Sequence[int]]) -> tuple[int, ...]:
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*options, strict=False))
    return tuple(column[0] for column in columns)


def _split(
    asked: Mapping[tuple[int, ...], Sequence[int]], size: int, *, is_exclusive: bool
) -> tuple[TokenQuestion, ...]:
    return tuple(
        TokenQuestion(path, tuple(tokens[start : start + size]), is_exclusive)
        for path, tokens in asked.items()
        for start in range(0, len(tokens), size)
    )
