"""What changed forms of items change: signed effects with intervals clustered by persona.

Let p_k be the probability with which a persona picks option k of an item (1 for the option it chose where the engine
gives no probabilities, and at temperature 0), and u_k = k/(K − 1) the option's position, in [0, 1]. A form is compared
within the persona and item: every persona answers both. Effects are means over personas × items, or differences of two
such ratios:

| effect | is | zero means |
|---|---|---|
| acquiescence | E[2u − 1] of the item plus its negation's, halved; above 0: yes to both. In [−1, 1] | none |
| option order | E[u] shown in reverse minus E[u]; above 0: what is shown first is picked more. In [−1, 1] | none |
| no middle | share of the upper half without a middle minus that of the sides with one. In [−1, 1] | none |
| middle | share of the middle where it is offered. In [0, 1] | nobody |
| don't know | share of "Don't know" where it is offered. In [0, 1] | nobody |
| don't know, shift | E[u] of those with an opinion minus E[u] without the offer. In [−1, 1] | none |
| forbid | share against allowing minus share for forbidding; above 0: slower to forbid. In [−1, 1] | none |
| typo, letter swap | E[u] of the misspelt item minus E[u]. Controls. In [−1, 1] | none, as it should |

`d` is the effect in standard deviations of the item's own answers, pooled over items (Cohen 1988). The interval is
effect ± 1.96 s.e., the s.e. linearised and clustered by persona: with v_c a persona's sums (a, b, a', b') and the
effect A/B − A'/B', C/(C − 1) Σ_c (∇ · v_c)². Sums of v and v vᵀ add up over shards. Knows no file and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.records import Item
from polypersona.survey.inference import Z_95, Interval

FloatArray: TypeAlias = npt.NDArray[np.float64]
# Item, its probabilities, the form, its probabilities → (a, b, a', b'): the effect is ΣA/ΣB − ΣA'/ΣB'.
Vector: TypeAlias = Callable[[Item, FloatArray, Item, FloatArray], tuple[float, float, float, float]]
Row: TypeAlias = dict[str, Any]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect: the form it needs, how it is computed, and how it reads. A control should be null."""

    name: str
    label: str
    variant: str
    vector: Vector
    reading: str
    low: float = -1.0
    is_control: bool = False
    is_level: bool = False

    @property
    def signature(self) -> str:
        """The settings that change the number."""
        return f"{self.name}|form:{self.variant}|paired:persona,item|interval:linearised,95%,clusters:persona|v1"


def _mean(p: FloatArray) -> float:
    return float(p @ np.arange(len(p))) / (len(p) - 1)


def _acquiescence(_: Item, p: FloatArray, __: Item, q: FloatArray) -> tuple[float, float, float, float]:
    return _mean(p) + _mean(q) - 1, 1, 0, 0


def _shift(_: Item, p: FloatArray, __: Item, q: FloatArray) -> tuple[float, float, float, float]:
    return _mean(q) - _mean(p), 1, 0, 0


def _no_middle(_: Item, p: FloatArray, __: Item, q: FloatArray) -> tuple[float, float, float, float]:
    half = len(p) // 2
    return float(q[half:].sum()), 1, float(p[half + 1 :].sum()), float(1 - p[half])


