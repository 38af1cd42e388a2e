"""A codebook's JSON → a checked `Codebook`; what is wrong is named by item, all of it at once.

Knows no data file: what the data contradict is found by `microdata`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polypersona.errors import PersonaError, SurveyError, nearest
from polypersona.location import mask_secrets
from polypersona.panel.rows import read_bytes
from polypersona.records import RESPONSE_TYPES, Gate
from polypersona.survey.codebook import DEFAULT_DOMAIN, Codebook, Question, batteries, says_not
from polypersona.survey.codebook_fields import check_keys, read_demographics, read_not_asked, read_text
from polypersona.survey.problems import Faults, Problem, refusal

_KEYS = (
    "title", "source", "license", "respondent_id", "weight", "demographics", "not_asked", "items", "domain",
    "header_rows",
)  # fmt: skip
_ITEM_KEYS = (
    "stem", "part", "response_type", "options", "missing", "ordinal", "direction", "reverse", "construct", "asked_if",
    "unused", "column",
)  # fmt: skip
_ORDERED = ("likert", "agreement")
_NO_CODE = "_"  # `missing: {"_": "none: here -1 means not ticked"}` is a remark
_OPEN = ("open", "numeric")
MAX_BYTES = 1 << 26


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys that stood in it twice."""

    repeated: tuple[str, ...] = ()


def is_codebook(path: str | Path) -> bool:
    """Return whether a file is a codebook: JSON whose `items` are an object of stems by id. Raises nothing."""
    file = Path(path)
    if file.suffix != ".json" or not file.is_file() or file.stat().st_size > MAX_BYTES:
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    items = content.get("items") if isinstance(content, dict) else None
    return isinstance(items, dict) and "respondent_id" in content


def load_codebook(location: str | Path) -> Codebook:
    """Read a codebook from a path or URL.

    Raises:
        SurveyError: the file cannot be read, or is wrong; every fault is in the message, by item.
    """
    codebook, problems = read_codebook(location)
    if problems:
        raise refusal(f"The codebook {mask_secrets(str(location))}", problems)
    return codebook


def read_codebook(location: str | Path) -> tuple[Codebook, list[Problem]]:
    """Read a codebook, and what is wrong with it beside the rest that could be read.

    Raises:
        SurveyError: the file cannot be read, or nothing in it is a codebook.
    """
    name = mask_secrets(str(location))
    try:
        content = json.loads(read_bytes(str(location)).decode("utf-8-sig"), object_pairs_hook=_remember)
    except PersonaError as error:
        raise SurveyError(f"The codebook {name} cannot be read.", "Name a readable codebook.json.") from error
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise SurveyError(f"{name}{line}: this is not valid JSON.", "Mend the file.") from error
    codebook, problems = parse_codebook(content)
    if codebook is None:
        raise refusal(f"The codebook {name}", problems)
    return codebook, problems


def parse_codebook(content: Any) -> tuple[Codebook | None, list[Problem]]:
    """Return the codebook of JSON values, and everything that is wrong with it; it is None where nothing is usable."""
    faults = Faults()
    if not isinstance(content, dict) or not isinstance(content.get("items"), dict) or not content["items"]:
        faults.add("", "a codebook is an object with a non-empty object `items`, each item under its id")
        return None, faults.found
    check_keys("", content, _KEYS, faults)
    questions = []
    for item_id, row in content["items"].items():
        if (question := _question(item_id, row, faults)) is not None:
            questions.append(question)
    for item_id in getattr(content["items"], "repeated", ()):
        faults.add(item_id, "the item stands twice in the codebook")
    _check_gates(questions, faults)
    _check_batteries(questions, faults)
    header_rows = content.get("header_rows", 1)
    if not isinstance(header_rows, int) or header_rows < 1:
        faults.add("", f"`header_rows` is a whole number of at least 1, not {header_rows!r}")
        header_rows = 1
    codebook = Codebook(
        title=read_text(content, "title", "", faults),
        source=read_text(content, "source", "", faults),
        license=read_text(content, "license", "", faults),
        respondent_id=read_text(content, "respondent_id", "", faults),
        weight=read_text(content, "weight", "", faults),
        not_asked=read_not_asked(content.get("not_asked"), faults),
        demographics=read_demographics(content.get("demographics", {}), faults),
        questions=tuple(questions),
        domain=read_text(content, "domain", "", faults) or DEFAULT_DOMAIN,
        header_rows=header_rows,
    )
    return codebook, faults.found


