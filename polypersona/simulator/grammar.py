"""How the simulator writes: openings by stance, reasons by trait, facts from the card, and a reader for all of them.

Templates hold alternatives in braces, `{a|b}`, not nested, and slots in angle brackets. The same tables write and
recognise: `read_level` takes any topic, `is_well_formed` only the constructs' own, and what a slot must hold. REGISTER
is the way of speaking of the simulator's respondents; VARIETY holds other ways to say the same, which only the tiny
model's corpus uses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from polypersona.records import AttributeValue, Persona
from polypersona.simulator.constructs import CONSTRUCTS

Templates = Mapping[int, Sequence[str]]

OPENINGS: Templates = {
    2: ("I feel very strongly in favour of <topic>.", "I {care a great deal about|set great store by} <topic>.",
        "I could not be more positive about <topic>."),
    1: ("I feel fairly good about <topic>.", "On the whole, I {like|welcome} <topic>.",
        "I am mostly positive about <topic>."),
    0: ("I have mixed feelings about <topic>.", "I am in two minds about <topic>."),
    -1: ("I am not very keen on <topic>.", "On the whole, I {get little from|can do without} <topic>.",
         "I have some doubts about <topic>."),
    -2: ("I feel very strongly against <topic>.", "I {want nothing to do with|have no time for} <topic>.",
         "I {see nothing at all|only see trouble} in <topic>."),
}  # fmt: skip
VARIETY_OPENINGS: Templates = {
    2: ("{Honestly|Frankly}, I love everything about <topic>.", "I am {delighted|thrilled} with <topic>.",
        "Nothing matters more to me than <topic>."),
    1: ("I quite like <topic>.", "{Overall|In general}, I am content with <topic>.", "I have {few|no real} complaints about <topic>."),
    0: ("I {see good and bad in|cannot decide about} <topic>.", "Sometimes yes, sometimes no, when it comes to <topic>."),
    -1: ("I am a bit negative about <topic>.", "{Overall|In general}, I could do without <topic>."),
    -2: ("{Honestly|Frankly}, I cannot stand <topic>.", "I am {fed up with|completely against} <topic>."),
}  # fmt: skip

REASONS: Mapping[str, Templates] = {
    "tech": {
        1: ("New tools {save|give back} {me|us} {a lot of time|hours every week}.", "I {enjoy|like} trying {new apps|the latest devices} {early|first}.",
            "Digital services make {my days|most tasks} {simpler|quicker|smoother}.", "I {trust|believe} that good software {makes life easier|solves real problems}."),
        -1: ("Screens {steal|take} too much of {my|our} attention.", "{Machines|Devices} {break|fail} exactly when {I need them|it matters}.",
             "I {worry|fear} that {my data|private information} ends up in the wrong hands.", "The old way {worked|works} {well enough|just fine} for me."),
    },
    "green": {
        1: ("{Nature|The planet} will not wait {for us|any longer}.", "Our {children|grandchildren} deserve {clean air|healthy rivers|a living planet}.",
            "Small habits {add up|make a difference} {for the planet|over time}.", "We {use|waste} far more than {the earth|nature} can give."),
        -1: ("Green rules {cost|hurt} {ordinary families|working people} the most.", "The climate has {always changed|always moved in cycles}.",
             "{Jobs|Wages} {come first|matter more} where I live.", "People {talk about|worry over} nature far too much."),
    },
    "health": {
        1: ("I {feel|sleep} much better when I look after {myself|my body}.", "Prevention {costs less|is easier} than {treatment|a cure}.",
            "{Good habits|Healthy routines} {keep me going|give me energy} all {day|week}.", "I {listen to|take seriously} what {my body|my doctor} tells me."),
        -1: ("{Doctors|Clinics} {rush|hurry} you {in and out|through the door}.", "I would rather enjoy life than {count calories|follow rules}.",
             "I {never|hardly ever} {think about|plan for} my health.", "Most health advice {changes every year|is exaggerated}."),
    },
    "thrift": {
        1: ("Every {coin|penny} {saved|put aside} buys {peace of mind|freedom} later.", "I {like|want} to know where {my money|every bill} goes.",
            "A small reserve {kept|saved} us {from debt|in hard times}.", "I {plan|check} my {spending|budget} {carefully|every month}."),
        -1: ("Money is {there to be enjoyed|meant to be spent}.", "Life is too short to {count pennies|keep a budget}.",
             "I {treat|reward} myself {when I feel like it|after a hard week}.", "Tomorrow's bills can {wait|look after themselves}."),
    },
    "civic": {
        1: ("{People|Neighbours} {help|look after} one another around here.", "We are {stronger|better off} {together|when we share}.",
            "I {have met|know} many people who {can be relied on|keep their word}.", "I feel {heard|respected} by the people around me."),
        -1: ("{Nobody|No one} {asks|listens to} people like me.", "{Officials|Leaders} {promise|talk} a lot and {deliver|do} little.",
             "I have learned to {rely on|trust} {only myself|nobody else}.", "Most people {think|care} only {of|about} themselves."),
    },
    "growth": {
        1: ("Learning {keeps me|makes me feel} {alive|motivated}.", "I {want|hope} to {go further|reach the next step} before long.",
            "Every {challenge|new task} {teaches|shows} me something.", "I {set|have} clear goals and {work hard for|follow} them."),
        -1: ("Extra effort {never|rarely} {paid off|brought me anything}.", "I {just|only} want {a quiet life|to get through the day}.",
             "{Courses|Lessons} teach nothing {useful|new} to me.", "I {am past|have had enough of} {chasing goals|starting over}."),
    },
    "tradition": {
        1: ("What {my parents|the old ones} taught me still {holds|counts}.", "{Order|Respect} {comes first|matters most} in {my house|my family}.",
            "{Faith|Custom} gives {my life|our days} {a direction|a shape}.", "Not every {change|new idea} is {progress|an improvement}."),
        -1: ("Old {rules|ways} should not hold {people|anyone} back.", "{Everyone|People} should live as they {choose|please}.",
             "The past was {unfair|hard} for {many people|most of us}.", "{Change|Fresh thinking} is {long overdue|what we need}."),
    },
    "ease": {
        1: ("I {wake up|go to bed} {calm|content} most days.", "I have {what|all} I need and {a little more|good people around me}.",
            "Things {went|have gone} {well|my way} {lately|these last years}.", "I can {afford|enjoy} {what matters to me|the small pleasures}."),
        -1: ("I {worry|lie awake} {about money|over bills} {at night|too often}.", "Things {went|have gone} {wrong|badly} {lately|these last years}.",
             "I {feel|am} {worn out|on my own} {most days|too often}.", "There is never enough {left|time or money} for {me|what matters}."),
    },
}  # fmt: skip
MIDDLE: Sequence[str] = (
    "There are good {arguments|points} on both sides.",
    "It {depends on|comes down to} {the situation|the day|the details}.",
    "I {have not|never} given it much thought.",
)

# name of the attribute → (form of its value, sentences). `article` puts a or an before it.
FACTS: Mapping[str, Sequence[str]] = {
    "occupation": ("As <a:occupation>, I {see this|notice it} {every day|most days}.", "Working as <a:occupation> {shaped|formed} that view."),
    "age": ("At <age>, I {know what I want|have seen enough|know my own mind}.", "I am <age> and {do not expect to change|speak from experience}."),
    "interests": ("When I am not busy with <interest>, I {think about this|come back to it}.", "I would gladly spend {my evenings|my weekends} on <interest>."),
    "area": ("{That is how it is|Things are like that} <area>.", "Living <area> {taught me that|made me see it}."),
    "marital": ("I {say|know} this as someone who is <marital>.",),
    "education": ("My {schooling|education}, <education>, {plays a part|has its share} in that.",),
    "work": ("{My days|These days} are <work>, and that {counts|matters} here.",),
    "values": ("<Value> {matters|counts} {most|a lot} to me.",),
}  # fmt: skip
_AREA_PHRASES = {
    "rural": "in the country",
    "small town": "in a small town",
    "suburb": "in a suburb",
    "city": "in a city",
}
_WORK_PHRASES = {
    "full time": "full of work", "part time": "half work and half home", "self-employed": "my own business",
    "student": "full of study", "retired": "those of a retired person", "unemployed": "spent looking for work",
    "keeping house": "spent keeping house",
}  # fmt: skip
_EDUCATION_PHRASES = {
    "less than high school": "a few years of school", "high school": "high school", "some college": "some college",
    "bachelor's degree": "a bachelor's degree", "graduate degree": "a graduate degree",
}  # fmt: skip
_MARITAL_PHRASES = {"living with partner": "living with a partner"}

_CHOICES = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<[\w:]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SAID_TWICE = re.compile(r"\b([\w']+) \1\b", re.IGNORECASE)
_VALUE = r"[\w'/&()+, -]+?"


def expand(template: str, rng: random.Random) -> str:
    """Return the template with one alternative of each brace picked."""
    return _CHOICES.sub(lambda found: rng.choice(found.group(1).split("|")), template)


def open_sentence(level: int, topic: str, rng: random.Random, openings: Templates = OPENINGS) -> str:
    """Return a first sentence that takes the stance level (−2…2) on the topic."""
    text = expand(rng.choice(openings[level]), rng)
    return text.replace("<topic>", topic)


def reason_sentences(trait: str, sign: int, count: int, rng: random.Random) -> list[str]:
    """Return up to `count` distinct reasons of a trait's sign (−1, 0, 1; 0 sits on the fence)."""
    templates = REASONS[trait][sign] if sign else MIDDLE
    return [expand(template, rng) for template in rng.sample(list(templates), min(count, len(templates)))]


