"""One record made elsewhere → the fields of an example, whatever it calls them and however deep it keeps them.

A field is looked for in the record, then in its `metadata` or `meta`. What a record's messages say stands in for
fields it lacks. Knows no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polypersona.chatml import CARD_ORDER, clean_text
from polypersona.panel.identity import content_digest
from polypersona.records import RESPONSE_TYPES, AttributeValue, Persona, ResponseType, digest

# Names of persona attributes that a flat record may have beside its other fields, after those of the card.
FLAT_ATTRIBUTES = (
    *CARD_ORDER, "profession", "job", "sex", "name", "race", "ethnicity", "nationality", "country", "region", "state",
    "city", "location", "language", "income_bracket", "marital_status", "household", "children", "political_views",
    "traits", "personality", "hobbies", "skills", "health", "lifestyle",
)  # fmt: skip
RENAMED = {"profession": "occupation", "job": "occupation", "sex": "gender", "marital_status": "marital"}
QUESTION_KEYS = ("question", "stem", "prompt", "question_text")
REFERENCE_KEYS = ("reference", "response", "answer", "completion")
TYPE_KEYS = ("question_type", "response_type", "type")
PERSONA_TEXT_KEYS = ("text", "description", "persona", "bio", "summary")
# Fields that are read, or that say nothing a dataset needs: none of them is reported as ignored.
KNOWN_KEYS = {
    *QUESTION_KEYS, *REFERENCE_KEYS, *TYPE_KEYS, "id", "messages", "meta", "metadata", "persona", "persona_id",
    "domain", "domain_id", "item_id", "question_id", "options", "codes", "scale", "reverse", "construct", "weight",
    "shown", "rationale", "code", "label", "source_id",
}  # fmt: skip
TYPE_NAMES: Mapping[str, ResponseType] = {
    "scale": "likert", "rating": "likert", "likertscale": "likert", "openended": "open", "freetext": "open",
    "text": "open", "boolean": "yesno", "binary": "yesno", "statement": "agreement", "agree": "agreement",
    "singlechoice": "single", "multiplechoice": "single", "number": "numeric",
}  # fmt: skip
DEFAULT_DOMAIN = "general"

_ROLES = ("system", "user", "assistant")
_USER_TURN = re.compile(
    r"\s*Persona:\s*\n(?P<card>.*?)\n\s*\n(?:Domain:[ \t]*(?P<domain>[^\n]*)\n)?Question:[ \t]*(?P<question>[^\n]+)",
    re.DOTALL,
)
_CARD_LINE = re.compile(r"\s*(?P<name>[^:\n]{1,40}):\s*(?P<value>.+)")
_NOT_WORD = re.compile(r"\W+")


class RecordProblem(ValueError):
    """Why a record cannot be taken: the field and the reason."""

    def __init__(self, field: str, reason: str = "") -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Fields:
    """What a record says, under this project's names. `ignored` are the names of fields nothing was made of."""

    source_id: str
    persona_id: str
    attributes: Mapping[str, AttributeValue]
    text: str
    weight: float
    domain: str
    item_id: str
    question: str
    response_type: ResponseType
    options: tuple[str, ...]
    codes: tuple[int, ...]
    scale: Literal["ordered", "nominal"]
    reverse: bool
    construct: str
    shown: tuple[int, ...]
    reference: str
    ignored: tuple[str, ...]


