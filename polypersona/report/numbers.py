"""How a number is written: three decimals, intervals in brackets, "n/a" where it is undefined. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNDEFINED = "n/a"
NOT_COMPUTED = "—"
_MIB = 1 << 20
_LEAST = 1e-6  # below it a number is the rounding of a computation


def is_defined(value: Any) -> bool:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def render_number(value: Any, digits: int = 3) -> str:
    """Return the number with fixed decimals and a true minus sign; "n/a" where it is undefined, never 0."""
    if not is_defined(value):
        return UNDEFINED
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.,") else "−" + text[1:]
    return text


def render_interval(low: Any, high: Any) -> str:
    """Return "[low, high]", or "n/a" where either end is undefined. An end that is not 0 does not read 0.000."""
    if not (is_defined(low) and is_defined(high)):
        return UNDEFINED
    return f"[{_render_end(low)}, {_render_end(high)}]"


def _render_end(value: float) -> str:
    is_small = _LEAST <= abs(value) < 0.0005
    return render_number(value, -math.floor(math.log10(abs(value))) if is_small else 3)


def render_raw(value: Any) -> str:
    """Return the number for another program to read, with six digits; empty where it is undefined."""
    return f"{value:.6g}" if is_defined(value) else ""


def render_count(value: Any) -> str:
    """Return a count with thousands separators."""
    return f"{int(value):,}" if is_defined(value) else UNDEFINED


def render_share(value: Any) -> str:
    """Return a share in [0, 1] as percent with one decimal."""
    return f"{render_number(100 * value, 1)} %" if is_defined(value) else UNDEFINED


def render_words(name: str) -> str:
    """Return an identifier as words: `work_experience` → "Work experience"."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def render_group(label: str) -> str:
    """Return a group as words: `work_status=part time` → "Work status: part time"; other labels as they are."""
    name, is_attribute, value = label.partition("=")
    return f"{render_words(name)}: {value}" if is_attribute else label


KINDS = {
    "open": "open", "likert": "Likert scale", "yesno": "yes or no", "agreement": "agreement", "single": "single choice",
    "multiple": "several answers",
}  # fmt: skip


def render_kind(response_type: str) -> str:
    """Return a response type as words."""
    return KINDS.get(response_type, response_type)


def plain_key(name: str) -> str:
    """Return a metric's name without case and punctuation, so that ROUGE-1, rouge_1 and rouge1 are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def render_fact(key: str, value: Any) -> tuple[str, str]:
    """Return a key and its value as words; the unit is read from the key's suffix (`_per_s`, `_s`, `_bytes`, `_mb`)."""
    if isinstance(value, bool):
        return render_words(key), "yes" if value else "no"
    if value is None:
        return render_words(key), "none"
    if not isinstance(value, int | float):
        return render_words(key), str(value)
    if not is_defined(value):
        return render_words(key), UNDEFINED
    if key.endswith("_per_s"):
        return f"{render_words(key.removesuffix('_per_s'))} per second", render_number(value, 1)
    if key == "seconds" or key.endswith("_s"):
        return ("Time" if key == "seconds" else render_words(key.removesuffix("_s"))), f"{render_number(value, 1)} s"
    if key.endswith("_bytes"):
        return render_words(key.removesuffix("_bytes")), f"{render_number(value / _MIB, 1)} MiB"
    if key.endswith("_mb"):
        return render_words(key.removesuffix("_mb")), f"{render_number(value, 1)} MB"
    return render_words(key), _render_plain(value)


def _render_plain(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return render_count(value)
    return f"{value:.3g}" if abs(value) < 0.01 else render_number(value)


def render_facts(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (words, value) in their order; lists of plain values are joined, tables left out."""
    facts: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            facts.extend(render_facts(value, f"{prefix}{render_words(str(key))} · "))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if not any(isinstance(part, Mapping | list) for part in value):
                facts.append((prefix + render_words(str(key)), ", ".join(str(part) for part in value) or "none"))
        else:
            words, text = render_fact(str(key), value)
            facts.append((prefix + words, text))
    return facts
