"""Persona → latent traits → stance on a construct: the simulator's model of a respondent.

Eight latent traits are sums of documented effects of attributes plus a noise that belongs to the persona. The effects
are assumptions with well-known signs, scaled so that the card explains most of a trait's variance; they are no
estimate from people. Attributes a persona lacks, and values the tables do not know, contribute nothing.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from statistics import NormalDist

from polypersona.records import Item, Persona
from polypersona.simulator.constructs import CONSTRUCTS

SEMANTICS_VERSION = 1
TRAITS = ("tech", "green", "health", "thrift", "civic", "growth", "tradition", "ease")
NOISE_SD = 0.25
# Neutral answers are given where |stance| is below this; a five-point scale's outer points beyond STRONG.
NEUTRAL = 0.12
STRONG = 0.85

_EDUCATION = {
    "less than high school": -2,
    "high school": -1,
    "some college": 0,
    "bachelor's degree": 1,
    "graduate degree": 2,
}
_MEANS = {"very low": -2, "low": -1, "middle": 0, "high": 1, "very high": 2}
_POLITICS = {
    "very liberal": -3, "liberal": -2, "slightly liberal": -1, "moderate": 0,
    "slightly conservative": 1, "conservative": 2, "very conservative": 3,
}  # fmt: skip
_AREA = {"rural": -1.2, "small town": -0.5, "suburb": 0.3, "city": 0.9}
_PARTNERED = {"married": 0.8, "living with partner": 0.8, "never married": -0.6, "divorced": -0.8, "widowed": -0.8, "separated": -1.0}  # fmt: skip
_RELIGIOUS = {"none": -1.0}
_ACTIVE = {"full time": 0.6, "self-employed": 0.8, "part time": 0.2, "student": 0.8, "retired": -1.2, "unemployed": -0.4, "keeping house": -0.5}  # fmt: skip
_SECURE = {"full time": 0.4, "self-employed": 0.2, "part time": -0.2, "retired": 0.4, "unemployed": -1.6, "student": -0.3, "keeping house": 0.0}  # fmt: skip
_FEMALE = {"female": 1.0, "male": -1.0}

# trait → {predictor: weight}. Predictors are about zero in the mean with unit variance in a US panel.
EFFECTS: Mapping[str, Mapping[str, float]] = {
    "tech": {"age": -0.65, "education": 0.45, "means": 0.3, "female": -0.2, "area": 0.2},
    "green": {"politics": -0.8, "education": 0.3, "age": -0.3, "female": 0.2, "area": 0.15},
    "health": {"means": 0.5, "education": 0.4, "age": 0.45, "female": 0.35},
    "thrift": {"age": 0.6, "politics": 0.35, "partnered": 0.4, "education": 0.3},
    "civic": {"education": 0.45, "religious": 0.5, "means": 0.4, "partnered": 0.25},
    "growth": {"age": -0.45, "education": 0.55, "active": 0.6},
    "tradition": {"politics": 0.7, "religious": 0.5, "age": 0.3, "education": -0.2, "area": -0.15},
    "ease": {"means": 0.6, "partnered": 0.55, "secure": 0.5},
}
# value or temperament → (trait, push).
PUSHES: Mapping[str, tuple[str, float]] = {
    "sustainability": ("green", 0.8), "tradition": ("tradition", 0.8), "innovation": ("tech", 0.8),
    "security": ("thrift", 0.8), "community": ("civic", 0.8), "independence": ("civic", -0.5),
    "achievement": ("growth", 0.8), "family": ("tradition", 0.4),
    "cautious": ("health", 0.6), "curious": ("growth", 0.5), "outgoing": ("civic", 0.6), "reserved": ("civic", -0.5),
    "optimistic": ("ease", 0.7), "anxious": ("ease", -0.7),
}  # fmt: skip


def predictors(persona: Persona) -> dict[str, float]:
    """Return the standardised predictors that the persona's attributes give; missing ones are absent."""
    attributes = persona.attributes
    found: dict[str, float] = {}
    age = attributes.get("age")
    if isinstance(age, int | float) and not isinstance(age, bool):
        found["age"] = max(-1.7, min(1.9, (float(age) - 47) / 17))
    means = attributes.get("income", attributes.get("wealth"))
    for name, value, table, scale in (
        ("education", attributes.get("education"), _EDUCATION, 1.25),
        ("means", means, _MEANS, 1.41),
        ("politics", attributes.get("politics"), _POLITICS, 1.6),
        ("area", attributes.get("area"), _AREA, 0.8),
        ("partnered", attributes.get("marital"), _PARTNERED, 0.8),
        ("active", attributes.get("work"), _ACTIVE, 0.75),
        ("secure", attributes.get("work"), _SECURE, 0.5),
        ("female", attributes.get("gender"), _FEMALE, 1.0),
    ):
        if isinstance(value, str) and value in table:
            found[name] = table[value] / scale
    religion = attributes.get("religion")
    if isinstance(religion, str):
        found["religious"] = _RELIGIOUS.get(religion, 0.65)
    return found


