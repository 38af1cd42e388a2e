"""What the simulator can be asked about: constructs, their loadings on latent traits, and the words for them.

A construct is what an item measures, from the field's own instruments. Its loadings say which latent traits
(`traits.TRAITS`) make a respondent score high on it; they are this project's assumptions, chosen so that the well-known
signs hold (older respondents save more, conservative ones care less for climate policy), and no estimate from
people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Construct:
    """One construct. `topic` is a noun phrase in the first person that an open answer is about.

    `loadings` map latent traits to weights; they need not sum to one.
    """

    name: str
    domain: str
    topic: str
    loadings: Mapping[str, float]


def _table(*rows: tuple[str, str, str, Mapping[str, float]]) -> Mapping[str, Construct]:
    return {row[0]: Construct(*row) for row in rows}


CONSTRUCTS = _table(
    ("neighbourhood_belonging", "demographics", "my neighbourhood", {"civic": 1.0}),
    ("heritage_identity", "demographics", "my family heritage", {"tradition": 1.0}),
    ("generational_optimism", "demographics", "the prospects of my generation", {"growth": 0.6, "ease": 0.8}),
    ("civic_representation", "demographics", "how people like me are represented", {"civic": 0.8, "ease": 0.6}),
    ("provider_trust", "healthcare", "the advice of doctors and nurses", {"health": 1.0}),
    ("care_experience", "healthcare", "the care I receive", {"ease": 1.0}),
    ("preventive_behavior", "healthcare", "regular check-ups", {"health": 1.0}),
    ("digital_health", "healthcare", "online health services", {"tech": 1.0}),
    ("lifelong_learning", "education", "learning new things", {"growth": 1.0}),
    ("learning_engagement", "education", "learning together with others", {"growth": 0.8, "civic": 0.6}),
    ("online_learning", "education", "online courses", {"tech": 0.8, "growth": 0.6}),
    ("education_value", "education", "formal education", {"growth": 1.0}),
    ("work_engagement", "work_experience", "my daily work", {"growth": 0.8, "ease": 0.6}),
    ("work_recognition", "work_experience", "the recognition I get for my work", {"ease": 1.0}),
    ("career_ambition", "work_experience", "moving up in my career", {"growth": 1.0}),
    ("coworker_bonds", "work_experience", "the people I work with", {"civic": 1.0}),
    ("perceived_usefulness", "technology", "new technology", {"tech": 1.0}),
    ("perceived_ease_of_use", "technology", "using digital devices", {"tech": 1.0}),
    ("privacy_comfort", "technology", "sharing personal data online", {"tech": 0.8, "civic": 0.6}),
    ("automation_optimism", "technology", "artificial intelligence", {"tech": 0.8, "growth": 0.6}),
    ("brand_satisfaction", "consumer_preferences", "the products I buy", {"ease": 1.0}),
    ("price_consciousness", "consumer_preferences", "comparing prices", {"thrift": 1.0}),
    ("sustainable_consumption", "consumer_preferences", "buying green products", {"green": 1.0}),
    ("novelty_seeking", "consumer_preferences", "trying new products", {"tech": 0.6, "growth": 0.8}),
    ("saving_habit", "finance", "saving money", {"thrift": 1.0}),
    ("financial_confidence", "finance", "my financial situation", {"ease": 0.8, "thrift": 0.6}),
    ("debt_aversion", "finance", "living without debt", {"thrift": 1.0}),
    ("social_trust", "social_issues", "trusting other people", {"civic": 1.0}),
    ("institutional_confidence", "social_issues", "public institutions", {"civic": 0.8, "ease": 0.6}),
    ("equality_support", "social_issues", "reducing inequality", {"green": 0.6, "tradition": -0.8}),
    ("traditional_values", "social_issues", "traditional values", {"tradition": 1.0}),
    ("ecological_concern", "environment", "protecting nature", {"green": 1.0}),
    ("green_behavior", "environment", "living sustainably", {"green": 1.0}),
    ("climate_policy_support", "environment", "stricter climate rules", {"green": 0.8, "tradition": -0.6}),
    ("life_satisfaction", "lifestyle", "my life as a whole", {"ease": 1.0}),
    ("physical_activity", "lifestyle", "regular exercise", {"health": 1.0}),
    ("social_connection", "lifestyle", "time with friends and family", {"civic": 0.8, "ease": 0.6}),
    ("leisure_balance", "lifestyle", "the balance of work and free time", {"ease": 0.8, "growth": -0.6}),
)