def read_fields(content: Any) -> Fields:
    """Return the fields of a record.

    Raises:
        RecordProblem: a field is missing or has a value that cannot be used.
    """
    if not isinstance(content, Mapping):
        raise RecordProblem("", f"a record is a mapping, not {_kind(content)}")
    _refuse_half_characters(content)
    record = _Record(content)
    persona, from_card = _read_persona(record)
    question = record.text(QUESTION_KEYS) or record.turn.get("question", "")
    if not clean_text(question):
        raise RecordProblem("question", "missing")
    options = _read_options(record)
    response_type = _read_type(record, has_options=bool(options))
    domain = record.text(("domain", "domain_id")) or record.turn.get("domain", "") or DEFAULT_DOMAIN
    domain = _NOT_WORD.sub("_", domain.strip().lower()).strip("_") or DEFAULT_DOMAIN
    return Fields(
        source_id=record.text(("source_id",)) or record.text(("id",)),
        persona_id=persona.persona_id,
        attributes=persona.attributes,
        text=persona.text,
        weight=persona.weight,
        domain=domain,
        item_id=record.text(("item_id",)) or f"{domain}.{response_type}.{digest(question, *options, size=4)}",
        question=question,
        response_type=response_type,
        options=options,
        codes=_read_codes(record, options),
        scale="nominal" if record.find(("scale",)) == "nominal" else "ordered",
        reverse=record.find(("reverse",)) is True,
        construct=record.text(("construct",)),
        shown=_read_shown(record, options),
        reference=_read_reference(record),
        ignored=record.ignored(is_flat=not from_card),
    )