def fact_sentences(persona: Persona, count: int, rng: random.Random) -> list[str]:
    """Return up to `count` sentences that each state a fact of the card, about different attributes."""
    known = [name for name in FACTS if _phrase(name, persona, rng) is not None]
    sentences = []
    for name in rng.sample(known, min(count, len(known))):
        text = expand(rng.choice(list(FACTS[name])), rng)
        phrase = _phrase(name, persona, rng) or ""
        sentences.append(_fill(text, phrase))
    return sentences


def read_level(text: str) -> int | None:
    """Return the stance level that the first sentence of an open answer takes, or None where it takes none."""
    first = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    return next((level for level, pattern in _opening_patterns() if pattern.fullmatch(first)), None)


def is_well_formed(text: str, labels: Iterable[str] = ()) -> bool:
    """Return whether every sentence of an answer is one that the grammar can write.

    Args:
        text: the whole answer.
        labels: the item's option labels; given, the first sentence must be one of them, else an opening.
    """
    first, *rest = _SENTENCE_END.split(text.strip())
    choices = {label.rstrip(".") + "." for label in labels}
    is_opened = first in choices if choices else _is_sentence(_exact_openings(), first)
    return is_opened and all(_is_sentence(_body_pattern(), sentence) for sentence in rest)


def stated_facts(text: str, persona: Persona) -> tuple[int, int]:
    """Return (facts of an answer that are true of the card, facts stated)."""
    stated = true = 0
    for sentence in _SENTENCE_END.split(text.strip()):
        for name, pattern in _fact_patterns():
            found = pattern.fullmatch(sentence)
            if found:
                stated += 1
                true += found.group("value").lower() in {phrase.lower() for phrase in _phrases(name, persona)}
                break
    return true, stated


