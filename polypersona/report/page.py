"""Numbers, charts and a sample of answers → one HTML file that asks the network for nothing.

Everything that comes from a run is text to this module: the template escapes it, and the embedded data cannot close
their script element. The page's own policy (CSP) forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from polypersona import __version__
from polypersona.chatml import card_attributes, render_value
from polypersona.records import Persona
from polypersona.report import numbers
from polypersona.report.figures import draw_charts
from polypersona.report.human import MAX_CHARTED
from polypersona.report.human_words import MEANINGS
from polypersona.report.sample import Sample
from polypersona.report.source import Source
from polypersona.report.tally import Tally

_HERE = Path(__file__).parent
_SCRIPTS = ("report.js", "csv.js", "people.js")


def render_page(content: Mapping[str, Any], answers: Mapping[str, Any], people: Mapping[str, Any] | None = None) -> str:
    """Return the whole page.

    Args:
        content: what `build_content` gave.
        answers: what `browser_data` gives.
        people: what `human.browser_rows` gives, None where the run stands beside no people.
    """
    script = "\n".join((_HERE / "static" / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.render_number,
        raw=numbers.render_raw,
        count=numbers.render_count,
        share=numbers.render_share,
        words=numbers.render_words,
        group=numbers.render_group,
        facts=numbers.render_facts,
        fact=fact_text,
        kind=numbers.render_kind,
    )
    environment.globals.update(
        interval=numbers.render_interval,
        gauge=gauge,
        segment=segment_color,
        table_of=table_of,
        measure_meaning=lambda name: MEANINGS.get(name, ""),
        human_charted=MAX_CHARTED,
    )
    return environment.get_template("report.html.j2").render(
        **content,
        charts={name: Markup(text) for name, text in draw_charts(content).items()},
        answers=answers,
        answers_json=Markup(script_json(answers)),
        people_json=Markup(script_json(people)) if people and people["cells"] else "",
        recipe_yaml=yaml.safe_dump(content["recipe"], sort_keys=False, allow_unicode=True),
        css=Markup((_HERE / "static" / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        not_computed=numbers.NOT_COMPUTED,
    )


def assets_digest() -> str:
    """Return a digest of the page's templates, styles and scripts: another one means another page."""
    state = hashlib.blake2b(digest_size=8)
    for folder in ("templates", "static"):
        for path in sorted((_HERE / folder).iterdir()):
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def table_of(lines: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> list[tuple[int, list[float | None]]]:
    """Return curves as rows of a table: a step, and each curve's value there or None."""
    values: list[dict[int, float]] = [dict(points) for _, points in lines]
    steps = sorted({step for curve in values for step in curve})
    return [(step, [curve.get(step) for curve in values]) for step in steps]


def browser_data(sample: Sample, source: Source, tally: Tally) -> dict[str, Any]:
    """Return the sampled respondents and their answers in the compact form the page's script reads.

    `rows` are [persona index, item index, text, disposition, wave, draw, reference or null].
    """
    personas = sample.personas()
    items: dict[str, int] = {}
    rows: list[list[Any]] = []
    for index, persona in enumerate(personas):
        for row in sample.rows[persona]:
            item = items.setdefault(row["item"], len(items))
            reference = source.references.get((persona, row["item"]))
            rows.append([index, item, row["text"], row["disposition"], row["wave"], row["draw"], reference])
    return {
        "personas": [
            _card(f"respondent {place}" if source.hides_people else persona, source.cards.get(persona))
            for place, persona in enumerate(personas, start=1)
        ],
        "items": [_item(key, source, tally) for key in items],
        "rows": rows,
        "is_everything": sample.is_everything,
    }


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no `<`, `>`, `&` and no line separator is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def gauge(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return where score, interval, floor and ceiling stand on a line, in percent; None where there is no score."""
    names = ("score", "low", "high", "floor", "ceiling")
    values = {name: float(row[name]) for name in names if numbers.is_defined(row.get(name))}
    if "score" not in values:
        return None
    start = 0.0 if min(values.values()) >= 0 else -1.0 if min(values.values()) >= -1 else min(values.values())
    end = 1.0 if max(values.values()) <= 1 else max(values.values())
    places = {name: round(100 * (value - start) / (end - start), 2) for name, value in values.items()}
    return {"start": start, "end": end, **{name: places.get(name) for name in names}}


def fact_text(value: Any) -> str:
    """Return a plain value as words."""
    return numbers.render_fact("", value)[1]


def segment_color(index: int, count: int, scale: str) -> str:
    """Return the CSS colour of an option: from low to high on an ordered scale, distinct hues on a nominal one."""
    if scale == "nominal":
        return f"hsl({(210 + index * 67) % 360} 45% var(--hue-lightness))"
    place = index / (count - 1) if count > 1 else 1.0
    side, strength = ("--low", 1 - 2 * place) if place < 0.5 else ("--high", 2 * place - 1)
    return f"color-mix(in oklab, var({side}) {100 * strength:.0f}%, var(--middle))"


def _card(persona_id: str, persona: Persona | None) -> dict[str, Any]:
    if persona is None:
        return {"id": persona_id, "brief": "", "card": [], "text": ""}
    card = [[numbers.render_words(name), render_value(value)] for name, value in card_attributes(persona)]
    return {"id": persona_id, "brief": _brief(persona), "card": card, "text": persona.text}


def _brief(persona: Persona) -> str:
    known: Sequence[str] = [name for name in ("age", "gender", "occupation") if name in persona.attributes]
    names = known or [name for name, _ in card_attributes(persona)[:3]]
    brief = ", ".join(render_value(persona.attributes[name]) for name in names)
    return brief or (persona.text[:80] + "…" if len(persona.text) > 80 else persona.text)


def _item(key: str, source: Source, tally: Tally) -> list[str]:
    domain, kind = tally.item_types[key]
    item = source.items.get(key) or source.items.get(key.split(" · ")[0])
    return [key, item.stem if item else key, domain, numbers.render_kind(kind)]
