"""Sentences of the benchmark's personas and questions, and of the text its tokenizers learn from. All synthetic."""

from __future__ import annotations

import random
from collections.abc import Iterator

NAMES = (
    "Aino", "Bram", "Chidi", "Dalia", "Emre", "Freya", "Goran", "Halima", "Ivo", "Jun", "Katya", "Luca", "Mei",
    "Noor", "Oskar", "Paloma",
)  # fmt: skip
TRADES = (
    "baker", "midwife", "welder", "librarian", "taxi driver", "roofer", "data clerk", "beekeeper", "judge",
    "cleaner", "pilot", "dentist", "tailor", "forester",
)  # fmt: skip
TOWNS = (
    "an island village", "a mill town", "the old harbour", "a new estate", "the market square", "a mining valley",
    "the capital", "a border town",
)  # fmt: skip
HOMES = (
    "alone", "with one child", "with three children", "with a grandmother", "in a shared flat", "with a husband",
    "with a wife",
)  # fmt: skip
MERITS = (
    "thrift", "courage", "faith", "fairness", "order", "kindness", "curiosity", "loyalty", "independence",
    "patience", "tradition", "ambition",
)  # fmt: skip
PASTIMES = (
    "sailing", "knitting", "pub quizzes", "amateur theatre", "mushroom picking", "repairing radios", "karaoke",
    "hill running", "baking bread",
)  # fmt: skip
TOPICS = (
    "schools", "hospitals", "rents", "wages", "trains", "pensions", "energy prices", "immigration", "data privacy",
    "local elections", "air quality", "child care",
)  # fmt: skip
DEGREES = ("left school early", "finished an apprenticeship", "holds a college degree", "is studying in the evenings")
MEANS = ("struggles at the end of the month", "gets by", "lives comfortably", "has savings")
MANNERS = ("in short, dry sentences", "warmly and at length", "with many examples", "carefully", "with a joke")
PERIODS = ("week", "month", "year")
AGREE = ("Strongly disagree", "Disagree", "Neither", "Agree", "Strongly agree")
OFTEN = ("Never", "Seldom", "Sometimes", "Often", "Always")
BINARY = ("Yes", "No")
SYLLABLES = (
    "ka", "lo", "mi", "ten", "ru", "sha", "vi", "pol", "est", "or", "an", "du", "fe", "gri", "hu", "jas", "ny",
    "qui", "wex", "zo", "bri", "cle",
)  # fmt: skip


def opening() -> str:
    """Give what stands before every persona."""
    return (
        "<|im_start|>system\nThis is a survey. You speak for the person on the card and for nobody else. Use the first "
        "person, keep to the facts, the values and the manner of the card, and answer what is asked.<|im_end|>\n"
        "<|im_start|>user\n"
    )


def card(rng: random.Random) -> str:
    """Give one persona's description."""
    name, age, trade, home, town = (
        rng.choice(NAMES), rng.randint(18, 88), rng.choice(TRADES), rng.choice(HOMES), rng.choice(TOWNS)
    )  # fmt: skip
    parent, origin, degree, means = (rng.choice(table) for table in (NAMES, TRADES, DEGREES, MEANS))
    merits, pastimes = rng.sample(MERITS, rng.randint(2, 4)), rng.sample(PASTIMES, rng.randint(1, 3))
    lines = [
        f"{name} is {age} years old, works as a {trade} and lives {home} in {town}.",
        f"{parent}'s child of a {origin}, {degree} and {means}.",
        f"Believes in {', '.join(merits)}; likes {', '.join(pastimes)}.",
    ]
    extras = [
        f"Worries about {rng.choice(TOPICS)} more than about {rng.choice(TOPICS)}.",
        f"Spent {rng.randint(2, 20)} years in {rng.choice(TOWNS)}.",
        f"Speaks {rng.choice(MANNERS)}.",
    ]
    return " ".join(lines + rng.sample(extras, rng.randint(2, 3))) + "\n"


def closed_item(rng: random.Random) -> tuple[str, int]:
    """Give a question with lettered options, and how many there are."""
    topic, other = rng.sample(TOPICS, 2)
    text, options = rng.choice(
        (
            (f"Our region should put {topic} before {other}.", AGREE),
            (f"How often did you talk about {topic} last {rng.choice(PERIODS)}?", OFTEN),
            (
                f"Would you pay more tax this {rng.choice(PERIODS)} for better {topic}, if {other} stayed as they are?",
                BINARY,
            ),
        )
    )
    return f"{text} " + " ".join(f"{letter}) {option}" for letter, option in zip("ABCDE", options, strict=False)), len(
        options
    )


def open_item(rng: random.Random) -> str:
    """Give a question to be answered in free words."""
    topic, other = rng.sample(TOPICS, 2)
    years = rng.randint(2, 30)
    return rng.choice(
        (
            f"What has {topic} meant for your life in the last {years} years, and what would you change first and why?",
            f"Think of a neighbour who disagrees with you about {topic}. What would you say, and why?",
            f"Describe a day on which {topic} or {other} made you angry, and what happened afterwards.",
            f"Who should decide about {topic} where you live, and who should not? Please give your reasons.",
        )
    )


def closing(question: str) -> str:
    """Give what stands after every persona: the question and the opening of the answer."""
    return f"Question: {question}<|im_end|>\n<|im_start|>assistant\n"


def tokenizer_text(seed: int, count: int) -> Iterator[str]:
    """Give text to learn a vocabulary from: the benchmark's own, and invented words for a large vocabulary to hold."""
    rng = random.Random(seed)
    for _ in range(count):
        yield opening()
        yield card(rng)
        yield closing(closed_item(rng)[0])
        yield closing(open_item(rng))
        yield " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(40))