def value_phrases(name: str, value: str) -> Sequence[str]:
    """Return the phrases in which an answer states that an attribute has a value, without articles of nouns."""
    table = {"area": _AREA_PHRASES, "work": _WORK_PHRASES, "education": _EDUCATION_PHRASES, "marital": _MARITAL_PHRASES}
    phrase = table.get(name, {}).get(value)
    return () if phrase is None else (re.sub(r"^an? ", "", phrase),)


def _is_sentence(pattern: re.Pattern[str], sentence: str) -> bool:
    return pattern.fullmatch(sentence) is not None and not _SAID_TWICE.search(sentence)


def _phrase(name: str, persona: Persona, rng: random.Random) -> str | None:
    phrases = _phrases(name, persona)
    return rng.choice(phrases) if phrases else None


def _phrases(name: str, persona: Persona) -> list[str]:
    """Return the phrases that state the persona's attribute truly; empty where it has none."""
    value: AttributeValue | None = persona.attributes.get(name)
    if value is None or value == "":
        return []
    if isinstance(value, tuple | list):
        return [str(part) for part in value]
    if name == "occupation":
        return [_with_article(str(value))]
    table = {"area": _AREA_PHRASES, "work": _WORK_PHRASES, "education": _EDUCATION_PHRASES}.get(name)
    if table is not None:
        return [table[str(value)]] if str(value) in table else []
    return [_MARITAL_PHRASES.get(str(value), str(value))]


def _fill(text: str, phrase: str) -> str:
    return _SLOT.sub(lambda slot: _capital(phrase) if slot.group(0)[1].isupper() else phrase, text)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pattern(template: str, slot: str = r".+?") -> str:
    """Return the regular expression of a template; slots become `slot`."""
    pattern = ""
    for part in re.split(r"(\{[^{}]*\}|<[\w:]+>)", template):
        if part.startswith("{"):
            pattern += "(?:" + "|".join(re.escape(choice) for choice in part[1:-1].split("|")) + ")"
        elif part.startswith("<"):
            pattern += slot
        else:
            pattern += re.escape(part)
    return pattern


@cache
def _opening_patterns() -> tuple[tuple[int, re.Pattern[str]], ...]:
    return tuple(
        (level, re.compile(_pattern(template, slot=r"[\w' ,-]+?")))
        for table in (OPENINGS, VARIETY_OPENINGS)
        for level, templates in table.items()
        for template in templates
    )


@cache
def _exact_openings() -> re.Pattern[str]:
    slot = _any_of(construct.topic for construct in CONSTRUCTS.values())
    templates = [text for table in (OPENINGS, VARIETY_OPENINGS) for texts in table.values() for text in texts]
    return re.compile("|".join(_pattern(template, slot) for template in templates))


@cache
def _body_pattern() -> re.Pattern[str]:
    reasons = [template for trait in REASONS.values() for templates in trait.values() for template in templates]
    values = {
        "age": r"\d+", "occupation": f"an? {_VALUE}", "area": _any_of(_AREA_PHRASES.values()),
        "work": _any_of(_WORK_PHRASES.values()), "education": _any_of(_EDUCATION_PHRASES.values()),
    }  # fmt: skip
    patterns = [_pattern(template) for template in (*reasons, *MIDDLE)]
    for name, templates in FACTS.items():
        patterns += [_pattern(template, values.get(name, _VALUE)) for template in templates]
    return re.compile("|".join(patterns))


@cache
def _fact_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (name, re.compile(_pattern(template, slot=f"(?P<value>{_VALUE})")))
        for name, templates in FACTS.items()
        for template in templates
    )


def _any_of(phrases: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, phrases)) + ")"