def _refuse_half_characters(content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        try:
            json.dumps([name, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            field = name.encode("utf-8", "replace").decode()
            raise RecordProblem(field, "the text holds half a character (a lone surrogate)") from error


class _Record:
    """A record, its metadata and its messages behind one way to ask for a field."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        inner: Mapping[str, Any] = next(
            (content[key] for key in ("metadata", "meta") if isinstance(content.get(key), Mapping)), {}
        )
        self.content = content
        self.places: tuple[Mapping[str, Any], ...] = (content, inner)
        self.messages = _read_messages(content.get("messages"))
        found = _USER_TURN.match(self.messages.get("user", ""))
        self.turn = {name: value for name, value in found.groupdict().items() if value} if found else {}

    def find(self, names: Sequence[str]) -> Any:
        """Return the first value under any of the names that is not null."""
        return next((p[name] for name in names for p in self.places if p.get(name) is not None), None)

    def text(self, names: Sequence[str]) -> str:
        """Return the first value under any of the names as text; a mapping or list there is a problem."""
        value = self.find(names)
        if isinstance(value, Mapping | list):
            raise RecordProblem(names[0], f"this is text, not {_kind(value)}")
        return "" if value is None else str(value).strip()

    def ignored(self, *, is_flat: bool) -> tuple[str, ...]:
        taken = KNOWN_KEYS | set(FLAT_ATTRIBUTES) if is_flat else KNOWN_KEYS
        return tuple(sorted(str(name) for name in self.content if name not in taken))


def _read_messages(messages: Any) -> dict[str, str]:
    """Return role → content of a triplet; empty where the record has none."""
    if messages is None:
        return {}
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RecordProblem("messages", "this is a list of {role, content}")
    turns = {str(message.get("role")): message.get("content") for message in messages}
    unknown = sorted(set(turns) - set(_ROLES))
    if unknown or len(turns) != len(messages):
        raise RecordProblem("messages", f"one each of {', '.join(_ROLES)} is allowed, not {[*turns]}")
    if not all(isinstance(text, str) for text in turns.values()):
        raise RecordProblem("messages", "a message's content is text")
    return {role: str(text) for role, text in turns.items()}


def _read_persona(record: _Record) -> tuple[Persona, bool]:
    """Return the persona, and whether the record keeps it in a place of its own (not beside its other fields)."""
    stored = record.find(("persona",))
    if isinstance(stored, Mapping):
        inner = stored.get("attributes")
        own = inner if isinstance(inner, Mapping) else stored
        skipped = {"id", "persona_id", "weight", *PERSONA_TEXT_KEYS}
        attributes = _read_attributes({name: value for name, value in own.items() if name not in skipped})
        text = next((str(stored[key]) for key in PERSONA_TEXT_KEYS if isinstance(stored.get(key), str)), "")
        source_id = stored.get("persona_id") or stored.get("id")
    elif stored is not None and not isinstance(stored, str):
        raise RecordProblem("persona", f"this is a mapping or text, not {_kind(stored)}")
    else:
        flat = {name: value for name in FLAT_ATTRIBUTES if (value := record.find((name,))) is not None}
        attributes, text, source_id = _read_attributes(flat), stored or "", None
        if not attributes and not text:
            attributes, text = _read_card(record.turn.get("card", ""))
    persona_id = str(record.find(("persona_id",)) or source_id or "").strip()
    if not attributes and not text.strip():
        raise RecordProblem("persona", "missing: no `persona`, no attributes and no card in the user message")
    persona = Persona(persona_id, attributes, text.strip(), _read_weight(record))
    if not persona_id:
        persona = Persona(content_digest(persona), attributes, text.strip(), persona.weight)
    return persona, isinstance(stored, Mapping)


def _read_attributes(stored: Mapping[str, Any]) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    for name, value in stored.items():
        if value is None or value == "" or value != value:
            continue
        if isinstance(value, list | tuple):
            if not all(isinstance(part, str | int | float) for part in value):
                raise RecordProblem(f"persona.{name}", "a list of an attribute holds plain values")
            value = tuple(str(part) for part in value)
        elif not isinstance(value, str | int | float):
            raise RecordProblem(f"persona.{name}", f"an attribute is text, a number or a list, not {_kind(value)}")
        attributes.setdefault(RENAMED.get(name, name), value)
    return attributes


def _read_card(card: str) -> tuple[dict[str, AttributeValue], str]:
    """Return the attributes and free text of a card in a user message: lines of `name: value`, then text."""
    attributes: dict[str, AttributeValue] = {}
    rest = []
    for line in card.splitlines():
        found = _CARD_LINE.fullmatch(line)
        if found:
            name = _NOT_WORD.sub("_", found["name"].strip().lower())
            value = found["value"].strip()
            attributes[RENAMED.get(name, name)] = int(value) if value.isdecimal() else value
        elif line.strip():
            rest.append(line.strip())
    return attributes, " ".join(rest)


def _read_weight(record: _Record) -> float:
    value = record.find(("weight",))
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RecordProblem("weight", f"a weight is a number from 0, not {value!r}")
    return float(value)


def _read_options(record: _Record) -> tuple[str, ...]:
    value = record.find(("options",))
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(label, str) and label.strip() for label in value):
        raise RecordProblem("options", "options are a list of labels")
    if len(set(value)) != len(value) or len(value) == 1:
        raise RecordProblem("options", f"options are two or more different labels, not {value}")
    return tuple(value)


def _read_codes(record: _Record, options: Sequence[str]) -> tuple[int, ...]:
    value = record.find(("codes",))
    if not options or not value:
        return ()
    is_int = isinstance(value, list) and all(isinstance(code, int) and not isinstance(code, bool) for code in value)
    if not is_int or not len(value) == len(set(value)) == len(options):
        raise RecordProblem("codes", f"codes are {len(options)} different whole numbers, not {value!r}")
    return tuple(value)


def _read_shown(record: _Record, options: Sequence[str]) -> tuple[int, ...]:
    value = record.find(("shown",))
    if not options or not value:
        return ()
    is_int = isinstance(value, list) and all(isinstance(place, int) for place in value)
    if not is_int or sorted(value) != list(range(len(options))):
        raise RecordProblem("shown", f"this is the order of {len(options)} options, from 0, not {value!r}")
    return tuple(value)


def _read_type(record: _Record, *, has_options: bool) -> ResponseType:
    """Return the response type; a record that names none is `single` with options and `open` without."""
    given = record.text(TYPE_KEYS)
    if not given:
        return "single" if has_options else "open"
    name = re.sub(r"[\W_]", "", given.lower())
    types: dict[str, ResponseType] = {known: known for known in RESPONSE_TYPES} | dict(TYPE_NAMES)
    if name not in types:
        raise RecordProblem("question_type", f"{given!r} is none of {', '.join(RESPONSE_TYPES)}")
    return types[name]


def _read_reference(record: _Record) -> str:
    given = clean_text(record.text(REFERENCE_KEYS))
    said = clean_text(record.messages.get("assistant", ""))
    if given and said and given != said:
        raise RecordProblem("reference", "it differs from the assistant's message")
    if not given and not said:
        raise RecordProblem("reference", "missing: no `reference` and no assistant message")
    return given or said


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