def _remember(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    keys = [key for key, _ in pairs]
    if len(found) < len(keys):
        found.repeated = tuple(dict.fromkeys(key for key in keys if keys.count(key) > 1))
    return found


def _question(item_id: str, row: Any, faults: Faults) -> Question | None:
    if not isinstance(row, dict):
        faults.add(item_id, f"an item is an object, not {row!r:.60}")
        return None
    before = len(faults.found)
    check_keys(item_id, row, _ITEM_KEYS, faults)
    kind = row.get("response_type")
    if kind not in RESPONSE_TYPES:
        faults.add(item_id, f"`response_type` is one of {', '.join(RESPONSE_TYPES)}, not {kind!r}")
    if not read_text(row, "stem", item_id, faults):
        faults.add(item_id, "the stem is missing")
    options = _coded(row.get("options", {}), "options", item_id, faults)
    missing = _coded(row.get("missing", {}), "missing", item_id, faults)
    for code in sorted(set(options) & set(missing)):
        faults.add(item_id, f"{code} means two things: the option {options[code]!r} and missing as {missing[code]!r}")
    _check_options(item_id, kind, options, missing, faults)
    unused = {_code(code) for code in row.get("unused", ())}
    for stray in sorted(unused - set(options), key=str):
        faults.add(item_id, f"`unused` names {stray}, which is no option's code")
    direction = row.get("direction", "ascending")
    if direction not in ("ascending", "descending"):
        faults.add(item_id, f"`direction` is ascending or descending, not {direction!r}")
    if len(faults.found) > before:
        return None
    return Question(
        item_id=item_id,
        stem=read_text(row, "stem", item_id, faults),
        part=read_text(row, "part", item_id, faults),
        response_type=row["response_type"],
        options=options,
        missing=missing,
        is_ordered=bool(row.get("ordinal", kind in _ORDERED)) and len(options) > 1,
        direction=direction,
        is_reverse=bool(row.get("reverse", False)),
        construct=read_text(row, "construct", item_id, faults),
        asked_if=_gates(item_id, row.get("asked_if", {}), faults),
        unused=frozenset(code for code in unused if code is not None),
        column=read_text(row, "column", item_id, faults) or item_id,
    )


def _check_options(
    item_id: str, kind: Any, options: Mapping[int, str], missing: Mapping[int, str], faults: Faults
) -> None:
    if kind == "multiple":
        empty = [code for code, label in options.items() if says_not(label)]
        if len(options) != 2 or len(empty) != 1:
            also = f" {min(missing)} is declared missing as {missing[min(missing)]!r};" if missing else ""
            faults.add(
                item_id,
                f"a column of a select-all question has two options, ticked and not ticked, not {dict(options)};{also} "
                "if that code means an empty box, declare it as the option 'not ticked'",
            )
    elif kind in RESPONSE_TYPES and kind not in _OPEN and len(options) < 2:
        faults.add(item_id, f"a closed item has at least two options, not {len(options)}")
    labels = [" ".join(label.casefold().split()) for label in options.values()]
    for label in dict.fromkeys(label for label in labels if labels.count(label) > 1):
        faults.add(item_id, f"two codes have the label {label!r}")


def _coded(content: Any, key: str, item_id: str, faults: Faults) -> dict[int, str]:
    if not isinstance(content, dict):
        faults.add(item_id, f"`{key}` is an object of labels by code, not {content!r:.60}")
        return {}
    for code in getattr(content, "repeated", ()):
        faults.add(item_id, f"{code} means two things: it stands twice in `{key}`")
    found: dict[int, str] = {}
    for written, label in content.items():
        if written == _NO_CODE:
            continue
        code = _code(written)
        if code is None:
            faults.add(item_id, f"`{key}` has the code {written!r}; codes are whole numbers of at most four digits")
        elif not isinstance(label, str) or not label.strip():
            faults.add(item_id, f"`{key}` gives the code {written} no label")
        elif code in found:
            faults.add(item_id, f"{code} means two things in `{key}`: {found[code]!r} and {label!r}")
        else:
            found[code] = label.strip()
    return found


def _code(written: Any) -> int | None:
    text = str(written).strip()
    return int(text) if re.fullmatch(r"[+-]?\d{1,4}", text) and not isinstance(written, bool) else None


def _gates(item_id: str, content: Any, faults: Faults) -> tuple[Gate, ...]:
    if not isinstance(content, dict):
        faults.add(item_id, "`asked_if` is an object of lists of codes by item")
        return ()
    gates = []
    for gate, codes in content.items():
        read = [_code(code) for code in codes] if isinstance(codes, list) else [None]
        if not read or None in read:
            faults.add(item_id, f"`asked_if` gives {gate!r} no list of codes")
        else:
            gates.append(Gate(gate, tuple(code for code in read if code is not None)))
    return tuple(gates)


def _check_gates(questions: Sequence[Question], faults: Faults) -> None:
    place = {question.item_id: index for index, question in enumerate(questions)}
    for index, question in enumerate(questions):
        for gate in question.asked_if:
            if gate.item_id not in place:
                faults.add(
                    question.item_id, f"`asked_if` names {gate.item_id!r}, no sound item.{nearest(gate.item_id, place)}"
                )
                continue
            if place[gate.item_id] >= index:
                faults.add(question.item_id, f"`asked_if` names {gate.item_id!r}, which does not come before the item")
            other = questions[place[gate.item_id]]
            for code in gate.codes:
                if code not in other.options and code not in other.missing:
                    faults.add(question.item_id, f"`asked_if` names the code {code}, which {gate.item_id!r} lacks")


def _check_batteries(questions: Sequence[Question], faults: Faults) -> None:
    """Name a code that means one thing in most parts of a question and another in some."""
    for members in batteries(questions).values():
        for code in sorted({code for member in members for code in (*member.options, *member.missing)}):
            meanings: dict[str, list[str]] = {}
            for member in members:
                label = member.options.get(code) or member.missing.get(code)
                if label is not None:
                    meanings.setdefault(label.casefold(), []).append(member.item_id)
            if len(meanings) > 1:
                usual = max(meanings, key=lambda label: len(meanings[label]))
                for label, ids in meanings.items():
                    for item_id in ids if label != usual else ():
                        faults.add(
                            item_id,
                            f"{code} means two things: {label!r} here, {usual!r} in {meanings[usual][0]!r} of the same "
                            "question",
                        )
