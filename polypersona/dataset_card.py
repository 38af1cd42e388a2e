"""The dataset's card: what it is, how it was made, of what it consists, what its splits share.

Takes the splits and figures, gives Markdown with the front matter that the Hugging Face hub reads. Knows no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypersona.records import Example

# Counts of people's rows below this are not shown.
MIN_SHOWN = 5
_LEAK_ROWS = (
    ("personas in both", "shared_personas", "personas"),
    ("rows whose persona is in both", "rows_with_shared_persona", "rows"),
    ("questions in both", "shared_questions", "questions"),
    ("rows whose persona and question are in both", "rows_with_shared_pair", "rows"),
    ("rows that are in both, answer included", "duplicate_rows", "rows"),
)


@dataclass(frozen=True, slots=True)
class Human:
    """Whose answers these are: the survey's title, its source with what it asks to be attributed to, its licence."""

    title: str
    source: str
    license: str


@dataclass(frozen=True, slots=True)
class Making:
    """How the rows came to be, for the card: a sentence, licence, what was kept aside, dropped or not taken over.

    `human` says whose answers they are where people gave them.
    """

    origin: str
    license: str
    seed: int
    division: str
    is_external: bool = False
    num_dropped: int = 0
    num_rejected: int = 0
    num_not_asked: int = 0
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = ()
    human: Human | None = None


def render_card(name: str, splits: Mapping[str, Sequence[Example]], leaks: Mapping[str, Any], making: Making) -> str:
    """Return the card as Markdown."""
    rows = [row for split in splits.values() for row in split]
    parts = [
        _front_matter(name, making),
        *_what_it_is(name, making),
        f"## How it was made\n\n{making.origin}\n\n"
        f"Licence of the {'answers' if making.human else 'personas or records'} it was made from: {making.license}."
        f"\n\nSeed: {making.seed}.",
        "## Format\n\nJSON Lines, one row an answer: `id`, `messages` (system, user, assistant) and `metadata` "
        "(persona, domain, item, question and reference, for closed items also code and label). "
        '`datasets.load_dataset("json", data_files={...})` loads it.',
        f"## Composition\n\n{_composition(rows, MIN_SHOWN if making.human else 0)}",
        f"## Splits\n\n{_splits(splits, making)}",
        f"## Leaks\n\n{_leaks(leaks)}",
    ]
    return "\n\n".join([*parts, *([f"## Notes\n\n{_bullets(making.notes)}"] if making.notes else [])]) + "\n"


def _what_it_is(name: str, making: Making) -> tuple[str, str]:
    """Return title and first paragraph: synthetic, or whose answers these are."""
    if making.human is not None:
        return f"# {name}: answers of people to a survey", (
            f"Source: {making.human.source}\n\n"
            f"These rows hold answers that people gave (“{making.human.title}”). Name the source and its licence "
            "wherever something made from them is shown. A row is there to learn a population from, by its weight: it "
            "is not to be shown as a person, and nobody may try to find out who gave it."
        )
    written = "" if making.is_external else " Every answer was written by a program and not by a person."
    return f"# {name}: synthetic survey responses", (
        f"This dataset is synthetic.{written} No figure computed from it describes people."
    )


def _front_matter(name: str, making: Making) -> str:
    if making.human is not None:
        lines = ["---", f"pretty_name: {name}", "tags: [survey, microdata]"]
    else:
        lines = ["---", f"pretty_name: {name} (synthetic)", "tags: [synthetic, survey, personas]"]
    return "\n".join([*lines, "task_categories: [text-generation]", f"seed: {making.seed}", "---"])


def _composition(rows: Sequence[Example], least: int) -> str:
    domains_of: dict[str, set[str]] = {}
    for row in rows:
        domains_of.setdefault(row.metadata["persona_id"], set()).add(row.metadata["domain"])
    single = sum(len(domains) == 1 for domains in domains_of.values())
    items = {row.metadata["item_id"] for row in rows}
    summary = (
        f"{len(rows):,} rows of {len(domains_of):,} personas and {len(items)} items. "
        f"{_percent(single, len(domains_of))} of the personas appear in one domain only."
    )
    by_domain = _shares("domain", Counter(row.metadata["domain"] for row in rows), least)
    by_type = _shares("response type", Counter(row.metadata["question_type"] for row in rows), least)
    return f"{summary}\n\n{by_domain}\n\n{by_type}"


def _shares(what: str, counts: Counter[str], least: int) -> str:
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [
        (name, f"{count:,}", _percent(count, total)) if count >= least else (name, f"fewer than {least}", "not shown")
        for name, count in ranked
    ]
    return _table((what, "rows", "share"), lines)


def _splits(splits: Mapping[str, Sequence[Example]], making: Making) -> str:
    total = sum(len(rows) for rows in splits.values())
    table = _table(
        ("split", "rows", "share", "personas", "items"),
        [
            (
                split,
                f"{len(rows):,}",
                _percent(len(rows), total),
                f"{len({row.metadata['persona_id'] for row in rows}):,}",
                str(len({row.metadata["item_id"] for row in rows})),
            )
            for split, rows in splits.items()
        ],
    )
    kept_aside = f"{making.num_rejected:,} were kept aside"
    kept_aside += " (`rejected.jsonl`)." if making.num_rejected else "."
    return (
        f"{making.division}\n\n{table}\n\n{making.num_dropped:,} rows belong to no split and were dropped; {kept_aside}"
    )


def _leaks(leaks: Mapping[str, Any]) -> str:
    columns = list(leaks["leaks"].items())
    table = _table(
        ("", *(name.replace("_", " ") for name, _ in columns)),
        [(label, *(f"{own[key]:,} of {own[whole]:,}" for _, own in columns)) for label, key, whole in _LEAK_ROWS],
    )
    repeats = leaks["repeats"]
    return (
        f"Counted by persona id and question text.\n\n{table}\n\nOver all rows, {repeats['repeated_pairs']:,} pairs of "
        f"persona and question occur more than once, {repeats['contradictions']:,} of them with different answers; "
        f"{repeats['duplicate_rows']:,} rows repeat an earlier one."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "undefined (n = 0)"


def _bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
