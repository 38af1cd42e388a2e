"""What a server answers to one chat completion: its JSON read into a value, its refusals and waits understood.

Pure. Takes decoded JSON and headers; knows no connection, no persona and no item.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_LETTER = re.compile(r"\W*([A-Z])\W*")
_SHOWN_CHARACTERS = 200


class UnreadableReplyError(ValueError):
    """The server's reply is no chat completion; asking again may help."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply. `is_refused` where the server filtered it or the model declined in the protocol's own field.

    `top` are the likeliest first tokens with their log probabilities, None where the server gave none.
    """

    text: str
    is_refused: bool = False
    is_truncated: bool = False
    top: tuple[tuple[str, float], ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0


def read_completion(data: Any) -> Completion:
    """Return the first choice of a chat completion.

    Raises:
        UnreadableReplyError: the reply has another shape.
    """
    choices = _get(data, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _get(choice, "message")
    if not isinstance(message, dict):
        raise UnreadableReplyError("the reply has no choices[0].message")
    content, refusal, reason = message.get("content"), message.get("refusal"), _get(choice, "finish_reason")
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        raise UnreadableReplyError("the reply's choices[0].message.content is no text")
    usage = _get(data, "usage")
    prompt_tokens = _count(usage, "prompt_tokens")
    return Completion(
        text=_encodable(content or refusal or "").strip(),
        is_refused=reason == "content_filter" or bool(refusal),
        is_truncated=reason == "length",
        top=_read_top(_get(choice, "logprobs")),
        prompt_tokens=prompt_tokens,
        cached_tokens=min(prompt_tokens, _count(_get(usage, "prompt_tokens_details"), "cached_tokens")),
        new_tokens=_count(usage, "completion_tokens"),
    )


def letter_log_probs(top: Sequence[tuple[str, float]], count: int) -> list[float]:
    """Return the log probability of each of the first `count` letters, summed over tokens that spell it.

    A token spells a letter where that is all of it but spaces and punctuation (`A`, ` A`, `A)`). A letter that no token
    spells gets minus infinity: what is not among the likeliest tokens is not known, and counts as never chosen.
    """
    probs = [0.0] * count
    for token, log_prob in top:
        if (found := _LETTER.fullmatch(token)) and (place := ord(found.group(1)) - ord("A")) < count:
            probs[place] += math.exp(min(log_prob, 0.0))
    return [math.log(prob) if prob > 0 else -math.inf for prob in probs]


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return how long the server asks to wait: `Retry-After` in seconds or as a date, or `retry-after-ms`.

    A date is compared with the server's own `Date` where it sends one, because clocks differ. None where it does not
    ask, or not in words that can be read. `headers` are looked up in small letters.
    """
    for name, factor in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * factor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    until = _read_date(headers.get("retry-after", ""))
    if until is None:
        return None
    return max(0.0, (until - (_read_date(headers.get("date", "")) or now)).total_seconds())


def error_of(data: Any, text: str) -> tuple[str, str]:
    """Return (code, message) of an error reply, on one line; `data` is its JSON or None, `text` its whole text."""
    error = _get(data, "error") or data
    code = _get(error, "code") or _get(error, "type") or ""
    said = error if isinstance(error, str) else _get(error, "message") or _get(error, "detail") or text
    return str(code), " ".join(_encodable(str(said)).split()) or "no message"


def shorten(text: str) -> str:
    """Return the text's beginning."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _read_top(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    content = _get(logprobs, "content")
    if not isinstance(content, list) or not content:
        return None
    entries = _get(content[0], "top_logprobs")
    if not isinstance(entries, list) or not entries:
        return None
    pairs = [(_get(entry, "token"), _get(entry, "logprob")) for entry in entries]
    if not all(isinstance(token, str) and _is_number(log_prob) for token, log_prob in pairs):
        raise UnreadableReplyError("the reply's top_logprobs are no pairs of token and logprob")
    return tuple(pairs)


def _encodable(text: str) -> str:
    """Return the text with a question mark for half a character (a lone surrogate), which JSON may escape."""
    return text.encode("utf-8", "replace").decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _read_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _get(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _count(usage: Any, key: str) -> int:
    value = _get(usage, key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