def _middle(_: Item, p: FloatArray, __: Item, ___: FloatArray) -> tuple[float, float, float, float]:
    return float(p[len(p) // 2]), 1, 0, 0


def _dont_know(_: Item, __: FloatArray, ___: Item, q: FloatArray) -> tuple[float, float, float, float]:
    return float(q[-1]), 1, 0, 0


def _opinion_shift(_: Item, p: FloatArray, __: Item, q: FloatArray) -> tuple[float, float, float, float]:
    places = np.arange(len(p)) / (len(p) - 1)
    return float(q[:-1] @ places), float(q[:-1].sum()), _mean(p), 1


def _forbid(_: Item, p: FloatArray, __: Item, q: FloatArray) -> tuple[float, float, float, float]:
    return float(p[0] - q[1]), 1, 0, 0


EFFECTS = (
    Effect("acquiescence", "Acquiescence", "negated", _acquiescence, "above 0: agrees with a statement and its denial"),
    Effect("option_order", "Option order", "order", _shift, "above 0: picks what is shown first more often"),
    Effect("no_middle", "Scale without a middle", "even", _no_middle, "above 0: the middle hid the upper half"),
    Effect("middle", "Middle option", "even", _middle, "share of the middle where it is offered", 0, is_level=True),
    Effect("dont_know", "Don't know, offered", "dont_know", _dont_know, "share who take it", 0, is_level=True),
    Effect("dont_know_shift", "Don't know, shift", "dont_know", _opinion_shift, "above 0: the others answer higher"),
    Effect("forbid", "Forbid instead of allow", "forbid", _forbid, "above 0: slower to forbid than not to allow"),
    Effect("typo", "Control: a letter missing", "typo", _shift, "should be 0", is_control=True),
    Effect("letter_swap", "Control: letters exchanged", "letter_swap", _shift, "should be 0", is_control=True),
)  # fmt: skip
_NEEDS_ORDER = {"acquiescence", "option_order", "no_middle", "middle", "dont_know_shift", "typo", "letter_swap"}


@dataclass
class Moments:
    """Σ v, Σ v vᵀ over personas, personas and pairs."""

    total: FloatArray = field(default_factory=lambda: np.zeros(4))
    squares: FloatArray = field(default_factory=lambda: np.zeros((4, 4)))
    personas: int = 0
    pairs: int = 0

    def add(self, vector: FloatArray, pairs: int) -> None:
        """Add one persona's sums."""
        self.total += vector
        self.squares += np.outer(vector, vector)
        self.personas += 1
        self.pairs += pairs

    def interval(self, low: float) -> Interval:
        """Return A/B − A'/B' with its interval, cut to [low, 1]."""
        a, b, other, base = self.total.tolist()
        has_base = base > 0
        if b <= 0 or (other and not has_base):
            return Interval(math.nan, math.nan, math.nan, math.nan)
        value = a / b - (other / base if has_base else 0.0)
        if self.personas < 2:
            return Interval(value, math.nan, math.nan, math.nan)
        gradient = np.array([1 / b, -a / b**2, *((-1 / base, other / base**2) if has_base else (0.0, 0.0))])
        variance = float(gradient @ self.squares @ gradient) * self.personas / (self.personas - 1)
        error = math.sqrt(max(variance, 0.0))
        return Interval(value, max(low, value - Z_95 * error), min(1.0, value + Z_95 * error), error)


@dataclass
class Battery:
    """Sums of all effects, by item and overall, and the spread of the items' own answers."""

    items: Mapping[tuple[str, str], Item]
    effects: dict[tuple[str, str], Moments] = field(default_factory=dict)
    spread: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, answers: Mapping[str, Mapping[tuple[str, str], FloatArray]]) -> None:
        """Add personas: by id, the probabilities of the options by (item id, variant)."""
        for given in answers.values():
            for effect in EFFECTS:
                self._add_effect(effect, given)
            for (item_id, variant), p in given.items():
                if not variant and self.items[item_id, ""].scale == "ordered" and len(p) > 1:
                    u = np.arange(len(p)) / (len(p) - 1)
                    self.spread.setdefault(item_id, np.zeros(3))[:] += (1.0, float(p @ u), float(p @ (u * u)))

    def _add_effect(self, effect: Effect, given: Mapping[tuple[str, str], FloatArray]) -> None:
        whole, pairs = np.zeros(4), 0
        for (item_id, variant), q in given.items():
            if variant != effect.variant or (item_id, "") not in given:
                continue
            item, form = self.items[item_id, ""], self.items[item_id, variant]
            if effect.name in _NEEDS_ORDER and (item.scale != "ordered" or len(item.options) < 2):
                continue
            vector = np.array(effect.vector(item, given[item_id, ""], form, q))
            self.effects.setdefault((effect.name, item_id), Moments()).add(vector, 1)
            whole += vector
            pairs += 1
        if pairs:
            self.effects.setdefault((effect.name, ALL), Moments()).add(whole, pairs)

    @property
    def deviation(self) -> float:
        """Standard deviation of the items' own answers, pooled over items, in [0, ½]."""
        totals = np.array([[count, max(0.0, uu / count - (u / count) ** 2)] for count, u, uu in self.spread.values()])
        if not len(totals):
            return math.nan
        return math.sqrt(float(totals[:, 0] @ totals[:, 1]) / float(totals[:, 0].sum()))

    def rows(self) -> list[Row]:
        """Return one row per effect, over all items."""
        return [self._row(effect, ALL) for effect in EFFECTS]

    def item_rows(self) -> list[Row]:
        """Return one row per effect and item that has the form."""
        return [
            self._row(effect, item_id)
            for effect in EFFECTS
            for name, item_id in sorted(self.effects)
            if name == effect.name and item_id != ALL
        ]

    def _row(self, effect: Effect, group: str) -> Row:
        moments = self.effects.get((effect.name, group), Moments())
        found = moments.interval(effect.low)
        outside = [
            member
            for name, item_id in self.effects
            if name == effect.name and item_id != ALL
            for member in [self.effects[name, item_id].interval(effect.low)]
        ]
        deviation = self.deviation
        has_size = not effect.is_level and deviation > 0
        return {
            "effect": effect.name,
            "label": effect.label,
            "item": group,
            "n": 0 if math.isnan(found.value) else moments.pairs,
            "personas": moments.personas,
            "items": len(outside) if group == ALL else 1,
            "score": found.value,
            "low": found.low,
            "high": found.high,
            "error": found.error,
            "d": found.value / deviation if has_size else math.nan,
            "items_apart": sum(is_apart(one) for one in outside) if group == ALL else int(is_apart(found)),
            "is_control": effect.is_control,
            "is_level": effect.is_level,
            "reading": effect.reading,
            "signature": effect.signature,
        }


def is_apart(found: Interval) -> bool:
    """Return whether the interval leaves zero out; an effect without error is apart where it is not zero."""
    return bool(found.low > 1e-9 or found.high < -1e-9)


def answers_of(
    rows: Sequence[Mapping[str, Any]], items: Mapping[tuple[str, str], Item], *, is_greedy: bool = False
) -> dict[str, dict[tuple[str, str], FloatArray]]:
    """Return, by persona, the probabilities of the options of each form, in the item's order of options.

    Rows have persona_id, item_id, variant, code, option_probs and disposition; only complete ones are answers. Those
    given at temperature 0 (`is_greedy`) count as their codes: option probabilities do not describe them.
    """
    found: dict[str, dict[tuple[str, str], FloatArray]] = {}
    for row in rows:
        key = row["item_id"], row["variant"]
        if row["disposition"] != "complete" or key not in items:
            continue
        item = items[key]
        if row["option_probs"] is not None and not is_greedy:
            p = np.array(row["option_probs"], np.float64)
            p /= p.sum()
        elif row["code"] in item.codes:
            p = np.zeros(len(item.codes))
            p[item.codes.index(row["code"])] = 1.0
        else:
            continue
        found.setdefault(row["persona_id"], {})[key] = p
    return found