def card_traits(persona: Persona) -> dict[str, float]:
    """Return the part of each trait that the card explains; about zero in the mean, variance near one."""
    known = predictors(persona)
    traits = {
        trait: sum(weight * known[name] for name, weight in effects.items() if name in known)
        for trait, effects in EFFECTS.items()
    }
    values = persona.attributes.get("values", ())
    temperament = persona.attributes.get("temperament", "")
    for word in (*(values if isinstance(values, tuple | list) else (values,)), temperament):
        if word in PUSHES:
            trait, push = PUSHES[str(word)]
            traits[trait] += push
    return traits


def latent_traits(persona: Persona, seed: int) -> dict[str, float]:
    """Return the persona's traits: the card's part plus N(0, NOISE_SD²), a function of (seed, persona id, trait)."""
    return {
        trait: value + NOISE_SD * _gauss(seed, persona.persona_id, trait)
        for trait, value in card_traits(persona).items()
    }


def stance_on(traits: Mapping[str, float], construct: str) -> float:
    """Return the stance on a construct in units of about one standard deviation; positive is more of it."""
    loadings = CONSTRUCTS[construct].loadings
    return sum(weight * traits[trait] for trait, weight in loadings.items()) / math.hypot(*loadings.values())


def telling_trait(traits: Mapping[str, float], construct: str, stance: float, rng: random.Random) -> tuple[str, int]:
    """Return one of the construct's traits that pulls the way the stance goes, and its sign (0 for a neutral stance)."""
    loadings = CONSTRUCTS[construct].loadings
    trait = rng.choice([trait for trait, weight in loadings.items() if weight * traits[trait] * stance >= 0])
    return trait, 0 if stance_level(stance) == 0 else (1 if traits[trait] > 0 else -1)


def stance_level(stance: float) -> int:
    """Return −2, −1, 0, 1 or 2."""
    if abs(stance) < NEUTRAL:
        return 0
    return int(math.copysign(2 if abs(stance) >= STRONG else 1, stance))


def option_index(item: Item, stance: float) -> int:
    """Return the index of the option that the stance on the item's construct picks; reverse keys respected.

    Scales of an odd length have their middle at |stance| < NEUTRAL; five points use STRONG, other lengths cut the
    standard normal distribution into equal shares.
    """
    stance = -stance if item.reverse else stance
    count = len(item.options)
    if count == 5:
        return stance_level(stance) + 2
    if count == 3:
        return 1 if abs(stance) < NEUTRAL else (2 if stance > 0 else 0)
    share = NormalDist().cdf(stance)
    return min(count - 1, int(share * count))


def _gauss(*parts: object) -> float:
    data = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    uniform = (int.from_bytes(data, "little") + 0.5) / 2.0**64
    return NormalDist().inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))
